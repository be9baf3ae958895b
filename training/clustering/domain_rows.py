"""Rows of each domain for lookaheads, drawn from the train split of a prepared data set.

Reads domain numbers of all train rows once, then gathers chosen rows in passes over the row groups, a few
updates' worth per pass; gives `LookaheadRows`. Invariants: the rows of update t are a function of
(seed, t) alone; E_v never meets B_v of any update; memory holds what was drawn and one row group.

Hold-out rule: within each domain train rows are ranked by a hash of (seed, position in the file); the first
ones are held out, 5 % of the domain but at least as many as E_v wants, at most 20 %. They are out of every
B_u. The main training still sees them unless it drops `held_out` rows itself; they are no part of the
validation split, so early stopping never sees them as evaluation.

Letters: D domains of the schema, m measured ones, n train rows.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from training.clustering.arrays import BoolArray, IntArray
from training.clustering.errors import RulesError
from training.clustering.lookahead import LookaheadRows
from training.clustering.lookahead_model import LabelledRows
from training.clustering.tail import MIN_EVAL_ROWS, MIN_TRAIN_ROWS, eligible_domains
from training.data.dataset import Batch, RowReader
from training.data.prepared import PreparedDataset
from training.data.row_files import Rows
from training.engine.batch import model_inputs, targets
from training.engine.row_view import domain_column

HELD_OUT_SHARE = 0.05
MOST_HELD_OUT = 0.2


@dataclass(frozen=True)
class RowCounts:
    """How many rows a lookahead uses.

    Attributes:
        train: Most rows of B_u.
        evaluation: Most rows of E_v.
        updates_per_pass: Updates whose rows are gathered together.
        min_train: A domain with fewer rows to step on is not measured.
        min_evaluation: A domain with fewer held-out rows is not measured.

    Raises:
        RulesError: a count below 1.
    """

    train: int = 256
    evaluation: int = 128
    updates_per_pass: int = 4
    min_train: int = MIN_TRAIN_ROWS
    min_evaluation: int = MIN_EVAL_ROWS

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise RulesError(f"{name} is {value}; it must be at least 1")


class RowPicker(RowReader):
    """Gathers chosen rows of a split."""

    @property
    def group_starts(self) -> IntArray:
        """(groups + 1,) first position of each row group, and the number of rows."""
        return np.concatenate([[0], np.cumsum(self._file.group_rows, dtype=np.int64)]).astype(np.int64)

    def pick(self, positions: IntArray) -> Batch:
        """Rows at ascending positions without repeats, in one pass over the row groups that hold them."""
        starts = self.group_starts
        parts: list[Rows] = []
        for group in np.unique(np.searchsorted(starts, positions, side="right") - 1).tolist():
            here = positions[(positions >= starts[group]) & (positions < starts[group + 1])] - starts[group]
            parts.append({name: column[here] for name, column in self._file.read_group(group).items()})
        rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return self._batch(rows, slice(0, len(positions)))


class DomainRows:
    """Draws the rows of each update.

    Attributes:
        measured: (m,) ids of the domains with enough rows, ascending; domain j of the rows given is
            `measured[j]`. Unknown domains are never among them.
        left_out: The other ids; see `tail.attach`.
        train_rows: (D,) train rows of each domain.
    """

    def __init__(
        self,
        prepared: PreparedDataset,
        *,
        seed: int,
        device: torch.device,
        counts: RowCounts | None = None,
    ) -> None:
        """Read the domains of all train rows and hold some out.

        Args:
            prepared: Whose train split to draw from.
            seed: Of the hold-out and of every draw.
            device: Where the rows go.
            counts: How many rows; None for the defaults.

        Raises:
            RulesError: no domain has enough rows.
        """
        self._picker = RowPicker(prepared, "train")
        self._seed, self._device = seed, device
        self._counts = counts = counts or RowCounts()
        domains = domain_column(prepared, "train")
        D = prepared.schema.num_domains
        self._held = hold_out(domains, D, seed=seed, wanted=counts.evaluation)
        self._num_rows = len(domains)
        order = np.argsort(domains, kind="stable").astype(np.int64)
        of_domain = np.split(order, np.searchsorted(domains[order], np.arange(1, D + 1)))[:D]
        train = [rows[~self._held[rows]] for rows in of_domain]
        evaluation = [rows[self._held[rows]] for rows in of_domain]
        self.train_rows: IntArray = np.array([len(rows) for rows in of_domain], dtype=np.int64)
        self.measured: IntArray = eligible_domains(
            self.train_rows,
            np.array([len(rows) for rows in evaluation], dtype=np.int64),
            min_train_rows=counts.min_train,
            min_eval_rows=counts.min_evaluation,
        )
        self.left_out: IntArray = np.setdiff1d(np.arange(D, dtype=np.int64), self.measured)
        self._train = [train[d] for d in self.measured]
        self._evaluation = [evaluation[d] for d in self.measured]
        self._ready: dict[int, LookaheadRows] = {}

    @property
    def held_out(self) -> BoolArray:
        """(n,) which train rows, by position in the file, are kept for E_v."""
        return self._held

    def positions(self, update: int) -> tuple[list[IntArray], list[IntArray]]:
        """Positions of B_u and of E_v of each measured domain, ascending, a function of (seed, update)."""
        made = []
        for side, pools, most in (
            (0, self._train, self._counts.train),
            (1, self._evaluation, self._counts.evaluation),
        ):
            made.append(
                [
                    _draw(pool, most, np.random.default_rng([self._seed, update, side, int(domain)]))
                    for domain, pool in zip(self.measured, pools, strict=True)
                ]
            )
        return made[0], made[1]

    def rows(self, update: int) -> LookaheadRows:
        """Rows of one update; the next updates' are gathered in the same pass and kept until asked for."""
        if update not in self._ready:
            self._gather(range(update, update + self._counts.updates_per_pass))
        return self._ready.pop(update)

    def _gather(self, updates: range) -> None:
        wanted = {update: self.positions(update) for update in updates}
        every = np.unique(np.concatenate([p for sides in wanted.values() for side in sides for p in side]))
        batch = self._picker.pick(every)
        self._ready = {}
        for update, (train, evaluation) in wanted.items():
            self._ready[update] = LookaheadRows(
                *(self._labelled(batch, every, parts) for parts in (train, evaluation))
            )

    def _labelled(self, batch: Batch, every: IntArray, parts: list[IntArray]) -> LabelledRows:
        place = np.searchsorted(every, np.concatenate(parts))
        chosen = Batch(**{name: getattr(batch, name)[place] for name in Batch.__slots__})
        labels, _ = targets(chosen, self._device)
        sizes = np.array([len(part) for part in parts], dtype=np.int64)
        return LabelledRows(model_inputs(chosen, self._device), labels, sizes)


def hold_out(domains: NDArray[np.int32], num_domains: int, *, seed: int, wanted: int) -> BoolArray:
    """Which rows are kept for E_v, by the rule of the module.

    Args:
        domains: (n,) domain index of each row; rows of index D, unknown, are not held out.
        num_domains: D.
        seed: Of the hash.
        wanted: Rows of E_v.

    Returns:
        (n,) boolean.
    """
    keys = _mix(np.arange(len(domains), dtype=np.uint64), seed)
    order = np.lexsort((keys, domains))
    sizes = np.bincount(domains, minlength=num_domains + 1)
    least = np.maximum(np.ceil(HELD_OUT_SHARE * sizes), np.minimum(wanted, np.floor(MOST_HELD_OUT * sizes)))
    quota = np.where(np.arange(len(sizes)) < num_domains, least, 0).astype(np.int64)
    starts = np.cumsum(sizes) - sizes
    rank = np.arange(len(domains)) - starts[domains[order]]
    held = np.zeros(len(domains), dtype=bool)
    held[order[rank < quota[domains[order]]]] = True
    return held


def _mix(values: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """SplitMix64 (Steele et al. 2014) of position and seed, a fixed hash on every platform."""
    with np.errstate(over="ignore"):
        z = values + np.uint64(seed) * np.uint64(0xD1342543DE82EF95) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return mixed


def _draw(pool: IntArray, most: int, generator: np.random.Generator) -> IntArray:
    """Up to `most` positions without repeats, ascending."""
    if len(pool) <= most:
        return pool
    chosen: IntArray = np.sort(generator.choice(pool, size=most, replace=False, shuffle=False))
    return chosen
