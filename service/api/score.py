"""`POST /score` as a plain ASGI callable: admission, body, query, scorer, reply.

Stands in front of the FastAPI app, whose route layer alone would cost 65-85 us
of CPU. Invariant: every request gets exactly one reply, and no text of an unexpected exception.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from typing import Any

from service.api.body import Disconnected, Receive, check_headers, read_body
from service.api.respond import INTERNAL_DETAIL, Send, request_id_of, send_problem, send_reply
from service.api.schemas import Explain, ModelInfo, ScoreReply, ScoreRequest, encode_reply
from service.api.translate import Limits, decode, to_query
from service.contract.schema import Entity
from service.errors import BodyTooLarge, InternalError, MethodNotAllowed, ServiceError
from service.scoring.admission import Admission, Deadline
from service.scoring.query import Query
from service.scoring.scorer import Scored, Scorer
from service.serving import Serving
from service.telemetry.log import get_logger
from service.telemetry.metrics import NO_VERSION, STATUSES, BundleMetrics

PATH = "/score"
NOTHING_READ = (0,) * len(STATUSES)

log = get_logger(__name__)


class ScoreEndpoint:
    """The endpoint.

    Args:
        serving: What this process can do.
        limits: Of one request.
        admission: Slots in flight.
        deadline_ms: Time of one request.
        max_body_bytes: Largest body.
        access_log_ratio: Share of requests that are logged.
    """

    def __init__(
        self,
        serving: Serving,
        *,
        limits: Limits,
        admission: Admission,
        deadline_ms: int,
        max_body_bytes: int,
        access_log_ratio: float,
    ) -> None:
        self._serving = serving
        self._limits = limits
        self._admission = admission
        self._deadline_ms = deadline_ms
        self._max_body_bytes = max_body_bytes
        self._access_log_ratio = access_log_ratio
        serving.metrics.inflight.set(0)

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        deadline = Deadline(self._deadline_ms)
        request_id = request_id_of(scope["headers"])
        try:
            _check_method(scope["method"])
            with self._admission:
                self._serving.metrics.inflight.inc()
                try:
                    await self._answer(scope, receive, send, deadline, request_id)
                finally:
                    self._serving.metrics.inflight.dec()
        except Disconnected:
            self._serving.metrics.disconnected(self._version)
        except ServiceError as error:
            await self._refuse(send, error, request_id)
        except _AnswerError as failed:
            await self._fail_or_refuse(send, failed)
        except Exception:
            log.exception("score_failed", request_id=request_id, bundle=self._version)
            await self._refuse(send, InternalError(INTERNAL_DETAIL), request_id)

    @property
    def _version(self) -> str:
        return self._serving.version or NO_VERSION

    async def _answer(
        self, scope: Mapping[str, Any], receive: Receive, send: Send, deadline: Deadline, request_id: str
    ) -> None:
        declared = check_headers(scope["headers"])
        scorer, metrics = self._serving.require()
        body = await read_body(receive, declared, max_bytes=self._max_body_bytes, deadline=deadline)
        read = time.perf_counter()
        request = decode(body)
        if request.request_id and len(request.request_id) <= self._limits.max_string_length:
            request_id = request.request_id
        try:
            query = to_query(request, self._limits, item_features=scorer.feature_names(Entity.ITEM))
            decoded = time.perf_counter()
            scored = await scorer.score(query, deadline)
        except Exception as error:
            raise _AnswerError(request_id, error) from error
        begun = time.perf_counter()
        reply = encode_reply(self._reply(scorer, request, query, scored, request_id))
        await send_reply(send, 200, reply, request_id, close=self._serving.draining)
        done = time.perf_counter()
        metrics.decode.observe(decoded - read)
        metrics.reply.observe(done - begun)
        metrics.total.observe(done - deadline.started_s)
        self._observe(metrics, query, scored)
        if self._access_log_ratio and random.random() < self._access_log_ratio:  # noqa: S311 - sampling
            self._log_access(request_id, query, scored, done - deadline.started_s)

    def _reply(
        self, scorer: Scorer, request: ScoreRequest, query: Query, scored: Scored, request_id: str
    ) -> ScoreReply:
        reply = ScoreReply(
            request_id=request_id,
            domain=query.domain,
            scores=scored.scores.tolist(),
            model=self._model_info(scorer, scored),
            degraded=list(scored.degraded),
        )
        if not request.explain:
            return reply
        anonymous = query.user_id is None
        explain = Explain(
            user="anonymous" if anonymous else _status(known=scored.user_known),
            items=[_status(known=known) for known in scored.items_known.tolist()],
            domain=_status(known=scored.route.listed),
            domain_row=int(scored.route.index[0]),
        )
        return ScoreReply(
            reply.request_id, reply.domain, reply.scores, reply.model, None, None, reply.degraded, explain
        )

    def _model_info(self, scorer: Scorer, scored: Scored) -> ModelInfo:
        loaded, route = scorer.loaded, scored.route
        return ModelInfo(loaded.bundle_id, loaded.alias, route.cluster, route.graph)

    def _observe(self, metrics: BundleMetrics, query: Query, scored: Scored) -> None:
        metrics.features.observe(scored.features_s)
        metrics.infer.observe(scored.infer_s)
        metrics.scored(
            domain=query.domain,
            score_sum=float(scored.scores.sum()),
            num_items=len(query.item_ids),
            user_reads=NOTHING_READ if query.user_id is None else scored.user.counts(),
            item_reads=scored.items.counts(),
            degraded=scored.degraded,
        )

    def _log_access(self, request_id: str, query: Query, scored: Scored, took_s: float) -> None:
        log.info(
            "scored",
            request_id=request_id,
            domain=query.domain,
            num_items=len(query.item_ids),
            graph=scored.route.graph,
            took_ms=round(took_s * 1000, 3),
        )

    async def _fail_or_refuse(self, send: Send, failed: _AnswerError) -> None:
        if isinstance(failed.error, ServiceError):
            await self._refuse(send, failed.error, failed.request_id)
            return
        log.error("score_failed", request_id=failed.request_id, bundle=self._version, exc_info=failed.error)
        await self._refuse(send, InternalError(INTERNAL_DETAIL), failed.request_id)

    async def _refuse(self, send: Send, error: ServiceError, request_id: str) -> None:
        self._serving.metrics.answered(self._version, error.status, error.code)
        log.debug("refused", request_id=request_id, code=error.code, detail=error.detail)
        close = self._serving.draining or isinstance(error, BodyTooLarge)
        extra = [(b"allow", b"POST")] if isinstance(error, MethodNotAllowed) else []
        await send_problem(send, error, request_id, close=close, extra=extra)


class _AnswerError(Exception):
    """Carries an error together with the request id that the body asked for."""

    def __init__(self, request_id: str, error: Exception) -> None:
        super().__init__(request_id)
        self.request_id = request_id
        self.error = error


def _check_method(method: str) -> None:
    if method != "POST":
        raise MethodNotAllowed(f"{PATH} takes POST, not {method}")


def _status(*, known: bool) -> str:
    return "known" if known else "unknown"


__all__ = ["PATH", "ScoreEndpoint"]
