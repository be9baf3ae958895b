"""The domains that the matrices are about, and the rows a lookahead reads of them.

Reads the train split once. Invariants: E_v are rows of the train split that no B_u ever holds; E_v stay the
same for a whole run, B_u are drawn anew for each update and depend on the seed and the number of the update
alone.

Letters: D domains, n <= D measured ones, K clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from training.clustering.arrays import FloatArray, IntArray
from training.clustering.assignment import ClusterAssignment, make_assignment, state_matrices
from training.clustering.baselines import Groups
from training.clustering.lookahead_model import LabelledRows
from training.clustering.state import CdcState
from training.clustering.tail import attach, eligible_domains
from training.data.dataset import Batch, RowReader
from training.data.prepared import PreparedDataset
from training.data.row_files import Rows
from training.engine.batch import model_inputs, targets
from training.engine.row_view import RowMask, domain_column, in_memory

POOL_BATCHES = 4
"""Batches B_u that are kept in memory to draw from."""


@dataclass(frozen=True, eq=False)
class MeasuredDomains:
    """Which of D domains are measured.

    Attributes:
        names: (D,) all domain names.
        ids: (n,) domain indices that are measured, ascending.
        train_rows: (D,) rows of the train split.
    """

    names: tuple[str, ...]
    ids: IntArray
    train_rows: IntArray

    @property
    def left_out(self) -> IntArray:
        """(D - n,) the others, too small to be measured."""
        return np.setdiff1d(np.arange(len(self.names)), self.ids)

    def default_cluster(self, labels: IntArray) -> int:
        """The cluster with most training rows; serves unknown and unmeasured domains."""
        return int(np.bincount(labels, weights=self.train_rows[self.ids]).argmax())

    def all_labels(self, labels: IntArray, sources: tuple[IntArray, ...]) -> IntArray:
        """(D,) clusters from (n,) ones; domains left out are attached to the default cluster."""
        every = np.empty(len(self.names), dtype=np.int64)
        every[self.ids] = labels
        left = self.left_out
        every[left] = attach(
            None, sources, default_cluster=self.default_cluster(labels), num_left_out=len(left)
        )
        return every

    def towers(self, labels: IntArray, sources: tuple[IntArray, ...]) -> list[int]:
        """(D + 1,) tower of each domain and, last, of unknown ones."""
        return [*self.all_labels(labels, sources).tolist(), self.default_cluster(labels)]

    def assignment(
        self, groups: Groups, state: CdcState, *, data_digest: str, config_digest: str
    ) -> ClusterAssignment:
        """Name the clusters that a grouping of the n measured domains made."""
        centres = state.require_clusters().centres if groups.method == "cdc" else None
        return make_assignment(
            Groups(
                method=groups.method,
                labels=self.all_labels(groups.labels, groups.sources),
                sources=tuple(self.ids[ids] for ids in groups.sources),
            ),
            self.names,
            centres=None if centres is None else self.ids[centres],
            attached=tuple(self.names[d] for d in self.left_out),
            default_cluster=self.default_cluster(groups.labels),
            num_updates=state.t,
            data_digest=data_digest,
            config_digest=config_digest,
        )

    def matrices(self, state: CdcState) -> dict[str, FloatArray]:
        """mi, mh, mc (D, D) and mt (R, D) of the latest update, nan where a domain was not measured."""
        made = {}
        for name, values in state_matrices(state).items():
            rows = len(values) if name == "mt" else len(self.names)
            full = np.full((rows, len(self.names)), np.nan)
            full[:, self.ids] = values if name == "mt" else np.nan
            if name != "mt":
                full[np.ix_(self.ids, self.ids)] = values
            made[name] = full
        return made


class RowPool:
    """Draws the batches of each update from memory."""

    def __init__(
        self,
        prepared: PreparedDataset,
        *,
        step_rows: int,
        eval_rows: int,
        held_out_ratio: float,
        min_train_rows: int,
        min_eval_rows: int,
        seed: int,
    ) -> None:
        """Choose the held-out rows and read what is needed of the train split.

        Args:
            prepared: The data.
            step_rows: Rows of B_u; fewer where a domain has fewer.
            eval_rows: Rows of E_v at most.
            held_out_ratio: Share of a domain's train rows in E_v at most.
            min_train_rows: Fewest train rows of a measured domain.
            min_eval_rows: Fewest rows of E_v of a measured domain.
            seed: Of every draw.

        Raises:
            RulesError: no domain has enough rows.
        """
        names = prepared.schema.domains
        column = domain_column(prepared, "train")
        counts = np.bincount(column, minlength=len(names))[: len(names)].astype(np.int64)
        held = np.minimum(eval_rows, (counts * held_out_ratio).astype(np.int64))
        ids = eligible_domains(counts, held, min_train_rows=min_train_rows, min_eval_rows=min_eval_rows)
        self.domains = MeasuredDomains(names=names, ids=ids, train_rows=counts)
        self._prepared, self._seed, self._step_rows = prepared, seed, step_rows
        rng = np.random.default_rng([seed, 2])
        chosen = [
            rng.permutation(np.flatnonzero(column == d))[: held[d] + POOL_BATCHES * step_rows] for d in ids
        ]
        evaluation = np.concatenate([rows[: held[d]] for d, rows in zip(ids, chosen, strict=True)])
        pool = np.concatenate([rows[held[d] :] for d, rows in zip(ids, chosen, strict=True)])
        self.held_out: RowMask = np.zeros(len(column), dtype=bool)
        self.held_out[evaluation] = True
        self._evaluation = take_rows(prepared, evaluation)
        self._pool = take_rows(prepared, pool)
        self._pool_sizes = np.array([len(rows) - held[d] for d, rows in zip(ids, chosen, strict=True)])

    @property
    def num_step_rows(self) -> int:
        """Rows of all B_u of an update."""
        return int(np.minimum(self._pool_sizes, self._step_rows).sum())

    @property
    def num_eval_rows(self) -> int:
        """Rows of all E_v."""
        return int(self.held_out.sum())

    def evaluation(self, device: torch.device) -> LabelledRows:
        """E_v of the n measured domains."""
        return self._labelled(self._evaluation, device)

    def steps(self, number: int, device: torch.device) -> LabelledRows:
        """B_u of update `number`."""
        rng = np.random.default_rng([self._seed, 3, number])
        starts = np.cumsum(self._pool_sizes) - self._pool_sizes
        drawn = [
            start + rng.permutation(size)[: self._step_rows]
            for start, size in zip(starts, self._pool_sizes, strict=True)
        ]
        place = np.concatenate(drawn)
        return self._labelled({name: column[place] for name, column in self._pool.items()}, device)

    def _labelled(self, rows: Rows, device: torch.device) -> LabelledRows:
        batch = _as_batch(self._prepared, rows)
        sizes = np.bincount(rows["domain"], minlength=len(self.domains.names))[self.domains.ids]
        labels, _ = targets(batch, device)
        return LabelledRows(inputs=model_inputs(batch, device), labels=labels, sizes=sizes.astype(np.int64))


def _as_batch(prepared: PreparedDataset, rows: Rows) -> Batch:
    reader = RowReader(in_memory(prepared, "train", rows), "train")
    return next(iter(reader.batches(len(rows["domain"]), shuffle=False)))


def take_rows(prepared: PreparedDataset, places: NDArray[np.int64]) -> Rows:
    """Columns of these rows of the train split, in this order; memory of one row group beside the result."""
    order = np.argsort(places, kind="stable")
    ordered = places[order]
    file = prepared.row_file("train")
    parts: list[Rows] = []
    start = 0
    for group, count in enumerate(file.group_rows):
        mine = ordered[np.searchsorted(ordered, start) : np.searchsorted(ordered, start + count)] - start
        if len(mine):
            parts.append({name: column[mine] for name, column in file.read_group(group).items()})
        start += count
    back = np.argsort(order, kind="stable")
    return {name: np.concatenate([part[name] for part in parts])[back] for name in parts[0]}
