"""Rows that a mask update tunes and scores candidates on.

`RowSource` is what the search reads; `TrainRows` are the real rows of the train split, read once into memory
in their compact form. Invariant: what is drawn is a function of the generator's state alone, so that an
update repeats exactly in a run that goes on.

Letters: D domains, N rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Protocol

import numpy as np
import torch

from training.clustering.arrays import IntArray
from training.clustering.lookahead_model import LabelledRows
from training.clustering.measured import take_rows
from training.data.dataset import RowReader
from training.data.prepared import PreparedDataset
from training.engine.batch import model_inputs, targets
from training.engine.row_view import domain_column
from training.masks.errors import MaskSearchError
from training.models.base import TensorBatch

_STREAM = 5


class RowSource(Protocol):
    """Rows by domain."""

    def num_rows(self, domain: int) -> int:
        """How many distinct rows there are of a domain."""
        ...

    def draw(self, domain: int, num_rows: int, rng: np.random.Generator) -> LabelledRows:
        """`num_rows` rows of one domain, repeated where there are fewer.

        Args:
            domain: Index of the domain, which has rows.
            num_rows: N, at least 1.
            rng: Of the choice.
        """
        ...


class TrainRows:
    """Real rows of the train split, as many of each domain as are kept in memory."""

    def __init__(self, prepared: PreparedDataset, *, most_rows: int, seed: int) -> None:
        """Read the rows.

        Args:
            prepared: The data.
            most_rows: Rows of a domain kept at most, chosen at random.
            seed: Of that choice.
        """
        column = domain_column(prepared, "train")
        D = prepared.schema.num_domains
        rng = np.random.default_rng([seed, _STREAM])
        chosen = [rng.permutation(np.flatnonzero(column == d))[:most_rows] for d in range(D)]
        self._sizes: IntArray = np.array([len(rows) for rows in chosen], dtype=np.int64)
        self._starts: IntArray = np.cumsum(self._sizes) - self._sizes
        self._reader = RowReader(prepared, "train")
        self._rows = take_rows(prepared, np.concatenate(chosen))

    def num_rows(self, domain: int) -> int:
        """Rows of a domain in memory."""
        return int(self._sizes[domain])

    def draw(self, domain: int, num_rows: int, rng: np.random.Generator) -> LabelledRows:
        """Rows of one domain; each occurs once before any occurs twice.

        Raises:
            MaskSearchError: The domain has no rows.
        """
        size = self.num_rows(domain)
        if size == 0:
            raise MaskSearchError(f"domain index {domain} has no train rows to search its mask on")
        rounds = [rng.permutation(size) for _ in range(-(-num_rows // size))]
        place = self._starts[domain] + np.concatenate(rounds)[:num_rows]
        batch = self._reader.batch_of({name: column[place] for name, column in self._rows.items()})
        cpu = torch.device("cpu")
        return LabelledRows(model_inputs(batch, cpu), targets(batch, cpu)[0], np.array([num_rows]))


def draw_rows(
    source: RowSource,
    domains: Iterable[int],
    num_rows: int,
    *,
    key: tuple[int, ...],
    device: torch.device,
) -> LabelledRows:
    """N rows of each domain, domain after domain.

    Args:
        source: Of the rows.
        domains: Indices of the domains.
        num_rows: N.
        key: Seed, number of the update and purpose; with the domain's index it decides the rows.
        device: Where they go.

    Raises:
        MaskSearchError: The source gave another number of rows.
    """
    parts: list[LabelledRows] = []
    for domain in domains:
        part = source.draw(domain, num_rows, np.random.default_rng([*key, domain]))
        if len(part.labels) != num_rows:
            raise MaskSearchError(
                f"{type(source).__name__} gave {len(part.labels)} rows of domain index {domain}; "
                f"{num_rows} were asked for"
            )
        parts.append(part)
    inputs = {
        f.name: torch.cat([getattr(part.inputs, f.name) for part in parts]).to(device)
        for f in fields(TensorBatch)
    }
    labels = torch.cat([part.labels for part in parts]).to(device)
    return LabelledRows(TensorBatch(**inputs), labels, np.full(len(parts), num_rows))
