"""What the service writes down: exposures (buffered, may be dropped) and feedback (acknowledged, never lost).

Both turn structs into lines and hand them to a `Sink`, in a thread, one call at a time. An exposure is
offered to a bounded queue and written within `flush_s`; what does not fit or cannot be written is dropped
and counted, and the request it belongs to is answered all the same. Feedback is answered only after its line
is on disk; requests that wait for the disk together share one write and one sync. Invariant: `append` of
the feedback log returns only for lines that a crash cannot take back.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Sequence
from typing import Protocol

import msgspec

from service.errors import FeedbackUnavailable, Overloaded
from service.telemetry.log import get_logger
from service.telemetry.metrics import EventMetrics

ENCODED_AT_ONCE = 8
"""Records encoded before the event loop gets its turn: some tenths of a millisecond."""
WRITTEN_AT_ONCE = 512
TICK_S = 1.0
"""How often an idle feedback log looks whether its segment is due."""
CLOSE_TIMEOUT_S = 10.0
MAX_PENDING_BYTES = 8 << 20
"""Feedback that waits for the disk, above which more is refused."""

log = get_logger(__name__)


class Sink(Protocol):
    """Where lines go: files, or a message log. Blocks; called from a thread, one call at a time."""

    def append(self, lines: Sequence[bytes]) -> None:
        """Keep lines for good; without lines, do what time makes due.

        Raises:
            OSError: None of them is kept.
        """

    def close(self) -> None:
        """Finish what is open.

        Raises:
            OSError: It could not be finished.
        """


class ExposureLog:
    """A bounded queue of records on their way to a sink.

    Args:
        sink: Where they go.
        metrics: Counts them.
        sample_ratio: Share of requests that are recorded.
        max_queue: Records that may wait.
        flush_s: Longest wait of a record.
    """

    def __init__(
        self, sink: Sink, metrics: EventMetrics, *, sample_ratio: float, max_queue: int, flush_s: float
    ) -> None:
        self._sink = sink
        self._metrics = metrics
        self._sample_ratio = sample_ratio
        self._max_queue = max_queue
        self._flush_s = flush_s
        self._queue: deque[msgspec.Struct] = deque()
        self._wake = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self._failing = False
        self._encode = msgspec.json.Encoder().encode

    def sampled(self) -> bool:
        """Whether to record the request at hand."""
        return self._sample_ratio >= 1 or random.random() < self._sample_ratio  # noqa: S311 - sampling

    def offer(self, record: msgspec.Struct) -> None:
        """Take a record, or drop it when too many wait; never blocks."""
        waiting = len(self._queue)
        if waiting >= self._max_queue:
            self._metrics.exposures("queue_full", 1)
            return
        self._queue.append(record)
        if 2 * waiting >= self._max_queue:
            self._wake.set()

    def start(self) -> None:
        """Begin to write; needs a running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Write what waits, and close the sink."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await _finish("exposures", self._task, self._sink)

    async def _run(self) -> None:
        while not self._closing:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._flush_s)
            self._wake.clear()
            await self._flush()
        await self._flush()

    async def _flush(self) -> None:
        """Write all that waits; without anything, let the sink do what is due."""
        while True:
            lines: list[bytes] = []
            while self._queue and len(lines) < WRITTEN_AT_ONCE:
                few = range(min(ENCODED_AT_ONCE, len(self._queue)))
                lines += [self._encode(self._queue.popleft()) + b"\n" for _ in few]
                await asyncio.sleep(0)
            await self._write(lines)
            if not self._queue:
                return

    async def _write(self, lines: list[bytes]) -> None:
        try:
            await asyncio.to_thread(self._sink.append, lines)
        except OSError as error:
            self._metrics.exposures("write_failed", len(lines))
            if not self._failing:
                complain("exposures_not_written", error)
            self._failing = True
            return
        self._metrics.exposures("written", len(lines))
        if self._failing and lines:
            log.info("exposures_written_again")
            self._failing = False


class FeedbackLog:
    """Lines that are acknowledged once they are on disk.

    Args:
        sink: Where they go.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._waiting_bytes = 0
        self._wake = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self._failing = False

    def start(self) -> None:
        """Begin to write; needs a running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def append(self, line: bytes) -> None:
        """Keep a line, with its newline, for good.

        Raises:
            FeedbackUnavailable: It could not be written, or the log is closed.
            Overloaded: Too much waits for the disk.
        """
        if self._closing or self._task is None:
            raise FeedbackUnavailable("feedback is not taken any more here", retry_after_s=1)
        if self._waiting_bytes + len(line) > MAX_PENDING_BYTES:
            raise Overloaded(
                f"more than {MAX_PENDING_BYTES} bytes of feedback wait for the disk",
                limit=MAX_PENDING_BYTES,
                retry_after_s=1,
            )
        kept: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((line, kept))
        self._waiting_bytes += len(line)
        self._wake.set()
        await kept

    async def close(self) -> None:
        """Write what waits, and close the sink."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await _finish("feedback", self._task, self._sink)

    async def _run(self) -> None:
        while not self._closing or self._waiting:
            if not self._waiting:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), TICK_S)
            self._wake.clear()
            batch, self._waiting, self._waiting_bytes = self._waiting, [], 0
            error = await self._write([line for line, _ in batch])
            for _, kept in batch:
                if kept.done():  # its caller left or ran out of time
                    continue
                if error is None:
                    kept.set_result(None)
                else:
                    kept.set_exception(error)

    async def _write(self, lines: list[bytes]) -> FeedbackUnavailable | None:
        try:
            await asyncio.to_thread(self._sink.append, lines)
        except OSError as error:
            if not self._failing:
                complain("feedback_not_written", error)
            self._failing = True
            return FeedbackUnavailable("feedback could not be written; send it again", retry_after_s=1)
        if self._failing and lines:
            log.info("feedback_written_again")
            self._failing = False
        return None


async def _finish(what: str, task: asyncio.Task[None], sink: Sink) -> None:
    """Wait for the last write and close the sink, within bounds: a hung disk must not stop the drain."""
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await task
            await asyncio.to_thread(sink.close)
    except OSError as error:  # a timeout is one, too
        complain(f"{what}_not_closed", error)


def complain(event: str, error: OSError) -> None:
    """Log what a disk did; a traceback would add nothing."""
    log.error(event, error=str(error) or type(error).__name__)


__all__ = ["ExposureLog", "FeedbackLog", "Sink", "complain"]
