"""What is logged of requests: JSON lines with id, version and arm; some slow requests, with their stages."""

import io
import json
import logging
import math
import warnings
from functools import partial

import httpx
import pytest
import structlog

from service.api import observe
from service.scoring.predictor import Predictor
from service.telemetry.log import configure_logging, get_logger
from tests.support.asgi import ask, with_app
from tests.support.process import running
from tests.support.routing import body, build_three, experiment, unit_of, write_routing

BODY = {"domain": "home", "user": {"id": "u1"}, "items": [{"id": "i1"}, {"id": "i2"}]}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build_three(tmp_path_factory.mktemp("store"))


@pytest.fixture
def store(built):
    return built["stable"].store


@pytest.fixture
def records():
    """Logs as the service does; call it for the records since the last call, each of them a line of JSON."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    configure_logging("debug")
    written = io.BytesIO()
    root.handlers[0].setStream(io.TextIOWrapper(written, encoding="utf-8", write_through=True))
    logging.getLogger("asyncio").setLevel(logging.WARNING)

    def read():
        lines = written.getvalue().decode().splitlines()
        written.seek(0)
        written.truncate()
        return [json.loads(line, parse_constant=pytest.fail) for line in lines]

    yield read
    root.handlers, root.level = handlers, level
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


def with_header(request_id):
    return [(b"x-request-id", request_id.encode())]


def test_every_line_about_a_request_is_json_with_its_id_version_and_arm(
    built, store, records, tmp_path, monkeypatch
):
    """A scored, a slow, a refused and a crashed request, in an arm of an experiment and outside."""
    routing = write_routing(tmp_path / "routing.yaml", experiment())
    treated = unit_of("treatment")

    async def use(app):
        await ask(app, body(treated), headers=with_header("in-arm"))
        await ask(app, body(treated, domain="sport"), headers=with_header("outside"))
        await ask(app, body(treated, context={"hour": [1, 2]}), headers=with_header("refused"))
        await ask(app, body(treated, domain="nowhere"), headers=with_header("unlisted"))
        with monkeypatch.context() as patched:
            patched.setattr(Predictor, "score", partial(_fail, "a secret\nof two lines"))
            await ask(app, body(treated), headers=with_header("crashed"))

    settings = {"access_log_ratio": 1.0, "slow_request_ms": 0.001, "routing_file": routing}
    with_app(store, use, **settings)
    about = [record for record in records() if "request_id" in record]
    assert all({"version", "arm", "level", "logger", "timestamp", "event"} <= set(record) for record in about)
    told = {(record["request_id"], record["event"]): record for record in about}
    versions = {alias: bundle.bundle.bundle_id[:12] for alias, bundle in built.items()}
    who = {key: (record["version"], record["arm"]) for key, record in told.items()}
    assert who == {
        ("in-arm", "slow_request"): (versions["canary"], "ab/treatment"),
        ("in-arm", "scored"): (versions["canary"], "ab/treatment"),
        ("outside", "scored"): (versions["stable"], "none"),
        ("refused", "refused"): (versions["canary"], "ab/treatment"),
        ("unlisted", "refused"): (versions["stable"], "none"),
        ("crashed", "score_failed"): (versions["canary"], "ab/treatment"),
        ("crashed", "refused"): (versions["canary"], "ab/treatment"),
    }
    scored = told["in-arm", "scored"]
    assert {name: scored[name] for name in ("status", "domain", "num_items", "graph", "degraded")} == {
        "status": 200,
        "domain": "home",
        "num_items": 2,
        "graph": "whole",
        "degraded": [],
    }
    assert told["unlisted", "refused"]["code"] == "unknown_domain"
    assert "a secret\nof two lines" in told["crashed", "score_failed"]["exception"]


def _fail(text, *_, **__):
    raise RuntimeError(text)


def test_slow_requests_are_told_with_their_stages_one_in_a_while(store, records, monkeypatch):
    async def use(app):
        for number in range(5):
            await ask(app, BODY, headers=with_header(f"slow-{number}"))
        monkeypatch.setattr(observe, "SLOW_LOG_PAUSE_S", 0.0)
        await ask(app, BODY, headers=with_header("later"))

    with_app(store, use, slow_request_ms=0.001)
    first, later = [record for record in records() if record["event"] == "slow_request"]
    assert (first["request_id"], first["num_untold"]) == ("slow-0", 0)
    assert (later["request_id"], later["num_untold"]) == ("later", 4)
    stages = [first[f"{stage}_ms"] for stage in ("read", "decode", "features", "infer", "reply")]
    assert all(stage >= 0 for stage in stages)
    assert 0.5 * first["took_ms"] < sum(stages) <= first["took_ms"] + 0.005
    assert first["level"] == "warning"


def test_a_slow_refusal_is_told_too(store, records):
    async def use(app):
        await ask(app, {**BODY, "domain": "nowhere"}, headers=with_header("slow"))

    with_app(store, use, slow_request_ms=0.001)
    (slow,) = [record for record in records() if record["event"] == "slow_request"]
    assert (slow["request_id"], slow["code"], slow["status"]) == ("slow", "unknown_domain", 404)


@pytest.mark.parametrize("settings", [{}, {"slow_request_ms": 0.0}])
def test_requests_are_quiet_unless_asked_for(store, records, settings):
    async def use(app):
        records()
        await ask(app, BODY)
        return records()

    assert with_app(store, use, **settings) == []


def test_whatever_is_logged_is_a_line_of_json(records):
    log = get_logger("test")
    log.info("odd", nan=math.nan, far=-math.inf, thing=object(), text="a\nb\udc80", raw=b"\xff")
    logging.getLogger("library").warning("about %s", "x")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("mind\nthe gap", stacklevel=1)
    odd, library, warned = records()
    assert (odd["nan"], odd["far"], odd["text"]) == ("nan", "-inf", "a\nb\udc80")
    assert (library["event"], library["logger"], library["level"]) == ("about x", "library", "warning")
    assert warned["logger"] == "py.warnings"
    assert "mind\nthe gap" in warned["event"]


def test_a_real_process_writes_nothing_but_lines_of_json(small, tmp_path):
    with running(small.store, tmp_path, "--drain-pause-s", "0", CTR_ACCESS_LOG_RATIO="1") as service:
        service.wait_until("/health/ready", 200)
        httpx.post(service.url + "/score", json=BODY, headers={"x-request-id": "seen"})
        httpx.post(service.url + "/score", content=b"{", headers={"content-type": "application/json"})
        assert service.terminate() == 0
        lines = [json.loads(line) for line in service.log().splitlines()]
    events = [line["event"] for line in lines]
    assert {"listening", "bundle_ready", "scored", "refused", "drain_begun"} <= set(events)
    (scored,) = [line for line in lines if line["event"] == "scored"]
    assert (scored["request_id"], scored["version"]) == ("seen", small.bundle.bundle_id[:12])
