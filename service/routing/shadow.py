"""A bundle that scores answered requests beside the one that serves, to be compared with it.

Runs after the reply, one run at a time, on a thread of its own for graphs. Invariants: what waits is
bounded in number and time; every request taken is counted once; nothing here raises into, waits for
or changes a reply.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.errors import DeadlineExceeded
from service.scoring.admission import Deadline
from service.scoring.query import Query
from service.scoring.scorer import Scorer
from service.telemetry.log import get_logger
from service.telemetry.metrics import RoutingMetrics

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Run:
    """One that waits: a request, the (N,) float32 scores it was answered with, and the arm's label."""

    query: Query
    served: NDArray[np.float32]
    arm: str
    deadline: Deadline


class Shadow:
    """The shadow of one experiment.

    Args:
        scorer: Of the shadow's bundle, on a runner of its own.
        share: Of the requests offered that are taken.
        budget_ms: Time of a run from the reply on.
        max_waiting: Runs that may wait.
        metrics: Count what became of each.
    """

    def __init__(
        self, scorer: Scorer, *, share: float, budget_ms: int, max_waiting: int, metrics: RoutingMetrics
    ) -> None:
        self.scorer = scorer
        self._share = share
        self._budget_ms = budget_ms
        self._max_waiting = max_waiting
        self._metrics = metrics
        self._waiting: deque[_Run] = deque()
        self._task: asyncio.Task[None] | None = None
        self._told: set[str] = set()

    def offer(self, query: Query, served: NDArray[np.float32], arm: str, *, busy: bool) -> None:
        """Take an answered request, or leave it; returns at once.

        Args:
            query: As scored.
            served: (N,) float32 scores of the reply.
            arm: Label of the arm that answered.
            busy: Whether the process has better things to do.
        """
        if random.random() >= self._share:  # noqa: S311 - sampling
            return
        if busy or len(self._waiting) >= self._max_waiting:
            self._metrics.shadowed(arm, "dropped")
            return
        self._waiting.append(_Run(query, served, arm, Deadline(self._budget_ms)))
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._work())

    async def drained(self) -> None:
        """Return once nothing waits or runs."""
        if self._task is not None:
            await self._task

    def close(self) -> None:
        """Drop what waits and what runs."""
        while self._waiting:
            self._metrics.shadowed(self._waiting.popleft().arm, "dropped")
        if self._task is not None:
            self._task.cancel()

    async def _work(self) -> None:
        while self._waiting:
            run = self._waiting.popleft()
            try:
                run.deadline.check("shadow")
                scored = await self.scorer.score(run.query, run.deadline)
            except DeadlineExceeded:
                self._metrics.shadowed(run.arm, "late")
            except asyncio.CancelledError:
                self._metrics.shadowed(run.arm, "dropped")
                raise
            except Exception as error:  # noqa: BLE001 - whatever fails here fails nobody's request
                self._failed(run, error)
            else:
                difference = float(np.abs(scored.scores - run.served).mean())
                self._metrics.shadowed(run.arm, "scored", difference)

    def _failed(self, run: _Run, error: Exception) -> None:
        """Count a failure; each kind is logged once, since all requests may share it."""
        self._metrics.shadowed(run.arm, "failed")
        kind = type(error).__name__
        if kind not in self._told:
            self._told.add(kind)
            log.warning("shadow_failed", arm=run.arm, bundle=self.scorer.loaded.version, exc_info=error)


__all__ = ["Shadow"]
