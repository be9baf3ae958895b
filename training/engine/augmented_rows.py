"""Batches of one domain from train rows and their augmented copies, as a search of masks wants them.

Reads the train split through `training.data.augmented`, so nothing of valid and test can get in; keeps the
rows of as many domains as `MAX_HELD_ROWS` allows, undecoded, and reads the next ones in one pass. Invariant:
a draw is a function of the data, the rules, the seed and the generator's state, whatever was drawn before.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.clustering.lookahead_model import LabelledRows
from training.data.augment import AugmentRules
from training.data.augmented import TRAIN_SPLIT, AugmentedTrain, augment_train
from training.data.dataset import Batch, RowReader
from training.data.errors import AugmentError
from training.data.prepared import PreparedDataset
from training.data.row_files import Rows
from training.engine.batch import model_inputs, targets

MAX_HELD_ROWS = 2_000_000
"""Rows kept in memory between draws, about 100 bytes each plus statistics and context."""


class AugmentedRows:
    """Draws rows of one domain at a time.

    Args:
        prepared: Whose train rows to read.
        rules: Thresholds and ratio; with ratio 0 all rows are real.
        seed: Of the copies, not of the draws.
        device: Where `draw` puts rows.
        max_held_rows: Rows to keep; one domain is always kept whole.

    Raises:
        AugmentError: No train rows, or small domains but no row to copy.
    """

    def __init__(
        self,
        prepared: PreparedDataset,
        *,
        rules: AugmentRules,
        seed: int,
        device: torch.device | None = None,
        max_held_rows: int = MAX_HELD_ROWS,
    ) -> None:
        self.train: AugmentedTrain = augment_train(prepared, rules=rules, seed=seed)
        self._rules, self._device = rules, device or torch.device("cpu")
        self._reader = RowReader(self.train, TRAIN_SPLIT)
        self._max_held_rows = max_held_rows
        self._held: dict[int, Rows] = {}

    def num_rows(self, domain: int) -> int:
        """Real and augmented train rows of a domain."""
        return self.num_real_rows(domain) + int(self.train.augmented_rows[domain])

    def num_real_rows(self, domain: int) -> int:
        """Real train rows of a domain.

        Raises:
            AugmentError: No such domain.
        """
        count = len(self.train.real_rows)
        if not 0 <= domain < count:
            raise AugmentError(f"domain {domain}; allowed: 0 to {count - 1}")
        return int(self.train.real_rows[domain])

    def batch(
        self, domain: int, num_rows: int, rng: np.random.Generator, *, real_only: bool = False
    ) -> Batch:
        """Draw rows of a domain at random; each occurs once before any occurs twice.

        Args:
            domain: Index of a domain with train rows.
            num_rows: Rows to draw.
            rng: Decides which.
            real_only: Leaves copies out.

        Raises:
            AugmentError: No such domain, no rows in it, or fewer than one row wanted.
        """
        size = self.num_real_rows(domain) if real_only else self.num_rows(domain)
        if num_rows < 1:
            raise AugmentError(f"num_rows is {num_rows}; allowed: 1 and more")
        if size == 0:
            raise AugmentError(f"domain {domain} ('{self.train.schema.domains[domain]}') has no train rows")
        rows = self._rows_of(domain)
        rounds = [rng.permutation(size) for _ in range(-(-num_rows // size))]
        chosen = np.concatenate(rounds)[:num_rows]
        return self._reader.batch_of({name: column[chosen] for name, column in rows.items()})

    def draw(
        self, domain: int, num_rows: int, rng: np.random.Generator, *, real_only: bool = False
    ) -> LabelledRows:
        """`batch` as tensors: labelled rows of that one domain."""
        batch = self.batch(domain, num_rows, rng, real_only=real_only)
        labels, _ = targets(batch, self._device)
        return LabelledRows(model_inputs(batch, self._device), labels, np.array([len(batch)], dtype=np.int64))

    def summary(self) -> dict[str, Any]:
        """Rules, and what was copied where."""
        return {"rules": dict(vars(self._rules))} | self.train.summary()

    def _rows_of(self, domain: int) -> Rows:
        """All rows of a domain, real ones first, each part in the order of the log."""
        if domain not in self._held:
            self._held = {}
            self._held = self._read(self._next(domain))
        return self._held[domain]

    def _next(self, first: int) -> NDArray[np.int64]:
        """Domains to read together: `first` and those after it, around the end, while there is room."""
        D = len(self.train.real_rows)
        order = (first + np.arange(D)) % D
        rows = (self.train.real_rows + self.train.augmented_rows)[order]
        return np.asarray(order[: max(1, int((np.cumsum(rows) <= self._max_held_rows).sum()))])

    def _read(self, domains: NDArray[np.int64]) -> dict[int, Rows]:
        """Rows of some domains, in one pass."""
        sides: tuple[list[Rows], list[Rows]] = ([], [])
        with_copies = self.train.row_file(TRAIN_SPLIT)
        for group in with_copies.groups():
            for side, rows in zip(sides, group, strict=True):
                mask = np.isin(rows["domain"], domains)
                side.append({name: column[mask] for name, column in rows.items()})
        with_copies.close()
        parts = [part for side in sides for part in side]
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        order = np.argsort(whole["domain"], kind="stable")
        whole = {name: column[order] for name, column in whole.items()}
        edges = np.searchsorted(whole["domain"], np.stack([domains, domains + 1]))
        return {
            int(d): {name: column[edges[0, i] : edges[1, i]] for name, column in whole.items()}
            for i, d in enumerate(domains)
        }
