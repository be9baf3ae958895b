"""Puts the service together: `/score` as a bare ASGI callable in front of the FastAPI app."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response

from service.api.auth import Tokens
from service.api.feedback import FEEDBACK_PATH, FeedbackHandler
from service.api.frame import Frame, Handler
from service.api.health import health_router, v2_health_router
from service.api.inference import InferHandler, is_infer
from service.api.info import info_router
from service.api.middleware import REQUEST_ID, App, Message, ProblemMiddleware
from service.api.model import model_router
from service.api.observe import RequestObserver
from service.api.openapi import complete
from service.api.respond import PROBLEM, problem_body, problem_headers
from service.api.score import PATH, ScoreHandler
from service.api.translate import Limits
from service.api.warm import warm
from service.bundles.pool import BundlePool
from service.bundles.registry import LoadedBundle
from service.contract.store import ModelStore
from service.errors import RoutingError, ServiceError
from service.events import EventLogs
from service.features.opening import FeatureSources
from service.routing.live import LiveRouting
from service.routing.table import RoutingTable
from service.scoring.admission import QUEUE_RATIO, Admission
from service.scoring.runner import Runner
from service.scoring.scorer import Scorer
from service.serving import Serving
from service.settings import Settings, cpu_quota
from service.telemetry.metrics import Metrics, worker_file
from service.telemetry.trace import RequestTracer, open_tracer

TITLE = "ctr-serve"
DESCRIPTION = (
    "Click-through scoring over many domains. Errors are RFC 9457 problem documents with a stable `code`."
)


class Application:
    """The ASGI app, and the state that its life cycle turns."""

    def __init__(
        self,
        score: Frame,
        infer: Frame,
        feedback: Frame,
        control: App,
        serving: Serving,
        events: EventLogs,
    ) -> None:
        self._score = score
        self._infer = infer
        self._feedback = feedback
        self._control = control
        self.serving = serving
        self.events = events

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Dispatch one request or the lifespan."""
        if scope["type"] == "http" and scope["path"] == PATH:
            await self._score(scope, receive, send)
        elif scope["type"] == "http" and scope["path"] == FEEDBACK_PATH:
            await self._feedback(scope, receive, send)
        elif scope["type"] == "http" and is_infer(scope["path"]):
            await self._infer(scope, receive, send)
        else:
            await self._control(scope, receive, send)


def create_app(settings: Settings) -> Application:
    """The service, which loads its bundle once the lifespan starts."""
    metrics = Metrics(max_domain_labels=settings.max_domain_labels, file=worker_file())
    metrics.worker.configured(
        max_inflight=settings.max_inflight,
        deadline_s=settings.deadline_ms / 1000,
        threads=settings.threads(),
        cores=cpu_quota(),
    )
    runner = Runner(
        inline_max_ms=settings.inline_max_ms,
        num_threads=settings.threads(),
        batch_max_rows=settings.batch_max_rows,
    )

    features = FeatureSources(settings, metrics.features)

    pool = make_pool(settings, features, metrics)
    serving = Serving(
        pool,
        settings.alias,
        runner,
        metrics,
        max_items=settings.max_items,
        routing=make_routing(settings, pool, runner, metrics),
        poll_s=settings.alias_poll_s,
    )
    events = EventLogs(settings, metrics.events)
    tokens = None if settings.tokens_file is None else Tokens.read(settings.tokens_file)
    limits = Limits(settings.max_items, settings.max_string_length, settings.max_history)
    admission = Admission(
        settings.max_inflight, backlog=runner.backlog, max_wait_ms=QUEUE_RATIO * settings.deadline_ms
    )
    tracer = open_tracer(settings.otlp_endpoint, ratio=settings.trace_ratio)
    observer = RequestObserver(
        metrics,
        access_log_ratio=settings.access_log_ratio,
        slow_request_ms=settings.slow_request_ms,
        tracer=tracer,
    )
    max_body_bytes = settings.max_body_bytes
    score = ScoreHandler(
        serving,
        limits=limits,
        admission=admission,
        max_body_bytes=max_body_bytes,
        observer=observer,
        exposures=events.exposures,
        may_explain=tokens is not None,
    )
    infer = InferHandler(serving, runner, limits=limits, max_body_bytes=max_body_bytes)
    feedback = FeedbackHandler(serving, events, limits=limits, max_body_bytes=max_body_bytes)

    def framed(handler: Handler, admission: Admission) -> Frame:
        return Frame(handler, serving, admission=admission, deadline_ms=settings.deadline_ms, tokens=tokens)

    control = ProblemMiddleware(_control_app(serving, features, events, tracer), serving)
    return Application(
        framed(score, admission),
        framed(infer, admission),
        framed(feedback, Admission(settings.max_inflight)),
        control,
        serving,
        events,
    )


def make_pool(settings: Settings, features: FeatureSources, metrics: Metrics) -> BundlePool:
    """The pool of one process, empty."""

    def load(bundle_id: str) -> LoadedBundle:
        return load_bundle(settings, features, bundle_id)

    def closed(loaded: LoadedBundle) -> None:
        metrics.close_bundle(loaded.version)
        metrics.reloads.open_bytes.set(pool.num_bytes)

    pool = BundlePool(
        ModelStore(settings.store), load, max_bytes=settings.max_bundles_bytes, on_closed=closed
    )
    return pool


def make_routing(
    settings: Settings, pool: BundlePool, runner: Runner, metrics: Metrics
) -> LiveRouting | None:
    """Routing by the file that the settings name, if they name one; serves nothing yet."""
    if settings.routing_file is None:
        return None
    return LiveRouting(
        settings.routing_file,
        pool,
        runner=runner,
        metrics=metrics,
        max_items=settings.max_items,
        poll_s=settings.routing_poll_s,
    )


def check_routing(settings: Settings, features: FeatureSources, loaded: LoadedBundle) -> RoutingTable:
    """The table that the settings' routing file makes; blocks while it loads what the file names.

    Args:
        settings: Name the file.
        features: Opens feature sources.
        loaded: The default bundle.

    Raises:
        RoutingError: The file is wrong, or its bundles cannot serve its domains.
        BundleRefused: A bundle that it names cannot be opened.
    """
    runner = Runner(inline_max_ms=settings.inline_max_ms, num_threads=1)
    metrics = Metrics(max_domain_labels=0)
    pool = make_pool(settings, features, metrics)
    routing = make_routing(settings, pool, runner, metrics)
    if routing is None:
        raise RoutingError("the settings name no routing file")
    pool.add(loaded)
    try:
        return routing.plan(Scorer(loaded, runner, max_items=settings.max_items)).table
    finally:
        routing.close()
        runner.close()


def load_bundle(settings: Settings, features: FeatureSources, reference: str | None = None) -> LoadedBundle:
    """A bundle on the feature source that the settings ask for; blocks.

    Args:
        settings: Where bundles are, and how to open them.
        features: Opens its feature source.
        reference: Alias or id; None takes that of the settings.

    Raises:
        ContractError: The store lacks the bundle, or it is damaged.
        StartupError: A graph does not open or fit, or golden rows differ.
    """
    return LoadedBundle.load(
        ModelStore(settings.store),
        reference or settings.alias,
        device=settings.device,
        unknown_domain=settings.unknown_domain,
        tolerance=settings.golden_tolerance,
        check_ids=settings.check_ids,
        open_source=features.open,
    )


def _control_app(
    serving: Serving, features: FeatureSources, events: EventLogs, tracer: RequestTracer | None = None
) -> FastAPI:
    """Docs, health, metadata and metrics."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await warm(app)
        serving.metrics.worker.start()
        await events.start()
        features.start()
        loading = asyncio.create_task(serving.load())
        yield
        await loading
        await events.close()
        features.close()
        serving.close()
        serving.metrics.worker.stop()
        if tracer is not None:
            await asyncio.to_thread(tracer.close)

    app = FastAPI(title=TITLE, description=DESCRIPTION, lifespan=lifespan)
    app.include_router(health_router(serving))
    app.include_router(v2_health_router(serving))
    app.include_router(model_router(serving))
    app.include_router(info_router(serving))
    plain_document = app.openapi

    def document() -> dict[str, Any]:
        loaded = None if serving.scorer is None else serving.scorer.loaded
        return complete(copy.deepcopy(plain_document()), loaded)

    app.openapi = document  # type: ignore[method-assign]
    app.add_exception_handler(ServiceError, _problem)
    return app


async def _problem(request: Request, error: Exception) -> Response:
    """Our own errors as problem documents."""
    if not isinstance(error, ServiceError):
        raise error
    content = problem_body(error, request.scope[REQUEST_ID], request.scope["path"])
    headers = {name.decode(): value.decode() for name, value in problem_headers(error)}
    return Response(content, error.status, headers, media_type=PROBLEM.decode())


def openapi_document(loaded: LoadedBundle | None) -> dict[str, Any]:
    """The document of `/openapi.json`, without a running service."""
    settings = Settings()
    metrics = Metrics()
    app = create_app(settings)
    app.serving.close()
    control = _control_app(
        app.serving, FeatureSources(settings, metrics.features), EventLogs(settings, metrics.events)
    )
    return complete(control.openapi(), loaded)


__all__ = ["Application", "check_routing", "create_app", "load_bundle", "make_routing", "openapi_document"]
