"""Rows of the validation part as inputs of graphs: what precision is judged and calibrated on.

Reads prepared data. Invariant: rows come in one order for all graphs, so that scores compare row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export.rows import GraphArrays
from training.data.dataset import Batch, RowReader
from training.data.prepared import PreparedDataset

MAX_ROWS = 200_000
BATCH_ROWS = 1024
CALIBRATION_ROWS = 8192
AT_REQUEST = ("user_ints", "user_floats", "context_ints", "context_floats", "domain")


@dataclass(frozen=True)
class LabelledRows:
    """Rows with labels; each row is its own request.

    Attributes:
        inputs: All inputs of a scoring graph by name, (B, ...).
        labels: (B,) float32.
        domains: (B,) int64 domain index.
    """

    inputs: GraphArrays
    labels: NDArray[np.float32]
    domains: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def of_domains(self, domains: Sequence[int]) -> LabelledRows:
        """The rows of some domains."""
        return self.take(np.flatnonzero(np.isin(self.domains, list(domains))))

    def take(self, rows: NDArray[np.int64]) -> LabelledRows:
        """Some rows, each its own request again."""
        inputs = {name: values[rows] for name, values in self.inputs.items()}
        inputs["request_index"] = np.arange(len(rows), dtype=np.int64)
        return LabelledRows(inputs, self.labels[rows], self.domains[rows])

    def batches(self) -> list[GraphArrays]:
        """The inputs, at most `BATCH_ROWS` rows at a time."""
        starts = range(0, len(self), BATCH_ROWS)
        return [self.take(np.arange(s, min(s + BATCH_ROWS, len(self)))).inputs for s in starts]

    def scores(self, run: Callable[[GraphArrays], NDArray[np.float32]]) -> NDArray[np.float32]:
        """Scores (B,) of a graph."""
        parts = [run(inputs) for inputs in self.batches()]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def validation_rows(prepared: PreparedDataset, *, max_rows: int = MAX_ROWS) -> LabelledRows:
    """Rows drawn from the validation part, all of them up to a bound.

    Args:
        prepared: The data of the run.
        max_rows: Most rows that are read.
    """
    taken: list[Batch] = []
    if prepared.rows.get("valid"):
        reader = RowReader(prepared, "valid")
        for batch in reader.batches(BATCH_ROWS, seed=0, epoch=0, shuffle=True):
            taken.append(batch)
            if len(taken) * BATCH_ROWS >= max_rows:
                break
    if not taken:
        return LabelledRows({}, np.zeros(0, np.float32), np.zeros(0, np.int64))

    def joined(name: str) -> NDArray[np.generic]:
        return np.concatenate([getattr(batch, name) for batch in taken])

    domains = joined("domain").astype(np.int64)
    inputs: GraphArrays = {name: joined(name) for name in AT_REQUEST[:-1]}
    inputs |= {"domain": domains, "item_ints": joined("item_ints"), "item_floats": joined("item_floats")}
    inputs["request_index"] = np.arange(len(domains), dtype=np.int64)
    return LabelledRows(inputs, joined("label").astype(np.float32), domains)
