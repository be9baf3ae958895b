"""How long a graph's runs take, by number of rows: a moving average kept with each graph.

Seeded by warm-up runs when a bundle is loaded, so that the first request is already placed well.
"""

from __future__ import annotations

EWMA_WEIGHT = 0.2
MAX_JUMP = 4.0  # one preempted run must not send the next ten to the pool


class RunClock:
    """Expected run time per row-count class (powers of two), ms."""

    def __init__(self) -> None:
        self._mean_ms: dict[int, float] = {}

    def expected_ms(self, num_rows: int) -> float:
        """Expected time of a run.

        A class not measured yet takes the largest measured smaller class, scaled by rows; 0 when
        there is none.
        """
        size = num_rows.bit_length()
        mean = self._mean_ms.get(size)
        if mean is not None:
            return mean
        smaller = max((s for s in self._mean_ms if s < size), default=None)
        return 0.0 if smaller is None else self._mean_ms[smaller] * 2.0 ** (size - smaller)

    def record(self, num_rows: int, run_ms: float) -> None:
        """Take a measured run into the average."""
        size = num_rows.bit_length()
        mean = self._mean_ms.get(size)
        if mean is None:
            self._mean_ms[size] = run_ms
        else:
            self._mean_ms[size] = mean + EWMA_WEIGHT * (min(run_ms, MAX_JUMP * mean) - mean)


__all__ = ["RunClock"]
