"""`POST /score`: body, query, scorer, reply, and what is told of it.

With its frame a plain ASGI callable in front of the FastAPI app, whose route layer alone would cost 65-85 us
of CPU. Invariant: whatever is told of a request names the version and arm that its reply names.
"""

from __future__ import annotations

import time

from msgspec import UNSET

from service.api.explain import explain
from service.api.expose import exposure_of
from service.api.frame import Call
from service.api.observe import Answer, RequestObserver
from service.api.respond import send_reply
from service.api.schemas import BlendInfo, ModelInfo, ScoreReply, ScoreRequest, encode_reply
from service.api.translate import Limits, decode, to_query
from service.contract.schema import Entity
from service.errors import Forbidden, ServiceError
from service.routing.live import LiveRouting
from service.routing.table import Choice
from service.routing.target import Blend
from service.scoring.admission import Admission
from service.scoring.query import Query
from service.scoring.scorer import Scored, Scorer
from service.serving import Serving
from service.telemetry.exposure import ExposureLog
from service.telemetry.metrics import NO_ARM, NO_VERSION

PATH = "/score"
NO_EXPLAIN = "explain is off: it shows what is stored of whom, so this service needs CTR_TOKENS_FILE for it"


class ScoreHandler:
    """Answers `/score` within a frame.

    Args:
        serving: What this process can do.
        limits: Of one request.
        admission: Slots in flight, of the frame.
        max_body_bytes: Largest body.
        observer: Tells of requests.
        exposures: Takes a record of every scored request; None when they are off.
        may_explain: Whether whoever comes this far has named a token.
    """

    def __init__(
        self,
        serving: Serving,
        *,
        limits: Limits,
        admission: Admission,
        max_body_bytes: int,
        observer: RequestObserver,
        exposures: ExposureLog | None = None,
        may_explain: bool = False,
    ) -> None:
        self._serving = serving
        self._limits = limits
        self._admission = admission
        self._max_body_bytes = max_body_bytes
        self._observer = observer
        self._exposures = exposures
        self._may_explain = may_explain
        serving.metrics.inflight.set(0)

    def check(self, call: Call) -> None:
        """Any head will do."""

    async def answer(self, call: Call) -> None:
        """Score one request and tell of it."""
        self._serving.metrics.inflight.inc()
        try:
            await self._answer(call)
        finally:
            self._serving.metrics.inflight.dec()

    def refused(self, call: Call, error: ServiceError) -> None:
        """Count and log a problem document."""
        version, arm = self._who(call)
        self._observer.refused(
            error,
            request_id=call.request_id,
            headers=call.headers,
            version=version,
            arm=arm,
            began_s=call.deadline.started_s,
        )

    def crashed(self, call: Call, error: Exception) -> None:
        """Log an error that nobody foresaw."""
        version, arm = self._who(call)
        self._observer.crashed(error, request_id=call.request_id, version=version, arm=arm)

    def left(self) -> None:
        """Count a caller that left."""
        self._serving.metrics.disconnected(self._serving.version or NO_VERSION)

    def _who(self, call: Call) -> tuple[str, str]:
        """Version and arm that a request was to be answered by."""
        if call.target is None:
            return self._serving.version or NO_VERSION, NO_ARM
        return call.target.scorer.loaded.version, call.target.arm

    @property
    def _busy(self) -> bool:
        """Whether half of the slots are taken."""
        return 2 * self._admission.inflight > self._admission.max_inflight

    def _choose(self, routing: LiveRouting, request: ScoreRequest, call: Call) -> Choice:
        choice = routing.table.choose(
            request.domain,
            user_id=request.user.id,
            session_id=request.session_id,
            request_id=call.request_id,
            headers=call.headers,
        )
        call.target = choice.target
        return choice

    async def _answer(self, call: Call) -> None:
        declared = call.check_head()
        self._serving.require()
        body = await call.body(declared, max_bytes=self._max_body_bytes)
        scorer, metrics = self._serving.require()  # the bundle may have changed while the body came
        read = time.perf_counter()
        request = decode(body)
        if request.request_id and len(request.request_id) <= self._limits.max_string_length:
            call.request_id = request.request_id
        if request.explain and not self._may_explain:
            raise Forbidden(NO_EXPLAIN, field="$.explain")
        choice: Choice | None = None
        if self._serving.routing is not None:
            choice = self._choose(self._serving.routing, request, call)
            scorer, metrics = choice.target.scorer, choice.target.metrics
        query = to_query(request, self._limits, item_features=scorer.feature_names(Entity.ITEM))
        decoded = time.perf_counter()
        if choice is None or choice.target.blend is None:
            scored = await scorer.score(query, call.deadline)
        else:
            scored = await choice.target.score(query, call.deadline)
        begun = time.perf_counter()
        reply = encode_reply(self._reply(scorer, request, query, scored, call.request_id, choice))
        await send_reply(call.send, 200, reply, call.request_id, close=self._serving.draining)
        done = time.perf_counter()
        arm, blended = NO_ARM, False
        if choice is not None:
            arm, blended = choice.target.arm, choice.target.blend is not None
        answer = Answer(
            call.request_id,
            call.headers,
            query,
            scored,
            scorer.loaded.version,
            arm,
            blended,
            call.deadline.started_s,
            read,
            decoded,
            begun,
            done,
        )
        self._observer.scored(answer, metrics)
        if choice is not None and choice.shadow is not None:
            choice.shadow.offer(query, scored.scores, choice.target.arm, busy=self._busy)
        if self._exposures is not None and self._exposures.sampled():
            self._exposures.offer(exposure_of(call.request_id, query, scored, scorer, choice))

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


def _model_info(scorer: Scorer, scored: Scored, blend: Blend | None) -> ModelInfo:
    loaded, route = scorer.loaded, scored.route
    if blend is None:
        return ModelInfo(loaded.bundle_id, loaded.alias, route.cluster, route.graph)
    other = blend.scorer.loaded
    blended = BlendInfo(other.bundle_id, other.alias, blend.weight)
    return ModelInfo(loaded.bundle_id, loaded.alias, route.cluster, route.graph, blended)


__all__ = ["PATH", "ScoreHandler"]
