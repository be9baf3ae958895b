"""Around the FastAPI app: request ids, problem documents instead of plain errors, `close` while draining."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from service.api.respond import INTERNAL_DETAIL, PROBLEM, id_header, request_id_of, send_problem
from service.errors import InternalError, MethodNotAllowed, NotFound, ServiceError
from service.serving import Serving
from service.telemetry.log import get_logger

Message = MutableMapping[str, Any]
App = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]

REQUEST_ID = "ctr.request_id"  # where routes find the id in their scope

log = get_logger(__name__)


class ProblemMiddleware:
    """Wraps an ASGI app whose plain 404 and 405 become problem documents.

    Args:
        app: The FastAPI app.
        serving: Says whether to ask callers to connect elsewhere.
    """

    def __init__(self, app: App, serving: Serving) -> None:
        self._app = app
        self._serving = serving

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Answer one request of the control routes."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope[REQUEST_ID] = request_id = request_id_of(scope["headers"])
        replaced: ServiceError | None = None
        started = False

        async def answer(message: Message) -> None:
            nonlocal replaced, started
            if message["type"] == "http.response.start":
                replaced = _replacement(message, scope)
                if replaced is not None:
                    allow = [(k, v) for k, v in message["headers"] if k == b"allow"]
                    started = True
                    await send_problem(
                        send,
                        replaced,
                        request_id,
                        close=self._serving.draining,
                        extra=allow,
                        path=scope["path"],
                    )
                    return
                close = [(b"connection", b"close")] if self._serving.draining else []
                message["headers"] = [*message.get("headers", []), *id_header(request_id), *close]
                started = True
            if replaced is None:
                await send(message)

        try:
            await self._app(scope, receive, answer)
        except Exception:
            log.exception("request_failed", request_id=request_id, path=scope["path"])
            if not started:
                await send_problem(send, InternalError(INTERNAL_DETAIL), request_id)


def _replacement(start: Message, scope: Message) -> ServiceError | None:
    """The problem to send instead of the framework's own error body."""
    if (b"content-type", PROBLEM) in start["headers"]:
        return None
    match start["status"]:
        case 404:
            return NotFound(f"there is nothing at {scope['path'][:100]!r}")
        case 405:
            return MethodNotAllowed(f"{scope['path'][:100]} does not take {scope['method']}")
        case 500:
            return InternalError(INTERNAL_DETAIL)
    return None


__all__ = ["REQUEST_ID", "ProblemMiddleware"]
