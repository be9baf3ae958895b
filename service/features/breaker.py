"""Circuit breaker: stop asking a store that fails, and try it again one call at a time.

Closed: calls pass, and the outcomes of the last `window` are remembered. Open: calls are refused for
`open_s`. Half open: one call is the trial, others are refused until its outcome is known. Pure and
synchronous; time is handed in. Invariant: in `open_s` of failing, at most one call gets through.
"""

from __future__ import annotations

from collections import deque
from enum import StrEnum


class BreakerState(StrEnum):
    """Where a breaker stands."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """One breaker.

    Args:
        failures: Failures among the remembered calls that open it.
        window: Calls remembered.
        open_s: Time before a trial.
    """

    def __init__(self, *, failures: int, window: int, open_s: float) -> None:
        self._limit = failures
        self._open_s = open_s
        self._failed: deque[bool] = deque(maxlen=window)
        self._num_failed = 0
        self._until_s = 0.0
        self.state = BreakerState.CLOSED

    def allow(self, now_s: float) -> bool:
        """Whether a call may be made now; after yes, `record` must be told how it ended."""
        if self.state is BreakerState.CLOSED:
            return True
        if self.state is BreakerState.OPEN and now_s >= self._until_s:
            self.state = BreakerState.HALF_OPEN
            return True
        return False

    def record(self, now_s: float, *, failed: bool) -> None:
        """Take note of how an allowed call ended; late news of earlier calls are ignored unless closed."""
        if self.state is BreakerState.CLOSED:
            if len(self._failed) == self._failed.maxlen:
                self._num_failed -= self._failed[0]
            self._failed.append(failed)
            self._num_failed += failed
            if self._num_failed >= self._limit:
                self._open(now_s)
        elif self.state is BreakerState.HALF_OPEN:
            if failed:
                self._open(now_s)
            else:
                self.state = BreakerState.CLOSED

    def _open(self, now_s: float) -> None:
        self.state = BreakerState.OPEN
        self._until_s = now_s + self._open_s
        self._failed.clear()
        self._num_failed = 0


__all__ = ["Breaker", "BreakerState"]
