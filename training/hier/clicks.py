"""The log as HIER reads it: who was shown what, in which domain, and whether it was clicked.

Invariant: `without` leaves no row of a held-out domain, so what is made from its result cannot know one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.data.prepared import PreparedDataset
from training.hier.ragged import IntArray


@dataclass(frozen=True, eq=False)
class Impressions:
    """n rows of the log in time order.

    Attributes:
        user, item: (n,) int64 slots; a user of -1 is not known.
        domain: (n,) int64 index, D for unknown domains.
        label: (n,) float32, 1 for a click.
    """

    user: IntArray
    item: IntArray
    domain: IntArray
    label: NDArray[np.float32]

    @staticmethod
    def read(prepared: PreparedDataset, split: str) -> Impressions:
        """All rows of a split whose item is known, sorted by time."""
        file = prepared.row_file(split)
        parts = [file.read_group(group) for group in range(len(file.group_rows))]
        file.close()
        names = ("user_slot", "item_slot", "domain", "label", "time_ms")
        rows = {name: np.concatenate([np.zeros(0), *(part[name] for part in parts)]) for name in names}
        order = np.argsort(rows["time_ms"], kind="stable")
        order = order[rows["item_slot"][order] >= 0]
        user, item, domain = (rows[name][order].astype(np.int64) for name in names[:3])
        return Impressions(user, item, domain, rows["label"][order].astype(np.float32))

    def __len__(self) -> int:
        return len(self.user)

    def where(self, kept: NDArray[np.bool_] | IntArray) -> Impressions:
        """Some rows, by mask or index."""
        return Impressions(self.user[kept], self.item[kept], self.domain[kept], self.label[kept])

    def clicks(self) -> Impressions:
        """Rows that were clicked, of known users."""
        return self.where((self.label > 0) & (self.user >= 0))

    def of(self, domain: int) -> Impressions:
        """Rows of one domain."""
        return self.where(self.domain == domain)

    def without(self, domain: int | None) -> Impressions:
        """Rows of all other domains; all rows for None."""
        return self if domain is None else self.where(self.domain != domain)
