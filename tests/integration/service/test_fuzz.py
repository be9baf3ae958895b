"""Hostile requests: a few thousand through the app in this process, and that the judge would see a fault."""

import asyncio
import json

import pytest
from structlog.testing import capture_logs

from loadtests.fuzz import DEADLINE_MS, MAX_GROWTH_BYTES, Outcome, fuzz, judge, valid_requests
from loadtests.hostile import Generator, Hostile
from tests.support.asgi import ask, with_app

REQUESTS = 3000


def test_thousands_of_hostile_requests_do_no_harm(small):
    with capture_logs():  # printing one record of each takes longer than all the requests
        outcome = asyncio.run(fuzz(small.store, count=REQUESTS, seed=1))
    assert not outcome.wrong
    assert sum(outcome.statuses.values()) == REQUESTS
    assert set(outcome.statuses) <= {0, 200, 202, 400, 404, 405, 413, 415, 422, 504}
    assert min(outcome.statuses[status] for status in (200, 202, 400, 422)) > 20
    assert outcome.slowest_ms < DEADLINE_MS
    assert outcome.growth_bytes < MAX_GROWTH_BYTES


def test_what_is_damaged_was_valid(small):
    async def use(app):
        valid = valid_requests(app.serving.require()[0].loaded)
        return [
            (path, (await ask(app, body, path=path))[0]) for path, bodies in valid.items() for body in bodies
        ]

    answered = with_app(small.store, use, feedback_dir=None)
    assert {status for path, status in answered if path != "/feedback"} == {200}
    assert {path.rsplit("/", 1)[-1] for path, _ in answered} == {"score", "feedback", "infer"}


def test_the_same_seed_gives_the_same_requests():
    valid = {"/score": [{"domain": "home", "items": [{"id": "i1"}]}], "/x": [{"a": [1]}]}
    first, again = (list(Generator(valid, seed=3).requests(200)) for _ in range(2))
    assert first == again
    assert list(Generator(valid, seed=4).requests(200)) != first
    assert {hostile.kind.split(",")[0] for hostile in first} >= {
        "truncated",
        "deep",
        "duplicate key",
        "spliced",
    }


@pytest.mark.parametrize(
    ("status", "body", "seen"),
    [
        (500, {"detail": "x"}, "status 500"),
        (422, {"detail": "ValueError: x"}, "tells of 'Error:'"),
        (422, {"detail": 'File "/a/b"'}, "tells of"),
        (400, "plain text", "no problem document"),
    ],
)
def test_the_judge_sees_what_must_not_happen(status, body, seen):
    raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    sent = [{"type": "http.response.start", "status": status}, {"type": "http.response.body", "body": raw}]
    hostile = Hostile("k", "/score", [], [{"type": "http.request", "body": b"{}"}])
    outcome = Outcome()
    judge(hostile, sent, outcome)
    assert seen in outcome.wrong[0]
    twice = Outcome()
    judge(hostile, [*sent, *sent], twice)
    assert any("not one whole reply" in reason for reason in twice.wrong)
    silent = Outcome()
    judge(hostile, [], silent)
    assert "no reply" in silent.wrong[0]
