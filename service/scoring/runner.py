"""Where a graph run takes place: on the event loop when it is short, in a small pool when it is long.

A thread hop costs 70-180 us on two cores, so runs expected to be shorter than
`inline_max_ms` stay on the loop, for a bounded time per loop iteration: between two iterations the loop
reads sockets, so health checks are answered and overload is refused while requests wait. Invariants: waiting
ends at the request's deadline at the latest; a native run is never cancelled, only no longer waited for; the
backlog counts every run from its request on until it is over.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from service.errors import DeadlineExceeded
from service.scoring.admission import Backlog, CallerGone, Deadline
from service.scoring.batcher import Batcher, joined
from service.scoring.predictor import GraphRows, Predictor

ITERATION_MS = 1.0
ITERATION_RUNS = 16
"""Bounds on the runs of one iteration of the event loop, which reads sockets between two iterations."""
CALLER_LOOK_S = 0.05
"""Time between looks whether the caller of a run in the pool is still there."""


class Turnstile:
    """Lets waiting runs through, in order of arrival, for a bounded time per iteration of the event loop.

    Args:
        max_ms: Expected time of the runs of one iteration; the first passes whatever it takes.
        max_runs: Most of them.
    """

    def __init__(self, *, max_ms: float = ITERATION_MS, max_runs: int = ITERATION_RUNS) -> None:
        self._max_ms = max_ms
        self._max_runs = max_runs
        self._num_runs = 0
        self._ms = 0.0
        self._waiting: deque[tuple[float, asyncio.Future[None]]] = deque()

    async def pass_through(self, expected_ms: float) -> bool:
        """Return at once when this iteration has time for it, else in one of the next; whether it waited."""
        if not self._num_runs:
            asyncio.get_running_loop().call_soon(self._advance)
        elif self._waiting or self._is_full(expected_ms):
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((expected_ms, turn))
            await turn
            return True
        self._num_runs += 1
        self._ms += expected_ms
        return False

    def _is_full(self, expected_ms: float) -> bool:
        return self._num_runs >= self._max_runs or self._ms + expected_ms > self._max_ms

    def _advance(self) -> None:
        self._num_runs = 0
        self._ms = 0.0
        while self._waiting:
            expected_ms, turn = self._waiting[0]
            if not turn.done():
                if self._num_runs and self._is_full(expected_ms):
                    break
                turn.set_result(None)
                self._num_runs += 1
                self._ms += expected_ms
            self._waiting.popleft()
        if self._num_runs:
            asyncio.get_running_loop().call_soon(self._advance)


class Runner:
    """Runs graphs for one process.

    Args:
        inline_max_ms: Runs expected to take longer go to the pool.
        num_threads: Size of the pool.
        batch_max_rows: Most candidates of several requests in one run on the loop; 0: requests run singly.

    Attributes:
        backlog: Of runs asked for and not done.
    """

    def __init__(self, *, inline_max_ms: float, num_threads: int, batch_max_rows: int = 0) -> None:
        self.backlog = Backlog()
        self._inline_max_ms = inline_max_ms
        self._num_threads = num_threads
        self._turnstile = Turnstile()
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="graph")
        self._batcher: Batcher | None = None
        if batch_max_rows:
            self._batcher = Batcher(max_rows=batch_max_rows, max_run_ms=inline_max_ms, run=self._timed_batch)

    async def run(self, predictor: Predictor, rows: GraphRows, deadline: Deadline) -> NDArray[np.float32]:
        """Scores, (N,) float32, of N candidates.

        Raises:
            Overloaded: The runs before it leave it no time.
            DeadlineExceeded: The deadline passed before the run began or, in the pool, before it ended.
            CallerGone: The caller left before the run began.
            GraphRunError: The graph failed.
        """
        run_ms = predictor.clock.expected_ms(len(rows.item))
        inline = run_ms <= self._inline_max_ms
        expected_ms = run_ms if inline else run_ms / self._num_threads
        backlog = self.backlog
        backlog.require_time(expected_ms, deadline)
        backlog.add(expected_ms)
        if not inline:
            return await self._in_pool(predictor, rows, deadline, expected_ms)
        try:
            if self._batcher is not None:
                return await self._batcher.run(predictor, rows, deadline)
            if await self._turnstile.pass_through(run_ms):
                deadline.check_caller()
            deadline.check("infer")
            return self._timed(predictor, rows)
        finally:
            backlog.done(expected_ms)

    def close(self) -> None:
        """Stop the pool; runs that have not begun are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    async def _in_pool(
        self, predictor: Predictor, rows: GraphRows, deadline: Deadline, expected_ms: float
    ) -> NDArray[np.float32]:
        """Wait for a run in the pool until the deadline; it leaves the backlog when it is over."""
        loop = asyncio.get_running_loop()
        try:
            deadline.check("infer")
            run = loop.run_in_executor(self._pool, self._unless_late, predictor, rows, deadline)
        except BaseException:
            self.backlog.done(expected_ms)
            raise
        run.add_done_callback(lambda _: self.backlog.done(expected_ms))
        try:
            while not run.done():
                deadline.check("infer")
                await asyncio.wait((run,), timeout=min(deadline.remaining_s(), CALLER_LOOK_S))
                if not run.done():
                    deadline.check_caller()
            return run.result()
        except DeadlineExceeded:
            run.add_done_callback(_forget)  # not begun, it ends by itself when its turn comes
            raise
        except CallerGone:
            run.cancel()  # helps when it has not begun
            raise

    def _unless_late(self, predictor: Predictor, rows: GraphRows, deadline: Deadline) -> NDArray[np.float32]:
        deadline.check("infer")
        return self._timed(predictor, rows)

    def _timed(self, predictor: Predictor, rows: GraphRows) -> NDArray[np.float32]:
        begun = time.perf_counter()
        scores = predictor.score(rows)
        self._record(predictor, len(rows.item), begun)
        return scores

    def _timed_batch(self, predictor: Predictor, requests: Sequence[GraphRows]) -> NDArray[np.float32]:
        begun = time.perf_counter()
        scores = predictor.run(joined(predictor, requests))
        self._record(predictor, len(scores), begun, num_requests=len(requests))
        return scores

    def _record(self, predictor: Predictor, num_rows: int, begun: float, *, num_requests: int = 1) -> None:
        took_ms = (time.perf_counter() - begun) * 1000
        predictor.clock.record(num_rows, took_ms)
        self.backlog.took(took_ms / num_requests)


def _forget(run: asyncio.Future[NDArray[np.float32]]) -> None:
    """Take note of a late run's outcome, so that asyncio does not report it as lost."""
    if not run.cancelled():
        run.exception()


__all__ = ["Runner", "Turnstile"]
