"""Traces of requests by OpenTelemetry, sent to a collector over OTLP/HTTP; an extra, and off by default.

Spans are made from measured times after the reply was sent, so tracing adds nothing to the time it tells
of. The caller's W3C `traceparent` decides whether a request is sampled, else a ratio does. Invariants: with
tracing off nothing of OpenTelemetry is imported; a collector that is slow or gone costs spans, never
requests.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlsplit

from service.errors import StartupError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

SERVICE_NAME: Final = "ctr-serve"
TRACES_PATH: Final = "/v1/traces"
EXPORT_TIMEOUT_S: Final = 2
CLOSE_TIMEOUT_MS: Final = 4000
CONTEXT_HEADERS: Final = (b"traceparent", b"tracestate")
MISSING_EXTRA: Final = (
    "otlp_endpoint is set, but OpenTelemetry is not installed: pip install 'ctr-domains[otel]'"
)

Attributes = Mapping[str, str | int | float | bool | tuple[str, ...]]
Headers = Iterable[tuple[bytes, bytes]]


class Stage(NamedTuple):
    """A part of a request.

    Attributes:
        name: Of the span.
        began_s: `time.perf_counter` seconds.
        ended_s: The same.
    """

    name: str
    began_s: float
    ended_s: float


class RequestTracer:
    """Makes spans of finished requests.

    Args:
        exporter: Where spans go, in batches, from a thread of its own.
        ratio: Share of the requests sampled of those that come without a trace.
    """

    def __init__(self, exporter: SpanExporter, *, ratio: float) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._processor = BatchSpanProcessor(exporter)
        provider = TracerProvider(
            sampler=ParentBasedTraceIdRatio(ratio),
            resource=Resource.create({"service.name": SERVICE_NAME}),
            shutdown_on_exit=False,
        )
        provider.add_span_processor(self._processor)
        self._tracer = provider.get_tracer(SERVICE_NAME)
        self._extract = TraceContextTextMapPropagator().extract
        self._inside = set_span_in_context
        self._kind = SpanKind.SERVER
        self._error = StatusCode.ERROR

    def record(
        self,
        name: str,
        *,
        headers: Headers,
        began_s: float,
        ended_s: float,
        attributes: Attributes,
        stages: Iterable[Stage] = (),
        failure: str | None = None,
    ) -> str | None:
        """Trace one finished request.

        Args:
            name: Of the span.
            headers: Of the request; may name the trace it belongs to.
            began_s: `time.perf_counter` seconds.
            ended_s: The same.
            attributes: Of the span.
            stages: Spans inside it.
            failure: Code of the problem when it failed on our side.

        Returns:
            The trace's id, 32 hex digits, when it was sampled.
        """
        carrier = {key.decode(): value.decode("latin-1") for key, value in headers if key in CONTEXT_HEADERS}
        # Both clocks are read here, so that a step of the wall clock cannot bend a span.
        now_ns, now_s = time.time_ns(), time.perf_counter()

        def wall(moment_s: float) -> int:
            return now_ns - round((now_s - moment_s) * 1e9)

        span = self._tracer.start_span(
            name,
            context=self._extract(carrier) if carrier else None,
            kind=self._kind,
            attributes=attributes,
            start_time=wall(began_s),
        )
        if not span.is_recording():
            return None
        parent = self._inside(span)
        for stage in stages:
            child = self._tracer.start_span(stage.name, context=parent, start_time=wall(stage.began_s))
            child.end(wall(stage.ended_s))
        if failure is not None:
            span.set_status(self._error, failure)
        span.end(wall(ended_s))
        return format(span.get_span_context().trace_id, "032x")

    def close(self) -> None:
        """Send what waits, within seconds; blocks."""
        self._processor.force_flush(CLOSE_TIMEOUT_MS)
        self._processor.shutdown()  # type: ignore[no-untyped-call]


def check_extra(endpoint: str | None) -> None:
    """See whether what tracing needs is there.

    Args:
        endpoint: URL of the collector; without one nothing is needed.

    Raises:
        StartupError: OpenTelemetry is not installed.
    """
    if endpoint is None:
        return
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter  # noqa: F401 - is it there?
    except ImportError:
        raise StartupError(MISSING_EXTRA) from None


def open_tracer(endpoint: str | None, *, ratio: float) -> RequestTracer | None:
    """A tracer that sends to a collector; None without one.

    Args:
        endpoint: URL of the collector, or of its path for traces.
        ratio: Share of requests sampled.

    Raises:
        StartupError: OpenTelemetry is not installed.
    """
    if endpoint is None:
        return None
    check_extra(endpoint)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    url = endpoint if urlsplit(endpoint).path.strip("/") else endpoint.rstrip("/") + TRACES_PATH
    return RequestTracer(OTLPSpanExporter(endpoint=url, timeout=EXPORT_TIMEOUT_S), ratio=ratio)


__all__ = ["RequestTracer", "Stage", "check_extra", "open_tracer"]
