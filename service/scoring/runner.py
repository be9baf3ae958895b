"""Where a graph run takes place: on the event loop when it is short, in a small pool when it is long.

A thread hop costs 70-180 us on two cores, so runs expected to be shorter than
`inline_max_ms` stay on the loop, one per loop iteration: between two runs the loop reads sockets, so
health checks are answered and overload is refused while requests wait. Invariants: waiting ends at
the request's deadline at the latest; a native run is never cancelled, only no longer waited for.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from service.scoring.admission import Deadline
from service.scoring.predictor import GraphRows, Predictor


class Turnstile:
    """Lets one waiter through per iteration of the event loop, in order of arrival."""

    def __init__(self) -> None:
        self._taken = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def pass_through(self) -> None:
        """Return at once when nobody ran in this iteration, else in one of the next."""
        loop = asyncio.get_running_loop()
        if not self._taken:
            self._taken = True
            loop.call_soon(self._advance, loop)
            return
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _advance(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                loop.call_soon(self._advance, loop)
                return
        self._taken = False


class Runner:
    """Runs graphs for one process.

    Args:
        inline_max_ms: Runs expected to take longer go to the pool.
        num_threads: Size of the pool.
    """

    def __init__(self, *, inline_max_ms: float, num_threads: int) -> None:
        self._inline_max_ms = inline_max_ms
        self._turnstile = Turnstile()
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="graph")

    async def run(self, predictor: Predictor, rows: GraphRows, deadline: Deadline) -> NDArray[np.float32]:
        """Scores, (N,) float32, of N candidates.

        Raises:
            DeadlineExceeded: The deadline passed before the run began or, in the pool, before it ended.
            GraphRunError: The graph failed.
        """
        if predictor.clock.expected_ms(len(rows.item)) <= self._inline_max_ms:
            await self._turnstile.pass_through()
            deadline.check("infer")
            return self._timed(predictor, rows)
        deadline.check("infer")
        loop = asyncio.get_running_loop()
        run = loop.run_in_executor(self._pool, self._unless_late, predictor, rows, deadline)
        done, _ = await asyncio.wait((run,), timeout=deadline.remaining_s())
        if not done:
            run.add_done_callback(_forget)
            raise deadline.exceeded("infer")
        return run.result()

    def close(self) -> None:
        """Stop the pool; runs that have not begun are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _unless_late(self, predictor: Predictor, rows: GraphRows, deadline: Deadline) -> NDArray[np.float32]:
        deadline.check("infer")
        return self._timed(predictor, rows)

    def _timed(self, predictor: Predictor, rows: GraphRows) -> NDArray[np.float32]:
        begun = time.perf_counter()
        scores = predictor.score(rows)
        predictor.clock.record(len(rows.item), (time.perf_counter() - begun) * 1000)
        return scores


def _forget(run: asyncio.Future[NDArray[np.float32]]) -> None:
    """Take note of a late run's outcome, so that asyncio does not report it as lost."""
    if not run.cancelled():
        run.exception()


__all__ = ["Runner", "Turnstile"]
