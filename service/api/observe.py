"""What is told of a request to `/score` once it is answered: metrics, access log, slow requests, a trace.

Runs after the reply is sent. Invariants: every line about a request names its id, and the version and arm
that answered; slow requests write one line a second at most, which says how many went untold.
"""

from __future__ import annotations

import logging
import random
import time
from typing import Any

import msgspec

from service.api.body import Headers
from service.errors import ServiceError
from service.scoring.query import Query
from service.scoring.scorer import Scored
from service.telemetry.log import get_logger
from service.telemetry.metrics import STATUSES, BundleMetrics, Metrics
from service.telemetry.trace import RequestTracer, Stage

SLOW_LOG_PAUSE_S = 1.0
NOTHING_READ = (0,) * len(STATUSES)
SPAN = "score"

LOGGER = "service.requests"

log = get_logger(LOGGER)
_plain_log = logging.getLogger(LOGGER)


class Answer(msgspec.Struct, frozen=True):
    """One answered request; moments are `time.perf_counter` seconds.

    Attributes:
        request_id: As in the reply.
        headers: Of the request.
        query: What was asked.
        scored: What was answered.
        version: Of the bundle.
        arm: As `experiment/arm`.
        blended: Whether another bundle had a say.
        began_s: Its head was there.
        read_s: Its body was there.
        decoded_s: It was understood.
        scored_s: Scores were there.
        done_s: The reply was handed to the server.
    """

    request_id: str
    headers: Headers
    query: Query
    scored: Scored
    version: str
    arm: str
    blended: bool
    began_s: float
    read_s: float
    decoded_s: float
    scored_s: float
    done_s: float


class RequestObserver:
    """Tells of requests.

    Args:
        metrics: Of this process.
        access_log_ratio: Share of requests that are logged.
        slow_request_ms: Time from which a request is logged with its stages; 0: none are.
        tracer: Takes spans; None when tracing is off.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        access_log_ratio: float,
        slow_request_ms: float,
        tracer: RequestTracer | None,
    ) -> None:
        self._metrics = metrics
        self._access_log_ratio = access_log_ratio
        self._slow_s = slow_request_ms / 1000 if slow_request_ms else float("inf")
        self._tracer = tracer
        self._slow_told_s = -SLOW_LOG_PAUSE_S
        self._slow_untold = 0

    def scored(self, answer: Answer, metrics: BundleMetrics) -> None:
        """Tell of a request that was scored.

        Args:
            answer: The request.
            metrics: Of the bundle and arm that answered.
        """
        query, scored = answer.query, answer.scored
        took_s = answer.done_s - answer.began_s
        metrics.decode.observe(answer.decoded_s - answer.read_s)
        metrics.features.observe(scored.features_s)
        metrics.infer.observe(scored.infer_s)
        metrics.reply.observe(answer.done_s - answer.scored_s)
        metrics.total.observe(took_s)
        metrics.scored(
            domain=query.domain,
            score_sum=float(scored.scores.sum()),
            num_items=len(query.item_ids),
            user_reads=NOTHING_READ if query.user_id is None else scored.user.counts(),
            item_reads=scored.items.counts(),
            degraded=scored.degraded,
            blended=answer.blended,
        )
        trace_id = None if self._tracer is None else self._trace(self._tracer, answer)
        if took_s >= self._slow_s:
            self._slow(took_s, {**_facts(answer, trace_id), **_stages_ms(answer)})
        if self._sampled():
            log.info("scored", **_facts(answer, trace_id), took_ms=_ms(took_s))

    def refused(
        self,
        error: ServiceError,
        *,
        request_id: str,
        headers: Headers,
        version: str,
        arm: str,
        began_s: float,
    ) -> None:
        """Tell of a request that was answered with a problem document.

        Args:
            error: The problem.
            request_id: As in the reply.
            headers: Of the request.
            version: Of the bundle that was to answer.
            arm: Of the experiment, likewise.
            began_s: When it came, `time.perf_counter` seconds.
        """
        self._metrics.answered(version, error.status, error.code, arm=arm)
        done_s = time.perf_counter()
        facts: dict[str, Any] = {
            "request_id": request_id,
            "version": version,
            "arm": arm,
            "status": error.status,
            "code": error.code,
        }
        if self._tracer is not None:
            self._tracer.record(
                SPAN,
                headers=headers,
                began_s=began_s,
                ended_s=done_s,
                attributes={**facts, "http.response.status_code": error.status},
                failure=error.code if error.status >= 500 else None,
            )
        if done_s - began_s >= self._slow_s:
            self._slow(done_s - began_s, facts)
        if self._sampled():
            log.info("refused", **facts, detail=error.detail, took_ms=_ms(done_s - began_s))
        elif _plain_log.isEnabledFor(logging.DEBUG):  # refusing has to stay cheap under overload
            log.debug("refused", **facts, detail=error.detail, took_ms=_ms(done_s - began_s))

    def crashed(self, error: BaseException, *, request_id: str, version: str, arm: str) -> None:
        """Tell of an error that nobody foresaw, with its trace; the caller is told nothing of it."""
        log.error("score_failed", request_id=request_id, version=version, arm=arm, exc_info=error)

    def _sampled(self) -> bool:
        ratio = self._access_log_ratio
        return ratio > 0 and random.random() < ratio  # noqa: S311 - sampling

    def _slow(self, took_s: float, facts: dict[str, Any]) -> None:
        now_s = time.monotonic()
        if now_s - self._slow_told_s < SLOW_LOG_PAUSE_S:
            self._slow_untold += 1
            return
        log.warning("slow_request", **facts, took_ms=_ms(took_s), num_untold=self._slow_untold)
        self._slow_told_s = now_s
        self._slow_untold = 0

    def _trace(self, tracer: RequestTracer, answer: Answer) -> str | None:
        scored, query = answer.scored, answer.query
        features_end_s = answer.decoded_s + scored.features_s
        return tracer.record(
            SPAN,
            headers=answer.headers,
            began_s=answer.began_s,
            ended_s=answer.done_s,
            attributes={
                "request_id": answer.request_id,
                "domain": query.domain,
                "num_items": len(query.item_ids),
                "bundle": answer.version,
                "arm": answer.arm,
                "graph": scored.route.graph,
                "degraded": scored.degraded,
                "http.response.status_code": 200,
            },
            stages=(
                Stage("read", answer.began_s, answer.read_s),
                Stage("decode", answer.read_s, answer.decoded_s),
                Stage("features", answer.decoded_s, features_end_s),
                Stage("infer", features_end_s, features_end_s + scored.infer_s),
                Stage("reply", answer.scored_s, answer.done_s),
            ),
        )


def _facts(answer: Answer, trace_id: str | None) -> dict[str, Any]:
    """What a line about a scored request tells."""
    scored = answer.scored
    return {
        "request_id": answer.request_id,
        "version": answer.version,
        "arm": answer.arm,
        "status": 200,
        "domain": answer.query.domain,
        "num_items": len(answer.query.item_ids),
        "graph": scored.route.graph,
        "degraded": list(scored.degraded),
        **({} if trace_id is None else {"trace_id": trace_id}),
    }


def _stages_ms(answer: Answer) -> dict[str, float]:
    return {
        "read_ms": _ms(answer.read_s - answer.began_s),
        "decode_ms": _ms(answer.decoded_s - answer.read_s),
        "features_ms": _ms(answer.scored.features_s),
        "infer_ms": _ms(answer.scored.infer_s),
        "reply_ms": _ms(answer.done_s - answer.scored_s),
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


__all__ = ["Answer", "RequestObserver"]
