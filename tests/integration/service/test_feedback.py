"""Exposures and feedback over HTTP: what is on disk after replies, bad input, a drain, a kill."""

import json
import signal
import threading
import time

import httpx
import pytest

from service.contract.events import decode_exposure, decode_feedback
from tests.support.bundles import build_bundle
from tests.support.process import running

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return build_bundle(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("events")


@pytest.fixture(scope="module")
def service(small, folder):
    variables = {
        "CTR_EXPOSURE_DIR": str(folder / "exposures"),
        "CTR_FEEDBACK_DIR": str(folder / "feedback"),
        "CTR_EXPOSURE_FLUSH_S": "0.05",
        "CTR_DEADLINE_MS": "20000",
        "CTR_MAX_ITEMS": "50",
        "CTR_MAX_BODY_BYTES": "20000",
    }
    with running(small.store, folder, "--drain-pause-s", "0", **variables) as started:
        started.wait_until("/health/ready", 200)
        yield started


def post(service, path, body):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(service.url + path, content=content, headers=JSON, timeout=30)


def records(folder, decode):
    lines = [line for path in sorted(folder.glob("*.jsonl*")) for line in path.read_bytes().splitlines()]
    return [decode(line) for line in lines]


def feedback(**changes):
    return {"request_id": "r1", "items": [{"id": "i1", "click": 1}], **changes}


def wait_for(found, timeout_s=10.0):
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        if result := found():
            return result
        time.sleep(0.02)
    raise AssertionError("nothing appeared in time")


def test_a_scored_request_leaves_its_record(service, folder, small):
    body = {
        "domain": "home",
        "user": {"id": "u3"},
        "context": {"hour": 7},
        "items": [{"id": "i1"}, {"id": 2}],
    }
    again = {**body, "request_id": "again"}
    changed = {**body, "request_id": "changed", "user": {"id": "u3", "features": {"age": 44}}}
    before_ms = time.time() * 1000
    reply = post(service, "/score", {**body, "request_id": "mine"}).json()
    assert [post(service, "/score", other).status_code for other in (again, changed)] == [200, 200]

    def all_three():
        return (found := records(folder / "exposures", decode_exposure))[2:] and found

    found = {record.request_id: record for record in wait_for(all_three)}
    mine = found["mine"]
    assert (mine.domain, mine.user, mine.items, mine.context) == ("home", "u3", ["i1", "2"], {"hour": 7})
    assert mine.scores == reply["scores"]
    assert (mine.bundle, mine.graph) == (small.bundle.bundle_id, "whole")
    assert (mine.experiment, mine.arm, mine.unit, mine.reason, mine.degraded) == (None, None, None, None, [])
    assert before_ms - 1 <= mine.time_ms <= time.time() * 1000
    assert len(mine.features) == 16
    assert found["again"].features == mine.features != found["changed"].features


def test_refused_requests_leave_no_record(service, folder):
    count = len(records(folder / "exposures", decode_exposure))
    assert post(service, "/score", {"domain": "nowhere", "items": [{"id": 1}]}).status_code == 404
    time.sleep(0.2)
    assert len(records(folder / "exposures", decode_exposure)) == count


def test_feedback_is_on_disk_when_it_is_acknowledged(service, folder):
    now_ms = int(time.time() * 1000)
    items = [{"id": 7, "click": 1, "value": 2.5, "time_ms": now_ms}, {"id": "i8", "click": 0}]
    reply = post(service, "/feedback", {"request_id": "kept", "items": items})
    assert (reply.status_code, reply.json()) == (202, {"request_id": "kept", "accepted": 2})
    assert reply.headers["x-request-id"] == "kept"
    (record,) = [r for r in records(folder / "feedback", decode_feedback) if r.request_id == "kept"]
    assert [(i.id, i.click, i.value, i.time_ms) for i in record.items] == [
        ("7", 1, 2.5, now_ms),
        ("i8", 0, None, None),
    ]
    assert abs(record.received_ms - now_ms) < 60_000
    text = httpx.get(service.url + "/metrics").text
    assert 'ctr_feedback_requests_total{outcome="ok"} 1.0' in text
    assert 'ctr_feedback_items_total{click="1"} 1.0' in text


BAD = {
    "not json": (b"{", 400, "malformed_json", "truncated", None),
    "unknown field": (feedback(x=1), 422, "invalid_request", "unknown field `x`", "$"),
    "no request id": ({"items": []}, 422, "invalid_request", "missing required field `request_id`", "$"),
    "empty request id": (feedback(request_id=""), 422, "invalid_request", "is needed", "$.request_id"),
    "long request id": (feedback(request_id="x" * 257), 422, "too_long", "at most 256", "$.request_id"),
    "no items": (feedback(items=[]), 422, "no_items", "at least 1", "$.items"),
    "many items": (
        feedback(items=[{"id": n, "click": 0} for n in range(51)]),
        422,
        "too_many_items",
        "51 items were sent, at most 50",
        "$.items",
    ),
    "long item id": (
        feedback(items=[{"id": "x" * 300, "click": 0}]),
        422,
        "too_long",
        "300 characters",
        "$.items[0].id",
    ),
    "click of two": (
        feedback(items=[{"id": 1, "click": 2}]),
        422,
        "invalid_request",
        "2",
        "$.items[0].click",
    ),
    "click as text": (
        feedback(items=[{"id": 1, "click": "1"}]),
        422,
        "invalid_request",
        "Expected `int`",
        "$.items[0].click",
    ),
    "time in seconds": (
        feedback(items=[{"id": 1, "click": 1, "time_ms": 1_790_000_000}]),
        422,
        "invalid_request",
        "must be ms since 1970",
        "$.items[0].time_ms",
    ),
    "too large": (b" " * 20_001, 413, "body_too_large", "at most 20000", None),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_feedback_is_refused_with_the_place(service, folder, name):
    body, status, code, text, field = BAD[name]
    before = len(records(folder / "feedback", decode_feedback))
    reply = post(service, "/feedback", body)
    problem = reply.json()
    assert (reply.status_code, problem["code"]) == (status, code)
    assert text in problem["detail"]
    assert problem.get("field") == field
    assert reply.headers["content-type"] == "application/problem+json"
    assert len(records(folder / "feedback", decode_feedback)) == before


def test_other_methods_and_types_are_refused(service):
    got = httpx.get(service.url + "/feedback")
    assert (got.status_code, got.headers["allow"]) == (405, "POST")
    assert httpx.post(service.url + "/feedback", content=b"{}").status_code == 415


def test_openapi_describes_feedback(service):
    entry = httpx.get(service.url + "/openapi.json").json()["paths"]["/feedback"]["post"]
    assert sorted(entry["responses"]) == [
        "202",
        "400",
        "401",
        "404",
        "413",
        "415",
        "422",
        "429",
        "500",
        "503",
        "504",
    ]
    assert "feedback_unavailable" in entry["responses"]["503"]["description"]
    for example in entry["requestBody"]["content"]["application/json"]["examples"].values():
        assert post(service, "/feedback", example["value"]).status_code == 202


def test_a_kill_takes_back_nothing_that_was_acknowledged_and_a_drain_writes_the_rest(service, small, folder):
    acknowledged = []

    def send(sender):
        with httpx.Client(base_url=service.url, timeout=10) as client:
            for n in range(100_000):
                name = f"kill-{sender}-{n}"
                try:
                    reply = client.post("/feedback", json=feedback(request_id=name))
                except httpx.TransportError:
                    return
                if reply.status_code == 202:
                    acknowledged.append(name)

    senders = [threading.Thread(target=send, args=(number,)) for number in range(4)]
    for sender in senders:
        sender.start()
    wait_for(lambda: len(acknowledged) > 100, 30.0)
    service.process.send_signal(signal.SIGKILL)
    service.process.wait(10)
    for sender in senders:
        sender.join(10)
    (left,) = (folder / "feedback").glob("*.jsonl.open")
    with left.open("ab") as torn:
        torn.write(b'{"request_id": "torn')

    variables = {"CTR_EXPOSURE_DIR": str(folder / "exposures"), "CTR_FEEDBACK_DIR": str(folder / "feedback")}
    variables["CTR_EXPOSURE_FLUSH_S"] = "60"
    with running(small.store, folder, "--drain-pause-s", "0", **variables) as second:
        second.wait_until("/health/ready", 200)
        assert '"torn_bytes": 20' in second.log()
        body = {"domain": "home", "items": [{"id": "i1"}], "request_id": "last"}
        assert post(second, "/score", body).status_code == 200
        assert post(second, "/feedback", feedback(request_id="last")).status_code == 202
        assert second.terminate() == 0

    kept = {record.request_id for record in records(folder / "feedback", decode_feedback)}
    assert set(acknowledged) | {"last"} <= kept
    assert "last" in {record.request_id for record in records(folder / "exposures", decode_exposure)}
    assert not list(folder.rglob("*.open"))
