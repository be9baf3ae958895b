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


PLACES = [
    '{"domain":"home","items":[{"id":"i1"}],"context":{"hour":%s}}',
    '{"domain":"home","items":[{"id":"i1"}],"user":{"features":{"tastes":%s}}}',
    '{"domain":"home","items":[{"id":"i1"}],"user":{"history":[{"item":%s}]}}',
    '{"domain":"home","items":[{"id":"i1","features":{"price":%s}}]}',
    '{"domain":"home","items":{"id":["i1"],"features":{"vector":[%s]}}}',
]
DEPTHS = [*range(1, 40), *range(900, 1010)]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_no_depth_of_nesting_breaks_what_the_decoder_lets_through(small, place, opening, closing):
    async def use(app):
        return [
            (await ask(app, (place % (opening * depth + "1" + closing * depth)).encode()))[::2]
            for depth in DEPTHS
        ]

    answers = with_app(small.store, use, deadline_ms=20_000)
    by_depth = dict(zip(DEPTHS, answers, strict=True))
    assert {status for status, _ in answers} <= {200, 400, 422}
    assert by_depth[900][1]["detail"] == "a value is nested too deeply, at most 16 levels are taken"
    assert (by_depth[900][0], by_depth[900][1]["limit"]) == (422, 16)
    assert "nested too deeply" not in by_depth[10][1].get("detail", "")


def test_wide_values_are_refused_without_being_walked_through(small):
    wide = {"hour": [[0] * 1000] * 600}
    many = {f"k{n}": 1 for n in range(4097)}

    async def use(app):
        plain = {"domain": "home", "items": [{"id": "i1"}]}
        return [await ask(app, {**plain, "context": context}) for context in (wide, many)]

    (wide_status, _, wide_problem), (status, _, problem) = with_app(small.store, use, deadline_ms=20_000)
    assert (wide_status, wide_problem["field"]) == (422, "$.context.hour")
    assert len(wide_problem["detail"]) < 300
    assert (status, problem["code"], problem["limit"], problem["value"]) == (422, "too_long", 4096, 4097)
    assert "a list of 4097 values was sent at $.context" in problem["detail"]


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
