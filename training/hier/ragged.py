"""Lists of different lengths in two flat arrays, padded to a block for the rows that a step asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Ragged:
    """n lists of integers.

    Attributes:
        starts: (n + 1,) int64, list i is `values[starts[i]:starts[i + 1]]`.
        values: (total,) int64.
    """

    starts: IntArray
    values: IntArray

    @staticmethod
    def of(lists: Sequence[Sequence[int]]) -> Ragged:
        """The lists as they are."""
        sizes = np.fromiter((len(own) for own in lists), dtype=np.int64, count=len(lists))
        flat = np.fromiter((value for own in lists for value in own), dtype=np.int64, count=int(sizes.sum()))
        return Ragged(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64), flat)

    @staticmethod
    def grouped(keys: IntArray, values: IntArray, *, num_lists: int) -> Ragged:
        """Lists of the `values` (t,) by their `keys` (t,) in [0, num_lists), each sorted, none twice."""
        order = np.lexsort((values, keys))
        keys, values = keys[order], values[order]
        fresh = np.ones(len(keys), dtype=np.bool_)
        fresh[1:] = (keys[1:] != keys[:-1]) | (values[1:] != values[:-1])
        keys, values = keys[fresh], values[fresh]
        sizes = np.bincount(keys, minlength=num_lists)
        return Ragged(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64), values.astype(np.int64))

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def sizes(self) -> IntArray:
        """(n,) int64 lengths."""
        return np.diff(self.starts)

    @property
    def owners(self) -> IntArray:
        """(total,) int64 list of each value."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.sizes)

    def take(self, rows: IntArray) -> tuple[IntArray, NDArray[np.bool_]]:
        """Lists of some rows, (B, L) int64 padded by 0, and (B, L) whether an entry is one of the list.

        Rows of -1 are empty; L is at least 1.
        """
        safe = np.maximum(rows, 0)
        sizes = np.where(rows < 0, 0, self.starts[safe + 1] - self.starts[safe]) if len(self) else rows * 0
        width = max(1, int(sizes.max(initial=0)))
        present = np.arange(width) < sizes[:, None]
        if not len(self.values):
            return np.zeros((len(rows), width), dtype=np.int64), present
        place = np.minimum(self.starts[safe][:, None] + np.arange(width), len(self.values) - 1)
        return np.where(present, self.values[place], 0), present
