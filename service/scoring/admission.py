"""Who gets in, and until when: a bound on requests in flight, and one deadline per request.

Nothing here waits. Invariant: every slot taken is given back exactly once, whatever happens inside.
"""

from __future__ import annotations

import time
from types import TracebackType

from service.errors import DeadlineExceeded, Overloaded

RETRY_AFTER_S = 1


class Deadline:
    """A point on the monotonic clock, made once per request and handed down.

    Attributes:
        started_s: When the request arrived, `time.perf_counter` seconds.
        budget_ms: Its whole time.
    """

    __slots__ = ("_ends_s", "budget_ms", "started_s")

    def __init__(self, budget_ms: int) -> None:
        self.budget_ms = budget_ms
        self.started_s = time.perf_counter()
        self._ends_s = self.started_s + budget_ms / 1000

    def remaining_s(self) -> float:
        """Seconds left; negative when it has passed."""
        return self._ends_s - time.perf_counter()

    def check(self, stage: str) -> None:
        """Refuse to start work that nobody waits for any more.

        Raises:
            DeadlineExceeded: The time is up; the message names the stage not started.
        """
        if time.perf_counter() >= self._ends_s:
            raise self.exceeded(stage)

    def exceeded(self, stage: str) -> DeadlineExceeded:
        """The error for running out of time before or within a stage."""
        return DeadlineExceeded(
            f"the deadline of {self.budget_ms} ms passed at stage '{stage}'", limit=self.budget_ms
        )


class Admission:
    """Counts requests in flight; use `with admission:` around each."""

    def __init__(self, max_inflight: int) -> None:
        self.max_inflight = max_inflight
        self.inflight = 0

    def __enter__(self) -> None:
        """Take a slot.

        Raises:
            Overloaded: All are taken.
        """
        if self.inflight >= self.max_inflight:
            raise Overloaded(
                f"{self.max_inflight} requests are in flight, the most this worker takes; retry after "
                f"{RETRY_AFTER_S} s",
                limit=self.max_inflight,
                retry_after_s=RETRY_AFTER_S,
            )
        self.inflight += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.inflight -= 1


__all__ = ["RETRY_AFTER_S", "Admission", "Deadline"]
