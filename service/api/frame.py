"""What surrounds every request that takes a slot: one deadline, tokens, admission, one answer.

`/score`, `/feedback` and infer stand inside, as handlers that know nothing of it. Invariant: every request
gets exactly one reply or, when its caller has left, none; no reply has the text of an unexpected exception.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from service.api.auth import Tokens, check_token
from service.api.body import Receive, caller_gone, check_headers, read_body, shorten_deadline
from service.api.respond import INTERNAL_DETAIL, Send, request_id_of, send_problem
from service.errors import BodyTooLarge, InternalError, MethodNotAllowed, ServiceError
from service.routing.target import Target
from service.scoring.admission import Admission, CallerGone, Deadline
from service.serving import Serving


class Call:
    """One request on its way through a handler.

    Args:
        scope: Of ASGI.
        receive: Of ASGI.
        send: Of ASGI.
        deadline: Until when it is to be answered.
        request_id: From its head; a handler may find another in its body.

    Attributes:
        target: Who is to answer, once that is chosen.
    """

    __slots__ = ("deadline", "headers", "receive", "request_id", "scope", "send", "target")

    def __init__(
        self, scope: Mapping[str, Any], receive: Receive, send: Send, deadline: Deadline, request_id: str
    ) -> None:
        self.scope = scope
        self.headers: list[tuple[bytes, bytes]] = scope["headers"]
        self.receive = receive
        self.send = send
        self.deadline = deadline
        self.request_id = request_id
        self.target: Target | None = None

    @property
    def path(self) -> str:
        """What was called."""
        return str(self.scope["path"])

    def check_head(self, *, json_only: bool = True) -> int | None:
        """Check how the body is declared, and take a shorter deadline; returns the declared length.

        Raises:
            UnsupportedMediaType: Not JSON where only that is taken, or compressed.
            InvalidRequest: The deadline is no number.
        """
        declared = check_headers(self.headers, json_only=json_only)
        shorten_deadline(self.headers, self.deadline)
        return declared

    async def body(self, declared: int | None, *, max_bytes: int) -> bytes:
        """The whole body; from then on the deadline knows whether the caller has left.

        Raises:
            BodyTooLarge: It exceeds the limit, declared or in fact.
            DeadlineExceeded: The caller took too long to send it.
            CallerGone: The caller left.
        """
        body = await read_body(self.receive, declared, max_bytes=max_bytes, deadline=self.deadline)
        self.deadline.watch(caller_gone(self.receive))
        return body


class Handler(Protocol):
    """What stands inside a frame."""

    def check(self, call: Call) -> None:
        """Refuse by the head alone, before a slot is taken."""
        ...

    async def answer(self, call: Call) -> None:
        """Send the reply, or raise."""
        ...

    def refused(self, call: Call, error: ServiceError) -> None:
        """Take note of a problem document that was sent."""
        ...

    def crashed(self, call: Call, error: Exception) -> None:
        """Take note of an error that nobody foresaw; a refusal follows."""
        ...

    def left(self) -> None:
        """Take note of a caller that left before there was an answer."""
        ...


class Frame:
    """A handler as an ASGI callable.

    Args:
        handler: Answers.
        serving: Says whether the process drains.
        admission: Slots in flight.
        deadline_ms: Time of one request.
        tokens: One of which every request needs; None where it is open.
    """

    def __init__(
        self,
        handler: Handler,
        serving: Serving,
        *,
        admission: Admission,
        deadline_ms: int,
        tokens: Tokens | None = None,
    ) -> None:
        self._handler = handler
        self._serving = serving
        self._admission = admission
        self._deadline_ms = deadline_ms
        self._tokens = tokens

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        call = Call(scope, receive, send, Deadline(self._deadline_ms), request_id_of(scope["headers"]))
        try:
            _check_method(call)
            if self._tokens is not None:
                check_token(self._tokens, call.headers)
            self._handler.check(call)
            with self._admission:
                await self._handler.answer(call)
        except CallerGone:
            self._handler.left()
        except ServiceError as error:
            await self._refuse(call, error)
        except Exception as error:  # noqa: BLE001 - the handler logs it
            self._handler.crashed(call, error)
            await self._refuse(call, InternalError(INTERNAL_DETAIL))

    async def _refuse(self, call: Call, error: ServiceError) -> None:
        close = self._serving.draining or isinstance(error, BodyTooLarge)
        extra = [(b"allow", b"POST")] if isinstance(error, MethodNotAllowed) else []
        await send_problem(call.send, error, call.request_id, close=close, extra=extra, path=call.path)
        self._handler.refused(call, error)


def _check_method(call: Call) -> None:
    method = call.scope["method"]
    if method != "POST":
        raise MethodNotAllowed(f"{call.path[:100]} takes POST, not {method[:20]}")


__all__ = ["Call", "Frame", "Handler"]
