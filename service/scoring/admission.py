"""Who gets in, and until when: bounds on requests in flight and on their wait, one deadline per request.

Nothing here waits. Invariants: every slot taken is given back exactly once, whatever happens inside; work
whose time is up, or whose caller has left, does not begin.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from types import TracebackType

from service.errors import DeadlineExceeded, Overloaded

RETRY_AFTER_S = 1
QUEUE_RATIO = 0.5
"""Share of the deadline that a request may have to wait for others; the rest is for its own work, and for
how far off expected times are."""
MEAN_WEIGHT = 0.1


class CallerGone(Exception):  # noqa: N818 - an event of the connection, not a failure
    """The caller left before there was an answer."""


class Deadline:
    """A point on the monotonic clock, made once per request and handed down.

    Args:
        budget_ms: The request's whole time.
        gone: Tells whether its caller has left; cheap, called before work begins.

    Attributes:
        started_s: When the request arrived, `time.perf_counter` seconds.
        budget_ms: As given.
    """

    __slots__ = ("_ends_s", "_gone", "budget_ms", "started_s")

    def __init__(self, budget_ms: int, gone: Callable[[], bool] | None = None) -> None:
        self.budget_ms = budget_ms
        self.started_s = time.perf_counter()
        self._ends_s = self.started_s + budget_ms / 1000
        self._gone = gone

    def shorten(self, budget_ms: int) -> None:
        """Take a shorter budget, counted from the arrival; a longer one changes nothing."""
        if budget_ms < self.budget_ms:
            self.budget_ms = budget_ms
            self._ends_s = self.started_s + budget_ms / 1000

    def watch(self, gone: Callable[[], bool]) -> None:
        """Ask from now on whether the caller has left."""
        self._gone = gone

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

    def check_caller(self) -> None:
        """Refuse to start work whose caller has left.

        Raises:
            CallerGone: That is so.
        """
        if self._gone is not None and self._gone():
            raise CallerGone

    def exceeded(self, stage: str) -> DeadlineExceeded:
        """The error for running out of time before or within a stage."""
        return DeadlineExceeded(
            f"the deadline of {self.budget_ms} ms passed at stage '{stage}'", limit=self.budget_ms
        )


class Backlog:
    """Graph runs that were asked for and are not done, by the time they are expected to take.

    Attributes:
        num_runs: How many.
        ms: Expected time until all are done.
        mean_ms: Moving average of a run's time, for requests that are not that far yet.
    """

    __slots__ = ("mean_ms", "ms", "num_runs")

    def __init__(self) -> None:
        self.num_runs = 0
        self.ms = 0.0
        self.mean_ms = 0.0

    def add(self, expected_ms: float) -> None:
        """Count a run; `done` takes the same number back."""
        self.num_runs += 1
        self.ms += expected_ms

    def done(self, expected_ms: float) -> None:
        """Take back a run that ended, or that will not begin."""
        self.num_runs -= 1
        self.ms = self.ms - expected_ms if self.num_runs else 0.0

    def took(self, run_ms: float) -> None:
        """Take a measured run into the average."""
        self.mean_ms += MEAN_WEIGHT * (run_ms - self.mean_ms)

    def require_time(self, expected_ms: float, deadline: Deadline) -> None:
        """Refuse a run that would not be done in time, rather than let it wait for its deadline.

        With nothing before it a run always begins: its expected time may be wrong.

        Raises:
            Overloaded: The runs before it and its own are expected to take longer than there is time.
        """
        remaining_ms = deadline.remaining_s() * 1000
        if self.num_runs and self.ms + expected_ms > remaining_ms > 0:
            raise _overloaded(
                f"{self.num_runs} runs are before this one, which together are expected to take "
                f"{self.ms + expected_ms:.0f} ms; it has {remaining_ms:.0f} ms",
                self.ms,
                limit=round(remaining_ms, 3),
            )


class Admission:
    """Counts requests in flight; use `with admission:` around each.

    Args:
        max_inflight: Most requests at a time.
        backlog: Of the graph runs that these requests wait for.
        max_wait_ms: Longest time a new request may have to wait for others.
    """

    def __init__(
        self, max_inflight: int, *, backlog: Backlog | None = None, max_wait_ms: float = math.inf
    ) -> None:
        self.max_inflight = max_inflight
        self.inflight = 0
        self._backlog = Backlog() if backlog is None else backlog
        self._max_wait_ms = max_wait_ms

    def expected_wait_ms(self) -> float:
        """Time until what is in flight now is expected to be done."""
        backlog = self._backlog
        return backlog.ms + max(self.inflight - backlog.num_runs, 0) * backlog.mean_ms

    def __enter__(self) -> None:
        """Take a slot.

        Raises:
            Overloaded: All are taken, or those that are will take too long.
        """
        if self.inflight >= self.max_inflight:
            raise _overloaded(
                f"{self.max_inflight} requests are in flight, the most this worker takes",
                self.expected_wait_ms(),
                limit=self.max_inflight,
            )
        if self.inflight and (wait_ms := self.expected_wait_ms()) > self._max_wait_ms:
            raise _overloaded(
                f"{self.inflight} requests are in flight and expected to take {wait_ms:.0f} ms; a new one "
                f"may have to wait {self._max_wait_ms:.0f} ms",
                wait_ms,
                limit=self._max_wait_ms,
            )
        self.inflight += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.inflight -= 1


def _overloaded(reason: str, wait_ms: float, *, limit: float) -> Overloaded:
    """The refusal, to be tried again once those before it are expected to be done."""
    after_s = max(RETRY_AFTER_S, math.ceil(wait_ms / 1000))
    return Overloaded(f"{reason}; retry after {after_s} s", limit=limit, retry_after_s=after_s)


__all__ = ["QUEUE_RATIO", "RETRY_AFTER_S", "Admission", "Backlog", "CallerGone", "Deadline"]
