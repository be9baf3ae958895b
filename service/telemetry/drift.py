"""How far a domain's mean score has moved from the mean that its manifest gives, over a sliding window.

Every process keeps, for each domain, candidates, scores and expected scores of the last minutes in slots; a
scrape adds up those of all processes that are young enough. Expected scores are the manifest's mean of
whichever bundle answered, so that arms and reloads are held to their own. Invariant: scrapes of one instant
see the same window in every process, since minutes are of the clock.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

PERIOD_S = 60
NUM_PERIODS = 10
FIELDS = 4
"""Number of the period, candidates, sum of scores, sum of expected scores."""
NUM_SLOTS = NUM_PERIODS * FIELDS


class ScoreWindow:
    """Sums of one domain's last periods.

    Args:
        slots: (NUM_SLOTS,) float64.
    """

    __slots__ = ("_slots",)

    def __init__(self, slots: memoryview[float]) -> None:
        self._slots = slots

    def add(self, num_items: int, score_sum: float, expected_sum: float) -> None:
        """Take in one request."""
        period = int(time.time() // PERIOD_S)
        slots = self._slots
        first = period % NUM_PERIODS * FIELDS
        if slots[first] != period:
            slots[first + 1] = slots[first + 2] = slots[first + 3] = 0.0
            slots[first] = period
        slots[first + 1] += num_items
        slots[first + 2] += score_sum
        slots[first + 3] += expected_sum


def window_sums(parts: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Candidates, scores and expected scores of the window, over processes of (NUM_SLOTS,) float64."""
    oldest = time.time() // PERIOD_S - NUM_PERIODS + 1
    sums = [0.0, 0.0, 0.0]
    for slots in parts:
        for first in range(0, NUM_SLOTS, FIELDS):
            if slots[first] >= oldest:
                for field in range(FIELDS - 1):
                    sums[field] += slots[first + 1 + field]
    return sums[0], sums[1], sums[2]


def mean_score_ratio(parts: Sequence[Sequence[float]]) -> float | None:
    """Scores over expected scores; none while nothing is expected."""
    _, scores, expected = window_sums(parts)
    return scores / expected if expected > 0 else None


def window_candidates(parts: Sequence[Sequence[float]]) -> float | None:
    """Candidates in the window."""
    return window_sums(parts)[0]


__all__ = ["NUM_PERIODS", "NUM_SLOTS", "PERIOD_S", "ScoreWindow", "mean_score_ratio", "window_candidates"]
