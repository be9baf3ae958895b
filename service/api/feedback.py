"""`POST /feedback`: what came of scored items, acknowledged once it is on disk.

Needs no bundle: it is taken while one loads and while the process drains. Invariant: 202 means that a crash
cannot take the outcomes back; any other answer means that the caller should send them again or give up, and
sending twice is harmless, as the join takes an item's clicks as one.
"""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from service.api.frame import Call
from service.api.respond import send_reply
from service.api.schemas import Id
from service.api.translate import Limits, decode_as
from service.contract.events import FeedbackRecord, Outcome
from service.errors import (
    InvalidRequest,
    NoItems,
    NotFound,
    ServiceError,
    TooLong,
    TooManyItems,
)
from service.events import EventLogs
from service.serving import Serving
from service.telemetry.exposure import FeedbackLog
from service.telemetry.log import get_logger

FEEDBACK_PATH = "/feedback"
MAX_AHEAD_MS = 5 * 60_000
MAX_AGE_MS = 90 * 86_400_000

log = get_logger(__name__)


class FeedbackItem(Struct, forbid_unknown_fields=True, frozen=True):
    """What came of one item of a scored request."""

    id: Id
    click: Annotated[Literal[0, 1], Meta(description="1 for a click, 0 for shown without one.")]
    value: Annotated[float | None, Meta(description="A number that goes with it, e.g. seconds watched.")] = (
        None
    )
    time_ms: Annotated[int | None, Meta(description="When it happened, ms since 1970 UTC; null: now.")] = None


class FeedbackRequest(Struct, forbid_unknown_fields=True, frozen=True):
    """Outcomes of one scored request; may be sent in several parts and more than once."""

    request_id: Annotated[str, Meta(description="The `request_id` of the reply of /score.")]
    items: Annotated[list[FeedbackItem], Meta(description="Items that something is known of.")]


class FeedbackReply(Struct, frozen=True):
    """Everything sent is on disk."""

    request_id: str
    accepted: Annotated[int, Meta(description="Items kept.")]


_decode = msgspec.json.Decoder(FeedbackRequest).decode
_encode = msgspec.json.Encoder().encode


class FeedbackHandler:
    """Answers `/feedback` within a frame.

    Args:
        serving: Says whether the process drains.
        events: Where feedback goes.
        limits: Of one request.
        max_body_bytes: Largest body.
    """

    def __init__(self, serving: Serving, events: EventLogs, *, limits: Limits, max_body_bytes: int) -> None:
        self._serving = serving
        self._events = events
        self._limits = limits
        self._max_body_bytes = max_body_bytes

    def check(self, call: Call) -> None:  # noqa: ARG002 - of the protocol
        """Refuse where no feedback is kept.

        Raises:
            NotFound: That is so.
        """
        self._log()

    async def answer(self, call: Call) -> None:
        """Keep what came of one request; the wait for the disk counts against its time."""
        kept_by, deadline = self._log(), call.deadline
        body = await call.body(call.check_head(), max_bytes=self._max_body_bytes)
        request = decode_as(_decode, body)
        record = to_record(request, self._limits, now_ms=time.time_ns() // 1_000_000)
        line = _encode(record) + b"\n"
        try:
            async with asyncio.timeout(max(deadline.remaining_s(), 0.0)):
                await kept_by.append(line)
        except TimeoutError:
            raise deadline.exceeded("feedback") from None
        self._events.metrics.accepted(len(record.items), sum(item.click for item in record.items))
        reply = _encode(FeedbackReply(record.request_id, len(record.items)))
        await send_reply(call.send, 202, reply, record.request_id, close=self._serving.draining)

    def refused(self, call: Call, error: ServiceError) -> None:
        """Count and log a problem document."""
        self._events.metrics.refused(error.status)
        log.debug("feedback_refused", request_id=call.request_id, code=error.code, detail=error.detail)

    def crashed(self, call: Call, error: Exception) -> None:
        """Log an error that nobody foresaw."""
        log.error("feedback_failed", request_id=call.request_id, exc_info=error)

    def left(self) -> None:
        """A caller that left sends again."""

    def _log(self) -> FeedbackLog:
        if self._events.feedback is None:
            raise NotFound("this service keeps no feedback; CTR_FEEDBACK_DIR names a folder for it")
        return self._events.feedback


def to_record(request: FeedbackRequest, limits: Limits, *, now_ms: int) -> FeedbackRecord:
    """Check the limits, and make the line that is kept.

    Raises:
        InvalidRequest: A limit is exceeded, an id is empty, or a time is far from now.
    """
    if not request.request_id:
        raise InvalidRequest("the request_id of a scored request is needed, got ''", field="$.request_id")
    _check_length(request.request_id, "$.request_id", limits.max_string_length)
    count = len(request.items)
    if count == 0:
        raise NoItems("there are no items; at least 1 is needed", field="$.items", limit=1, value=0)
    if count > limits.max_items:
        raise TooManyItems(
            f"{count} items were sent, at most {limits.max_items} are taken",
            field="$.items",
            limit=limits.max_items,
            value=count,
        )
    outcomes = []
    for row, item in enumerate(request.items):
        name = str(item.id)
        _check_length(name, f"$.items[{row}].id", limits.max_string_length)
        if item.time_ms is not None:
            _check_time(item.time_ms, f"$.items[{row}].time_ms", now_ms)
        outcomes.append(Outcome(name, item.click, item.value, item.time_ms))
    return FeedbackRecord(request.request_id, now_ms, outcomes)


def _check_length(text: str, path: str, limit: int) -> None:
    if len(text) > limit:
        raise TooLong(
            f"a string of {len(text)} characters was sent at {path}, at most {limit} are taken",
            field=path,
            limit=limit,
            value=len(text),
        )


def _check_time(time_ms: int, path: str, now_ms: int) -> None:
    """Times in seconds or microseconds, and clocks that are far off, are told from real ones."""
    if not now_ms - MAX_AGE_MS <= time_ms <= now_ms + MAX_AHEAD_MS:
        raise InvalidRequest(
            f"time_ms must be ms since 1970 UTC, at most {MAX_AGE_MS // 86_400_000} days ago and "
            f"{MAX_AHEAD_MS // 60_000} minutes ahead of the service's clock",
            field=path,
            value=time_ms,
        )


__all__ = ["FEEDBACK_PATH", "FeedbackHandler", "FeedbackReply", "FeedbackRequest", "to_record"]
