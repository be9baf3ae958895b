"""Traces: spans of a request, whose trace they join, who is sampled; collectors that get them or are gone."""

import asyncio
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from typer.testing import CliRunner

from service import app as service_app
from service import cli
from service.errors import StartupError
from service.telemetry.trace import RequestTracer, Stage, open_tracer
from tests.support.asgi import ask, with_app
from tests.support.process import free_port

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
BODY = {"domain": "home", "user": {"id": "u1"}, "items": [{"id": "i1"}, {"id": "i2"}]}
STAGES = ["read", "decode", "features", "infer", "reply"]


def parent(*, sampled):
    return [(b"traceparent", f"00-{TRACE}-{PARENT}-{'01' if sampled else '00'}".encode())]


def spans_of(small, monkeypatch, *requests, ratio):
    """Spans of some requests to the app, each a body and headers."""
    exporter = InMemorySpanExporter()
    tracer = RequestTracer(exporter, ratio=ratio)
    monkeypatch.setattr(service_app, "open_tracer", lambda *_, **__: tracer)

    async def use(app):
        for content, headers in requests:
            await ask(app, content, headers=headers)

    with_app(small.store, use)
    tracer.close()
    return exporter.get_finished_spans()


def test_a_request_is_a_span_with_its_stages_inside(small, monkeypatch):
    before_ns = time.time_ns()
    *stages, score = spans_of(small, monkeypatch, (BODY, [(b"x-request-id", b"r1")]), ratio=1.0)
    assert [stage.name for stage in stages] == STAGES
    assert (score.name, score.kind, score.parent) == ("score", SpanKind.SERVER, None)
    assert dict(score.attributes) == {
        "request_id": "r1",
        "domain": "home",
        "num_items": 2,
        "bundle": small.bundle.bundle_id[:12],
        "arm": "none",
        "graph": "whole",
        "degraded": (),
        "http.response.status_code": 200,
    }
    assert before_ns <= score.start_time
    assert score.end_time <= time.time_ns()
    for stage in stages:
        assert stage.parent.span_id == score.context.span_id
        assert score.start_time <= stage.start_time <= stage.end_time <= score.end_time
    for first, second in pairwise(stages):
        assert first.end_time <= second.start_time + 1_000  # clocks are read in nanoseconds, as floats


def test_a_request_joins_the_callers_trace_and_its_decision_beats_the_ratio(small, monkeypatch):
    joined = spans_of(small, monkeypatch, (BODY, parent(sampled=True)), ratio=0.0)
    assert {format(span.context.trace_id, "032x") for span in joined} == {TRACE}
    assert format(joined[-1].parent.span_id, "016x") == PARENT
    assert spans_of(small, monkeypatch, (BODY, parent(sampled=False)), ratio=1.0) == ()


def test_without_a_trace_the_ratio_decides(small, monkeypatch):
    many = [(BODY, ())] * 60
    assert spans_of(small, monkeypatch, *many, ratio=0.0) == ()
    scores = [span for span in spans_of(small, monkeypatch, *many, ratio=0.5) if span.name == "score"]
    assert 10 < len(scores) < 50  # outside once in a million runs


def test_a_broken_traceparent_starts_a_trace_of_its_own(small, monkeypatch):
    spans = spans_of(small, monkeypatch, (BODY, [(b"traceparent", b"00-\xff-x")]), ratio=1.0)
    assert spans[-1].parent is None


def test_a_refusal_is_traced_and_only_our_failures_are_errors(small, monkeypatch):
    requests = [({**BODY, "domain": "nowhere"}, ()), (BODY, ())]
    refused, *_ = spans_of(small, monkeypatch, *requests, ratio=1.0)
    assert refused.attributes["code"] == "unknown_domain"
    assert refused.attributes["http.response.status_code"] == 404
    assert refused.status.status_code is StatusCode.UNSET


def test_a_failure_names_its_code():
    exporter = InMemorySpanExporter()
    tracer = RequestTracer(exporter, ratio=1.0)
    trace_id = tracer.record(
        "score",
        headers=(),
        began_s=1.0,
        ended_s=3.0,
        attributes={},
        stages=[Stage("x", 1.5, 2.0)],
        failure="late",
    )
    tracer.close()
    inner, outer = exporter.get_finished_spans()
    assert (outer.status.status_code, outer.status.description) == (StatusCode.ERROR, "late")
    assert format(outer.context.trace_id, "032x") == trace_id
    assert outer.end_time - outer.start_time == pytest.approx(2e9, abs=1e3)
    assert inner.start_time - outer.start_time == pytest.approx(5e8, abs=1e3)


class Collector(BaseHTTPRequestHandler):
    """Takes OTLP over HTTP."""

    got: list

    def do_POST(self):
        content = self.rfile.read(int(self.headers["content-length"]))
        self.got.append((self.path, self.headers["content-type"], content))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        """Nothing."""


@pytest.fixture
def collector():
    """A running collector: its URL, and what it got."""
    handler = type("Handler", (Collector,), {"got": []})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", handler.got
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("path", "asked"), [("", "/v1/traces"), ("/", "/v1/traces"), ("/own/path", "/own/path")]
)
def test_a_collector_gets_the_spans(collector, small, path, asked):
    url, got = collector
    tracers = []

    async def use(app):
        await ask(app, BODY, headers=parent(sampled=True))
        tracers.append(app)

    opened = open_tracer(url + path, ratio=0.0)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(service_app, "open_tracer", lambda *_, **__: opened)
        with_app(small.store, use)
    opened.close()
    ((where, media_type, content),) = got
    assert (where, media_type) == (asked, "application/x-protobuf")
    request = ExportTraceServiceRequest.FromString(content)
    (resource,) = request.resource_spans
    names = {entry.key: entry.value.string_value for entry in resource.resource.attributes}
    assert names["service.name"] == "ctr-serve"
    spans = [span for scope in resource.scope_spans for span in scope.spans]
    assert sorted(span.name for span in spans) == sorted([*STAGES, "score"])
    assert {span.trace_id.hex() for span in spans} == {TRACE}


def test_a_collector_that_is_gone_costs_spans_not_requests(small):
    opened = open_tracer(f"http://127.0.0.1:{free_port()}", ratio=1.0)

    async def use(app):
        return [(await ask(app, BODY))[0] for _ in range(20)]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(service_app, "open_tracer", lambda *_, **__: opened)
        assert with_app(small.store, use) == [200] * 20
    begun = time.monotonic()
    opened.close()
    assert time.monotonic() - begun < 10


def test_spans_that_wait_are_sent_when_the_app_ends(collector, small):
    """The lifespan closes the tracer that the settings ask for."""
    url, got = collector

    async def use():
        app = service_app.create_app(
            service_app.Settings(store=small.store, otlp_endpoint=url, trace_ratio=1.0, drain_pause_s=0)
        )
        turns = asyncio.Queue()
        await turns.put({"type": "lifespan.startup"})
        started, stopped = asyncio.Event(), asyncio.Event()

        async def send(message):
            (started if message["type"] == "lifespan.startup.complete" else stopped).set()

        life = asyncio.create_task(app({"type": "lifespan"}, turns.get, send))
        await started.wait()
        while not app.serving.scorer:
            await asyncio.sleep(0.01)
        await ask(app, BODY)
        await turns.put({"type": "lifespan.shutdown"})
        await stopped.wait()
        await life

    asyncio.run(use())
    assert len(got) == 1


def test_without_the_extra_the_start_says_what_to_install(monkeypatch, small):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    message = "otlp_endpoint is set, but OpenTelemetry is not installed: pip install 'ctr-domains[otel]'"
    with pytest.raises(
        StartupError, match="otlp_endpoint is set, but OpenTelemetry is not installed"
    ) as caught:
        open_tracer("http://127.0.0.1:4318", ratio=1.0)
    assert str(caught.value) == message
    monkeypatch.setenv("CTR_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    for command in ("check", "run"):
        result = CliRunner().invoke(cli.app, [command, "--store", str(small.store)])
        assert result.exit_code == 1
        assert "OpenTelemetry is not installed" in " ".join(result.output.split())


def test_tracing_that_is_off_imports_nothing_of_it(small):
    program = (
        "import sys; from service.app import create_app; from service.settings import Settings; "
        f"create_app(Settings(store={str(small.store)!r})); "
        "names = ('opentelemetry.sdk.trace', 'opentelemetry.exporter'); "
        "print([name for name in sys.modules if name.startswith(names)])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
