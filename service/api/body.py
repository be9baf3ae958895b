"""Reading a request body: declared as JSON, within its limit, before the deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Iterable
from typing import Any

from service.errors import BodyTooLarge, InvalidRequest, UnsupportedMediaType
from service.scoring.admission import CallerGone, Deadline

DEADLINE_HEADER = b"x-deadline-ms"
MAX_DEADLINE_DIGITS = 9
Receive = Callable[[], Awaitable[Any]]
Headers = Iterable[tuple[bytes, bytes]]

DISCARD_FACTOR = (
    8  # how many limits' worth of an oversized body are read, so that the caller hears the answer
)


def check_headers(headers: Headers, *, json_only: bool = True) -> int | None:
    """Check how the body is declared.

    Args:
        headers: Of the request.
        json_only: Whether it must be declared as JSON.

    Returns:
        The declared length in bytes, when there is one.

    Raises:
        UnsupportedMediaType: Not `application/json`, or compressed.
    """
    media_type, length = b"", None
    for name, value in headers:
        if name == b"content-type":
            media_type = value
        elif name == b"content-length" and value.isdigit():
            length = int(value)
        elif name == b"content-encoding" and value.strip().lower() != b"identity":
            raise UnsupportedMediaType("the body must not be compressed", field="content-encoding")
    if (
        json_only
        and media_type != b"application/json"
        and media_type.split(b";")[0].strip().lower() != b"application/json"
    ):
        sent = media_type.decode("latin-1")[:60] or "none"
        raise UnsupportedMediaType(
            f"content type must be application/json, got {sent}", field="content-type", value=sent
        )
    return length


async def read_body(receive: Receive, declared: int | None, *, max_bytes: int, deadline: Deadline) -> bytes:
    """Read the whole body.

    Raises:
        BodyTooLarge: It exceeds the limit, declared or in fact.
        DeadlineExceeded: The caller took too long to send it.
        CallerGone: The caller left.
    """
    steps = receive().__await__()
    try:
        try:
            waits_for = next(steps)
        except StopIteration as done:  # the common case: no timer needed
            message = done.value
        else:
            async with asyncio.timeout(max(deadline.remaining_s(), 0.0)):
                message = await _Resumed(steps, waits_for)
        if message["type"] == "http.disconnect":
            raise CallerGone
        body: bytes = message["body"]
        if message.get("more_body"):
            async with asyncio.timeout(max(deadline.remaining_s(), 0.0)):
                return await _read_more(receive, body, declared, max_bytes)
    except TimeoutError:
        raise deadline.exceeded("body") from None
    if len(body) > max_bytes:
        raise too_large(len(body), max_bytes)
    return body


def shorten_deadline(headers: Headers, deadline: Deadline) -> None:
    """Give a request less time where its caller asks for that.

    Raises:
        InvalidRequest: The header is not a whole number of milliseconds, 1 or more.
    """
    for name, value in headers:
        if name == DEADLINE_HEADER:
            if not (value.isdigit() and len(value) <= MAX_DEADLINE_DIGITS and int(value)):
                sent = value.decode("latin-1")[:60]
                raise InvalidRequest(
                    f"header {DEADLINE_HEADER.decode()} must be whole milliseconds, 1 or more, got {sent!r}",
                    field=DEADLINE_HEADER.decode(),
                    value=sent,
                )
            deadline.shorten(int(value))


def caller_gone(receive: Receive) -> Callable[[], bool]:
    """Tells whether the caller of a request whose body has been read has left meanwhile.

    The server's channel then either holds the news already or waits for them; one step of it tells which.
    """

    def gone() -> bool:
        steps = receive().__await__()
        try:
            next(steps)
        except StopIteration as done:
            return bool(done.value["type"] == "http.disconnect")
        steps.close()
        return False

    return gone


class _Resumed:
    """The rest of an awaitable whose first step was taken by hand, to see whether it waits at all.

    Args:
        steps: Its iterator.
        waits_for: What the first step yielded.
    """

    def __init__(self, steps: Generator[Any, Any, Any], waits_for: Any) -> None:
        self._steps = steps
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, Any]:
        try:
            yield self._waits_for
        except BaseException as error:
            self._steps.throw(error)  # a cancelled wait ends the awaitable as well
            raise
        return (yield from self._steps)


async def _read_more(receive: Receive, first: bytes, declared: int | None, max_bytes: int) -> bytes:
    """Collect the pieces; an oversized body is read on and dropped, within bounds, before it is refused."""
    pieces, size, more = [first], len(first), True
    discard_up_to = DISCARD_FACTOR * max_bytes
    if declared is not None and declared > discard_up_to:
        raise too_large(declared, max_bytes)
    while more and size <= discard_up_to:
        message = await receive()
        if message["type"] == "http.disconnect":
            if size > max_bytes:
                break
            raise CallerGone
        size += len(message["body"])
        if size <= max_bytes:
            pieces.append(message["body"])
        more = message.get("more_body", False)
    if size > max_bytes:
        raise too_large(declared or size, max_bytes)
    return b"".join(pieces)


def too_large(size: int, max_bytes: int) -> BodyTooLarge:
    """The refusal of a body of `size` bytes."""
    return BodyTooLarge(
        f"the body has {size} bytes or more, at most {max_bytes} are taken", limit=max_bytes, value=size
    )


__all__ = ["DEADLINE_HEADER", "caller_gone", "check_headers", "read_body", "shorten_deadline"]
