"""How well scores rank what was clicked among other items of the domain.

Invariant: two scorers compared with one seed meet the same candidates; ties count against the clicked item.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.hier.bags import UserBags
from training.hier.clicks import Impressions
from training.hier.ragged import IntArray
from training.hier.sampling import draw_negatives
from training.metrics import hit_rate_at_k, ndcg_at_k, ranks_of_positive

NUM_NEGATIVES = 99
CUT = 10

PairScorer = Callable[[IntArray, IntArray], NDArray[np.float32]]
"""Scores (n,) of users (n,) and items (n,), both slots."""


@dataclass(frozen=True)
class Ranked:
    """NDCG@10 and HR@10 over `rows` clicks."""

    ndcg: float
    hit_rate: float
    rows: int


@dataclass(frozen=True, eq=False)
class RankingTask:
    """Clicks with their candidates.

    Attributes:
        users: (n,) slots.
        candidates: (n, 1 + negatives) items, the clicked one first.
    """

    users: IntArray
    candidates: IntArray

    @staticmethod
    def draw(
        clicks: Impressions, pool: IntArray, bags: UserBags, *, seed: int, max_rows: int | None = None
    ) -> RankingTask:
        """Draw candidates for the clicks of one domain.

        Args:
            clicks: Of the domain.
            pool: (n,) the domain's items.
            bags: Whose clicked items are no candidates.
            seed: Of the draws.
            max_rows: Clicks to take at most, at random.
        """
        rng = np.random.default_rng(seed)
        if max_rows is not None and len(clicks) > max_rows:
            clicks = clicks.where(np.sort(rng.choice(len(clicks), max_rows, replace=False)))
        negatives = draw_negatives(rng, clicks.user, pool, bags, count=NUM_NEGATIVES)
        same = negatives == clicks.item[:, None]
        while same.any():
            negatives[same] = pool[rng.integers(0, len(pool), int(same.sum()))]
            same = negatives == clicks.item[:, None] if len(pool) > 1 else np.zeros_like(same)
        return RankingTask(clicks.user, np.concatenate([clicks.item[:, None], negatives], axis=1))

    def measure(self, score: PairScorer) -> Ranked:
        """Rank the candidates of every click by a scorer."""
        flat = score(np.repeat(self.users, self.candidates.shape[1]), self.candidates.reshape(-1))
        ranks = ranks_of_positive(flat.reshape(self.candidates.shape), 0)
        return Ranked(ndcg_at_k(ranks, CUT), hit_rate_at_k(ranks, CUT), len(self.users))
