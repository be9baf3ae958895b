"""Users as weighted sets of entities: those that the items they clicked have.

The weight of an entity is log(1 + number of clicked items with it); the heaviest `top` count. Invariant: with
an item left out, a user's set is the one of a user who never clicked it, so a training row cannot read its
own label off its input.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.hier.clicks import Impressions
from training.hier.ragged import IntArray, Ragged

DEFAULT_TOP = 50


@dataclass(frozen=True, eq=False)
class UserBags:
    """Sets of U users over the entities of V items.

    Attributes:
        items: Distinct items that each user clicked.
        entities: Entities that they have.
        counts: (total,) int64 clicked items with each, beside `entities.values`.
        item_sets: Entities of each item.
        top: Entities of a user that count.
    """

    items: Ragged
    entities: Ragged
    counts: IntArray
    item_sets: Ragged
    top: int

    @staticmethod
    def of(clicks: Impressions, item_sets: Ragged, *, num_users: int, top: int = DEFAULT_TOP) -> UserBags:
        """Sets from clicks; rows of unknown users must not be among them."""
        items = Ragged.grouped(clicks.user, clicks.item, num_lists=num_users)
        held, present = item_sets.take(items.values)
        users = np.broadcast_to(items.owners[:, None], held.shape)[present]
        pair, counts = np.unique(np.stack([users, held[present]]), axis=1, return_counts=True)
        sizes = np.bincount(pair[0], minlength=num_users)
        starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        entities = Ragged(starts, pair[1].astype(np.int64))
        return UserBags(items, entities, counts.astype(np.int64), item_sets, top)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def is_cold(self) -> NDArray[np.bool_]:
        """(U,) whether a user touched no known entity."""
        cold: NDArray[np.bool_] = self.entities.sizes == 0
        return cold

    def clicked(self, users: IntArray, items: IntArray) -> NDArray[np.bool_]:
        """(B,) whether each user clicked the item beside it."""
        width = max(len(self.item_sets), 1)
        known = self.items.owners * width + self.items.values
        if not len(known):
            return np.zeros(len(users), dtype=np.bool_)
        wanted = users * width + items
        place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        found: NDArray[np.bool_] = (known[place] == wanted) & (users >= 0)
        return found

    def take(
        self, users: IntArray, *, left_out: IntArray | None = None
    ) -> tuple[IntArray, NDArray[np.float32]]:
        """Entities and weights of some users.

        Args:
            users: (B,) slots; -1 has an empty set.
            left_out: (B,) item of each row that is to count as not clicked.

        Returns:
            (B, L) int64 entity rows and (B, L) float32 weights, 0 where there is none; L at most `top`.
        """
        ids, present = self.entities.take(users)
        place = np.minimum(
            self.entities.starts[np.maximum(users, 0)][:, None] + np.arange(ids.shape[1]),
            max(len(self.counts) - 1, 0),
        )
        counts = np.where(present, self.counts[place], 0) if len(self.counts) else np.zeros_like(ids)
        if left_out is not None:
            held, real = self.item_sets.take(left_out)
            touched = ((ids[:, :, None] == held[:, None, :]) & real[:, None, :]).any(axis=2)
            counts = counts - (touched & self.clicked(users, left_out)[:, None])
        weights = np.where(present, np.log1p(counts), 0.0).astype(np.float32)
        if ids.shape[1] > self.top:
            # Stable over rows sorted by entity: of equal weights the first entities stay.
            order = np.argsort(-weights, axis=1, kind="stable")[:, : self.top]
            ids, weights = np.take_along_axis(ids, order, axis=1), np.take_along_axis(weights, order, axis=1)
        return np.where(weights > 0, ids, 0), weights
