"""One Redis server as the request path sees it: a few shared connections behind a circuit breaker.

`call` never raises and never waits: its callback comes later, or at once when the breaker is open.
A call that takes longer than `timeout_s` counts as failed, yet stays on its connection until the
reply comes. Invariant: every call's callback runs exactly once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import hiredis

from service.features.breaker import Breaker, BreakerState
from service.features.connection import Address, Connection, OnReplies, Replies
from service.features.errors import StoreLostError
from service.telemetry.log import get_logger
from service.telemetry.metrics import FeatureMetrics

MAX_PENDING = 512  # calls without a reply on one connection; beyond, the server is not keeping up
MAX_SILENCE_S = 5.0  # then the connection is given up, whatever it may still say

log = get_logger(__name__)


@dataclass(frozen=True)
class NodeOptions:
    """How to treat every server.

    Attributes:
        timeout_s: After which a call has failed.
        connect_timeout_s: After which connecting has failed.
        num_connections: Per server.
        breaker_failures: Failures among `breaker_window` calls that open the breaker.
        breaker_window: Calls remembered.
        breaker_open_s: Time between opening and the next trial.
    """

    timeout_s: float = 0.05
    connect_timeout_s: float = 0.5
    num_connections: int = 2
    breaker_failures: int = 5
    breaker_window: int = 20
    breaker_open_s: float = 1.0


class _Call:
    """A call on its way."""

    __slots__ = ("_begun_s", "_node", "_timer", "done", "late", "num_replies", "packed")

    def __init__(self, node: Node, packed: bytes, num_replies: int, done: OnReplies) -> None:
        self._node = node
        self.packed = packed
        self.num_replies = num_replies
        self.done: OnReplies | None = done
        self.late = False
        self._begun_s = node.loop.time()
        self._timer = node.loop.call_later(node.options.timeout_s, self._be_late)

    def finish(self, replies: Replies | None) -> bool:
        """Take the outcome; says whether the replies can be this call's."""
        done, self.done = self.done, None
        self._timer.cancel()
        if done is None:
            return True
        fits = done(replies)
        if not self.late:
            self._node.ended(self._begun_s, replies if fits else None)
        return fits

    def fail(self, cause: str) -> None:
        """End a call that was not sent."""
        if self.done is not None and not self.late:
            self.late = True
            self._node.failed(cause)
        self.finish(None)

    def _be_late(self) -> None:
        self.late = True
        self._node.failed("timeout")


class Node:
    """One server.

    Args:
        address: Where it is.
        options: How to treat it.
        metrics: Counts failures by cause.
    """

    def __init__(self, address: Address, options: NodeOptions, metrics: FeatureMetrics) -> None:
        self.address = address
        self.options = options
        self._metrics = metrics
        self._breaker = Breaker(
            failures=options.breaker_failures, window=options.breaker_window, open_s=options.breaker_open_s
        )
        self._connections: list[Connection | None] = [None] * options.num_connections
        self._connecting: dict[int, list[_Call]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    @cached_property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop of the first call; a node may be made before there is one."""
        return asyncio.get_running_loop()

    def call(self, packed: bytes, num_replies: int, done: OnReplies) -> None:
        """Send; `done` gets the replies, or None on failure."""
        if self._closed or not self._breaker.allow(self.loop.time()):
            self._metrics.failed("breaker_open")
            done(None)
            return
        call = _Call(self, packed, num_replies, done)
        place = self._place()
        connection = self._connections[place]
        if connection is not None and not connection.closed:
            if connection.num_pending >= MAX_PENDING:
                call.fail("backlog")
            else:
                connection.send(packed, num_replies, call.finish)
            return
        waiting = self._connecting.get(place)
        if waiting is not None:
            waiting.append(call)
            return
        self._connecting[place] = [call]
        self._spawn(self._connect(place))

    async def warm(self) -> bool:
        """Connect before the first request needs it; False when that fails."""
        answer: asyncio.Future[bool] = self.loop.create_future()

        def done(replies: Replies | None) -> bool:
            if not answer.done():
                answer.set_result(replies is not None)
            return True

        self.call(b"*1\r\n$4\r\nPING\r\n", 1, done)
        return await answer

    def close(self) -> None:
        """Close connections; what is on its way fails."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        for calls in self._connecting.values():
            for call in calls:
                call.fail("closed")
        self._connecting.clear()
        for connection in self._connections:
            if connection is not None:
                connection.close()

    def ended(self, begun_s: float, replies: Replies | None) -> None:
        """Take note of a call that ended in time."""
        now = self.loop.time()
        if replies is None:
            self.failed("connection")
        elif any(isinstance(reply, hiredis.ReplyError) and not is_redirect(reply) for reply in replies):
            self.failed("reply")
        else:
            self._record(failed=False)
            self._metrics.took(now - begun_s)

    def failed(self, cause: str) -> None:
        """Take note of a call that failed."""
        self._metrics.failed(cause)
        self._record(failed=True)

    def _record(self, *, failed: bool) -> None:
        was_closed = self._breaker.state is BreakerState.CLOSED
        self._breaker.record(self.loop.time(), failed=failed)
        is_closed = self._breaker.state is BreakerState.CLOSED
        if was_closed and not is_closed:
            self._metrics.open_breakers.inc()
            log.warning("feature_store_breaker_opened", server=self.address.name)
        elif is_closed and not was_closed:
            self._metrics.open_breakers.dec()
            log.info("feature_store_breaker_closed", server=self.address.name)

    def _place(self) -> int:
        """Which connection: the first, so that writes are shared, unless it has stopped answering."""
        limit = self.options.timeout_s
        best, least = 0, float("inf")
        for place, connection in enumerate(self._connections):
            if connection is None or connection.closed:
                silent = limit / 2
            else:
                silent = connection.silent_s()
                if silent > MAX_SILENCE_S:
                    log.warning("feature_store_silent", server=self.address.name, silent_s=round(silent, 1))
                    connection.close()
                    silent = limit / 2
                elif silent < limit / 4:
                    return place
            if silent < least:
                best, least = place, silent
        return best

    async def _connect(self, place: int) -> None:
        try:
            connection = await Connection.connect(self.address, timeout_s=self.options.connect_timeout_s)
        except StoreLostError as error:
            log.warning("feature_store_unreachable", server=self.address.name, error=str(error))
            for call in self._connecting.pop(place, []):
                call.fail("connect")
            return
        except ValueError as error:  # the address cannot be written on the wire
            log.error("feature_store_address_refused", server=self.address.name, error=str(error))  # noqa: TRY400
            for call in self._connecting.pop(place, []):
                call.fail("connect")
            return
        self._connections[place] = connection
        for call in self._connecting.pop(place, []):
            if call.late:  # nobody waits for it, and it was never sent
                call.finish(None)
            else:
                connection.send(call.packed, call.num_replies, call.finish)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def is_redirect(reply: Any) -> bool:
    """Whether a reply sends the question to another server of the cluster."""
    return isinstance(reply, hiredis.ReplyError) and str(reply).startswith(("MOVED ", "ASK "))


__all__ = ["MAX_SILENCE_S", "Node", "NodeOptions", "is_redirect"]
