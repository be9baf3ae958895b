"""`POST /score` as a plain ASGI callable: admission, body, query, scorer, reply.

Stands in front of the FastAPI app, whose route layer alone would cost 65-85 us
of CPU. Invariant: every request gets exactly one reply, and no text of an unexpected exception.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from msgspec import UNSET

from service.api.auth import Tokens, check_token
from service.api.body import (
    Headers,
    Receive,
    caller_gone,
    check_headers,
    read_body,
    shorten_deadline,
)
from service.api.explain import explain
from service.api.expose import exposure_of
from service.api.observe import Answer, RequestObserver
from service.api.respond import INTERNAL_DETAIL, Send, request_id_of, send_problem, send_reply
from service.api.schemas import BlendInfo, ModelInfo, ScoreReply, ScoreRequest, encode_reply
from service.api.translate import Limits, decode, to_query
from service.contract.schema import Entity
from service.errors import BodyTooLarge, Forbidden, InternalError, MethodNotAllowed, ServiceError
from service.routing.live import LiveRouting
from service.routing.table import Choice
from service.routing.target import Blend, Target
from service.scoring.admission import Admission, CallerGone, Deadline
from service.scoring.query import Query
from service.scoring.scorer import Scored, Scorer
from service.serving import Serving
from service.telemetry.exposure import ExposureLog
from service.telemetry.metrics import NO_ARM, NO_VERSION

PATH = "/score"
NO_EXPLAIN = "explain is off: it shows what is stored of whom, so this service needs CTR_TOKENS_FILE for it"


class ScoreEndpoint:
    """The endpoint.

    Args:
        serving: What this process can do.
        limits: Of one request.
        admission: Slots in flight.
        deadline_ms: Time of one request.
        max_body_bytes: Largest body.
        observer: Tells of requests.
        exposures: Takes a record of every scored request; None when they are off.
        tokens: One of which every request needs; None where it is open.
    """

    def __init__(
        self,
        serving: Serving,
        *,
        limits: Limits,
        admission: Admission,
        deadline_ms: int,
        max_body_bytes: int,
        observer: RequestObserver,
        exposures: ExposureLog | None = None,
        tokens: Tokens | None = None,
    ) -> None:
        self._serving = serving
        self._limits = limits
        self._admission = admission
        self._deadline_ms = deadline_ms
        self._max_body_bytes = max_body_bytes
        self._observer = observer
        self._exposures = exposures
        self._tokens = tokens
        serving.metrics.inflight.set(0)

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        deadline = Deadline(self._deadline_ms)
        request_id = request_id_of(scope["headers"])
        try:
            _check_method(scope["method"])
            if self._tokens is not None:
                check_token(self._tokens, scope["headers"])
            with self._admission:
                self._serving.metrics.inflight.inc()
                try:
                    await self._answer(scope, receive, send, deadline, request_id)
                finally:
                    self._serving.metrics.inflight.dec()
        except CallerGone:
            self._serving.metrics.disconnected(self._version)
        except ServiceError as error:
            await self._refuse(send, error, request_id, scope["headers"], deadline)
        except _AnswerError as failed:
            await self._fail_or_refuse(send, failed, scope["headers"], deadline)
        except Exception as error:  # noqa: BLE001 - logged as a crash
            self._observer.crashed(error, request_id=request_id, version=self._version, arm=NO_ARM)
            internal = InternalError(INTERNAL_DETAIL)
            await self._refuse(send, internal, request_id, scope["headers"], deadline)

    @property
    def _version(self) -> str:
        return self._serving.version or NO_VERSION

    @property
    def _busy(self) -> bool:
        """Whether half of the slots are taken."""
        return 2 * self._admission.inflight > self._admission.max_inflight

    def _choose(
        self, routing: LiveRouting, request: ScoreRequest, request_id: str, headers: Headers
    ) -> Choice:
        return routing.table.choose(
            request.domain,
            user_id=request.user.id,
            session_id=request.session_id,
            request_id=request_id,
            headers=headers,
        )

    async def _answer(
        self, scope: Mapping[str, Any], receive: Receive, send: Send, deadline: Deadline, request_id: str
    ) -> None:
        declared = check_headers(scope["headers"])
        shorten_deadline(scope["headers"], deadline)
        self._serving.require()
        body = await read_body(receive, declared, max_bytes=self._max_body_bytes, deadline=deadline)
        deadline.watch(caller_gone(receive))
        scorer, metrics = self._serving.require()  # the bundle may have changed while the body came
        read = time.perf_counter()
        request = decode(body)
        if request.request_id and len(request.request_id) <= self._limits.max_string_length:
            request_id = request.request_id
        choice: Choice | None = None
        try:
            if request.explain:
                self._check_explain()
            if self._serving.routing is not None:
                choice = self._choose(self._serving.routing, request, request_id, scope["headers"])
                scorer, metrics = choice.target.scorer, choice.target.metrics
            query = to_query(request, self._limits, item_features=scorer.feature_names(Entity.ITEM))
            decoded = time.perf_counter()
            if choice is None or choice.target.blend is None:
                scored = await scorer.score(query, deadline)
            else:
                scored = await choice.target.score(query, deadline)
        except CallerGone:
            raise
        except Exception as error:
            raise _AnswerError(request_id, error, choice) from error
        begun = time.perf_counter()
        reply = encode_reply(self._reply(scorer, request, query, scored, request_id, choice))
        await send_reply(send, 200, reply, request_id, close=self._serving.draining)
        done = time.perf_counter()
        arm, blended = NO_ARM, False
        if choice is not None:
            arm, blended = choice.target.arm, choice.target.blend is not None
        answer = Answer(
            request_id,
            scope["headers"],
            query,
            scored,
            scorer.loaded.version,
            arm,
            blended,
            deadline.started_s,
            read,
            decoded,
            begun,
            done,
        )
        self._observer.scored(answer, metrics)
        if choice is not None and choice.shadow is not None:
            choice.shadow.offer(query, scored.scores, choice.target.arm, busy=self._busy)
        if self._exposures is not None and self._exposures.sampled():
            self._exposures.offer(exposure_of(request_id, query, scored, scorer, choice))

    def _check_explain(self) -> None:
        """Every request has named a token by now, where tokens are on."""
        if self._tokens is None:
            raise Forbidden(NO_EXPLAIN, field="$.explain")

    def _reply(
        self,
        scorer: Scorer,
        request: ScoreRequest,
        query: Query,
        scored: Scored,
        request_id: str,
        choice: Choice | None,
    ) -> ScoreReply:
        assignment = None if choice is None else choice.assignment
        return ScoreReply(
            request_id=request_id,
            domain=query.domain,
            scores=scored.scores.tolist(),
            model=_model_info(scorer, scored, None if choice is None else choice.target.blend),
            experiment=None if assignment is None else assignment.experiment,
            arm=None if assignment is None else assignment.arm,
            degraded=list(scored.degraded),
            explain=explain(scorer, query, scored, assignment) if request.explain else UNSET,
        )

    async def _fail_or_refuse(
        self, send: Send, failed: _AnswerError, headers: Headers, deadline: Deadline
    ) -> None:
        target = None if failed.choice is None else failed.choice.target
        error = failed.error
        if not isinstance(error, ServiceError):
            version, arm = self._answers(target)
            self._observer.crashed(error, request_id=failed.request_id, version=version, arm=arm)
            error = InternalError(INTERNAL_DETAIL)
        await self._refuse(send, error, failed.request_id, headers, deadline, target)

    def _answers(self, target: Target | None) -> tuple[str, str]:
        """Version and arm that a request was to be answered by."""
        return (self._version, NO_ARM) if target is None else (target.scorer.loaded.version, target.arm)

    async def _refuse(
        self,
        send: Send,
        error: ServiceError,
        request_id: str,
        headers: Headers,
        deadline: Deadline,
        target: Target | None = None,
    ) -> None:
        close = self._serving.draining or isinstance(error, BodyTooLarge)
        extra = [(b"allow", b"POST")] if isinstance(error, MethodNotAllowed) else []
        await send_problem(send, error, request_id, close=close, extra=extra)
        version, arm = self._answers(target)
        self._observer.refused(
            error,
            request_id=request_id,
            headers=headers,
            version=version,
            arm=arm,
            began_s=deadline.started_s,
        )


class _AnswerError(Exception):
    """Carries an error together with the request id that the body asked for, and who was to answer."""

    def __init__(self, request_id: str, error: Exception, choice: Choice | None) -> None:
        super().__init__(request_id)
        self.request_id = request_id
        self.error = error
        self.choice = choice


def _model_info(scorer: Scorer, scored: Scored, blend: Blend | None) -> ModelInfo:
    loaded, route = scorer.loaded, scored.route
    if blend is None:
        return ModelInfo(loaded.bundle_id, loaded.alias, route.cluster, route.graph)
    other = blend.scorer.loaded
    blended = BlendInfo(other.bundle_id, other.alias, blend.weight)
    return ModelInfo(loaded.bundle_id, loaded.alias, route.cluster, route.graph, blended)


def _check_method(method: str) -> None:
    if method != "POST":
        raise MethodNotAllowed(f"{PATH} takes POST, not {method}")


__all__ = ["PATH", "ScoreEndpoint"]
