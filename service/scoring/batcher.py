"""Several requests in one graph run: takes what is queued for a graph, never waits for more.

Requests that reach the batcher in one iteration of the event loop are run in the next, those of one graph
together, up to a number of rows. That pays where a run costs much beside its rows (one candidate on a large
model), and only there. Invariants: one run per iteration; a request gets the scores of its own rows, and
only its own error; work whose time is up or whose caller has left is not run.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.errors import GraphRunError
from service.scoring.admission import Deadline
from service.scoring.predictor import GraphRows, Predictor

Scores = NDArray[np.float32]
Run = Callable[[Predictor, Sequence[GraphRows]], Scores]


class Waiting(NamedTuple):
    """A request that waits for its turn."""

    rows: GraphRows
    deadline: Deadline
    scores: asyncio.Future[Scores]


class Batcher:
    """Queues per graph, and a turn for each of them in the order of their oldest request.

    Args:
        max_rows: Most candidates in one run; a request that has more runs alone.
        max_run_ms: Longest expected time of a run of several requests.
        run: Runs a graph on the rows of one or several requests.
    """

    def __init__(self, *, max_rows: int, max_run_ms: float, run: Run) -> None:
        self._max_rows = max_rows
        self._max_run_ms = max_run_ms
        self._run = run
        self._queues: OrderedDict[Predictor, deque[Waiting]] = OrderedDict()
        self._has_turn = False

    async def run(self, predictor: Predictor, rows: GraphRows, deadline: Deadline) -> Scores:
        """Scores, (N,) float32, of one request's N candidates.

        Raises:
            DeadlineExceeded: The deadline passed before the run.
            CallerGone: The caller left before the run.
            GraphRunError: The graph failed on these rows.
        """
        loop = asyncio.get_running_loop()
        waiting = Waiting(rows, deadline, loop.create_future())
        self._queues.setdefault(predictor, deque()).append(waiting)
        if not self._has_turn:
            self._has_turn = True
            loop.call_soon(self._turn, loop)
        return await waiting.scores

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run one batch; come back in the next iteration while anything waits."""
        batch: list[Waiting] = []
        while self._queues and not batch:
            predictor, queue = self._queues.popitem(last=False)
            batch = self._take(predictor, queue)
            if queue:
                self._queues[predictor] = queue  # behind the other graphs
        self._has_turn = bool(self._queues)
        if self._has_turn:
            loop.call_soon(self._turn, loop)
        if batch:
            self._answer(predictor, batch)

    def _take(self, predictor: Predictor, queue: deque[Waiting]) -> list[Waiting]:
        """Requests from the front that fit into one run and are still wanted.

        A run of several is expected to take no longer than they would one by one: a figure for its size that
        a single slow run left behind must not keep it from being measured again.
        """
        batch: list[Waiting] = []
        num_rows, alone_ms = 0, 0.0
        while queue:
            own = len(queue[0].rows.item)
            own_ms = predictor.clock.expected_ms(own)
            total = num_rows + own
            run_ms = min(predictor.clock.expected_ms(total), alone_ms + own_ms)
            if batch and (total > self._max_rows or run_ms > self._max_run_ms):
                break
            waiting = queue.popleft()
            if _is_wanted(waiting):
                batch.append(waiting)
                num_rows, alone_ms = total, alone_ms + own_ms
        return batch

    def _answer(self, predictor: Predictor, batch: Sequence[Waiting]) -> None:
        try:
            scores = self._run(predictor, [waiting.rows for waiting in batch])
        except GraphRunError as error:
            if len(batch) == 1:
                batch[0].scores.set_exception(error)
                return
            for waiting in batch:  # one of them is to blame: each for itself
                if _is_wanted(waiting):
                    self._answer(predictor, [waiting])
        except Exception as error:  # noqa: BLE001 - whoever waits has to hear of it
            for waiting in batch:
                waiting.scores.set_exception(error)
        else:
            start = 0
            for waiting in batch:
                stop = start + len(waiting.rows.item)
                waiting.scores.set_result(scores[start:stop])
                start = stop


def joined(predictor: Predictor, requests: Sequence[GraphRows]) -> dict[str, NDArray[Any]]:
    """Inputs by name of one run over several requests, one after the other.

    Args:
        predictor: Of the graph.
        requests: Rows of each; one may itself hold several requests.
    """
    if len(requests) == 1:
        return predictor.inputs(requests[0])
    parts = [predictor.inputs(rows) for rows in requests]
    inputs: dict[str, NDArray[Any]] = {}
    for entry in predictor.graph.inputs:
        values = [part[entry.name] for part in parts]
        if entry.source == "request_index":
            first = 0
            for place, rows in enumerate(requests):
                values[place] = values[place] + first
                first += len(rows.domain)
        inputs[entry.name] = np.concatenate(values)
    return inputs


def _is_wanted(waiting: Waiting) -> bool:
    """Whether somebody still waits for it in time; who does not is told so."""
    if waiting.scores.done():
        return False
    try:
        waiting.deadline.check("infer")
        waiting.deadline.check_caller()
    except Exception as error:  # noqa: BLE001 - told to the one who waits
        waiting.scores.set_exception(error)
        return False
    return True


__all__ = ["Batcher", "joined"]
