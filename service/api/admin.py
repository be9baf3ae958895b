"""The admin API: what operators ask of all workers at once, on a port and with tokens of its own.

    POST /admin/reload   every worker looks for another bundle and routing now; answered when all have
    GET  /admin/state    what each worker serves, holds open, refused last

A plain ASGI callable without a model behind it, so that the supervisor can answer for its workers.
Invariant: nothing is told or done without a token; a reload is a success only if every worker serves what
is there now.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol

import msgspec

from service.api.auth import Tokens, check_token
from service.api.respond import (
    INTERNAL_DETAIL,
    PROBLEM,
    Send,
    request_id_of,
    send_problem,
    send_reply,
)
from service.errors import (
    InternalError,
    MethodNotAllowed,
    NotFound,
    ReloadRefused,
    ServiceError,
    WorkerSilent,
)
from service.telemetry.log import get_logger

RELOAD: Final = "reload"
STATE: Final = "state"
METHODS: Final = {"/admin/reload": "POST", "/admin/state": "GET"}
RELOAD_TIMEOUT_S = 600.0  # verifying and warming a large bundle on a slow disk
STATE_TIMEOUT_S = 5.0

Answer = dict[str, Any]
"""What one worker says; with `error` where it says nothing."""

log = get_logger(__name__)


class Fleet(Protocol):
    """All workers."""

    async def ask(self, command: str, timeout_s: float) -> list[Answer]:
        """Answers of all workers, in their order, each with its `worker` number; does not raise."""
        ...


class AdminApp:
    """The ASGI app.

    Args:
        fleet: The workers.
        tokens: One of which every request needs.
    """

    def __init__(self, fleet: Fleet, tokens: Tokens) -> None:
        self._fleet = fleet
        self._tokens = tokens

    async def __call__(
        self,
        scope: Mapping[str, Any],
        receive: object,  # noqa: ARG002 - of the protocol
        send: Send,
    ) -> None:
        """Answer one request; its body says nothing and is not read."""
        request_id = request_id_of(scope["headers"])
        try:
            check_token(self._tokens, scope["headers"])
            _check_route(scope["path"], scope["method"])
            if scope["path"] == "/admin/state":
                answers = await self._fleet.ask(STATE, STATE_TIMEOUT_S)
                await send_reply(send, 200, msgspec.json.encode({"workers": answers}), request_id)
            else:
                await self._reload(send, request_id)
        except ServiceError as error:
            extra = []
            if isinstance(error, MethodNotAllowed):
                extra = [(b"allow", METHODS[scope["path"]].encode())]
            await send_problem(send, error, request_id, extra=extra)
        except Exception:
            log.exception("admin_failed", request_id=request_id)
            await send_problem(send, InternalError(INTERNAL_DETAIL), request_id)

    async def _reload(self, send: Send, request_id: str) -> None:
        log.info("reload_requested", request_id=request_id)
        answers = await self._fleet.ask(RELOAD, RELOAD_TIMEOUT_S)
        error = _failure(answers)
        if error is None:
            results = {answer["result"] for answer in answers}
            result = results.pop() if len(results) == 1 else "loaded"
            body = msgspec.json.encode({"result": result, "workers": answers})
            await send_reply(send, 200, body, request_id)
            return
        body = msgspec.json.encode({**error.problem(request_id), "workers": answers})
        await send_reply(send, error.status, body, request_id, media_type=PROBLEM)


def _check_route(path: str, method: str) -> None:
    wanted = METHODS.get(path)
    if wanted is None:
        raise NotFound(f"there is nothing at {path[:100]!r}; there are {', '.join(METHODS)}")
    if method != wanted:
        raise MethodNotAllowed(f"{path} takes {wanted}, not {method[:20]}")


def _failure(answers: list[Answer]) -> ServiceError | None:
    """Why a reload was no success: the first worker that refused, or else the first that said nothing."""
    for answer in answers:
        if reason := answer.get("reason") or answer.get("routing", {}).get("reason"):
            return ReloadRefused(f"worker {answer['worker']} serves on as before: {reason}")
    for answer in answers:
        if "error" in answer:
            return WorkerSilent(f"worker {answer['worker']} {answer['error']}")
    return None


__all__ = ["RELOAD", "STATE", "AdminApp", "Answer", "Fleet"]
