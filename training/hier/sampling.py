"""Items to rank a clicked one against: of the same domain, and not clicked by the user.

Negatives of other domains would be told apart by domain alone. Invariant: a pure function of the generator's
state; a user who clicked all items of a domain keeps what was drawn last.
"""

from __future__ import annotations

import numpy as np

from training.hier.bags import UserBags
from training.hier.clicks import Impressions
from training.hier.ragged import IntArray, Ragged

ROUNDS = 8
"""Times that draws which hit a clicked item are drawn anew."""


def items_of_domains(rows: Impressions, *, num_domains: int) -> Ragged:
    """Distinct items shown in each domain, as (D + 1) lists."""
    return Ragged.grouped(rows.domain, rows.item, num_lists=num_domains + 1)


def draw_negatives(
    rng: np.random.Generator, users: IntArray, pool: IntArray, bags: UserBags, *, count: int
) -> IntArray:
    """(B, count) items of a pool, uniform among those that the user did not click.

    Args:
        rng: Of the draws.
        users: (B,) slots, -1 for unknown users.
        pool: (n,) items of the domain.
        bags: Who clicked what.
        count: Draws for each user, with replacement.
    """
    drawn = pool[rng.integers(0, len(pool), (len(users), count))]
    owners = np.repeat(users, count)
    for _ in range(ROUNDS):
        again = bags.clicked(owners, drawn.reshape(-1)).reshape(drawn.shape)
        if not again.any():
            break
        drawn[again] = pool[rng.integers(0, len(pool), int(again.sum()))]
    return drawn
