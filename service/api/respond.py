"""Request ids and replies, shared by `/score` and everything else."""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgspec

from service.errors import ServiceError

Send = Callable[[Any], Awaitable[None]]

V2 = "/v2"
JSON = b"application/json"
PROBLEM = b"application/problem+json"
REQUEST_ID_HEADER = b"x-request-id"
INTERNAL_DETAIL = "an unexpected error; the log has its cause under this request id"
_PLAIN_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The caller's `x-request-id` when it is plain, else a fresh one."""
    for name, value in headers:
        if name == REQUEST_ID_HEADER and _PLAIN_ID.fullmatch(value):
            return value.decode("ascii")
    return os.urandom(8).hex()


def id_header(request_id: str) -> list[tuple[bytes, bytes]]:
    """The header that echoes an id; none when the body's id cannot stand in a header."""
    raw = request_id.encode()
    return [(REQUEST_ID_HEADER, raw)] if _PLAIN_ID.fullmatch(raw) else []


async def send_reply(
    send: Send,
    status: int,
    body: bytes,
    request_id: str,
    *,
    media_type: bytes = JSON,
    close: bool = False,
    extra: Iterable[tuple[bytes, bytes]] = (),
) -> None:
    """Send one whole reply; `close` asks the caller to connect anew, elsewhere while draining."""
    headers = [
        (b"content-type", media_type),
        (b"content-length", b"%d" % len(body)),
        *id_header(request_id),
        *extra,
    ]
    if close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def problem_headers(error: ServiceError) -> list[tuple[bytes, bytes]]:
    """Headers that an error asks for."""
    if error.retry_after_s is None:
        return [*error.headers]
    return [*error.headers, (b"retry-after", b"%d" % error.retry_after_s)]


def problem_body(error: ServiceError, request_id: str, path: str = "") -> bytes:
    """A problem document; under `/v2` with the member `error` that its clients read as well."""
    document = error.problem(request_id)
    if path.startswith(V2):
        document["error"] = error.detail
    return msgspec.json.encode(document)


async def send_problem(
    send: Send,
    error: ServiceError,
    request_id: str,
    *,
    close: bool = False,
    extra: Iterable[tuple[bytes, bytes]] = (),
    path: str = "",
) -> None:
    """Send an error as problem document; the path says in whose terms."""
    body = problem_body(error, request_id, path)
    headers = [
        (b"content-type", PROBLEM),
        (b"content-length", b"%d" % len(body)),
        *id_header(request_id),
        *problem_headers(error),
        *extra,
    ]
    if close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


__all__ = [
    "INTERNAL_DETAIL",
    "PROBLEM",
    "problem_body",
    "problem_headers",
    "request_id_of",
    "send_problem",
    "send_reply",
]
