"""The ASGI app without sockets: overload, deadline, slow and leaving callers, crashes, zero-shot."""

import asyncio
import json

import pytest
from structlog.testing import capture_logs

from service.app import create_app
from service.scoring.clock import RunClock
from service.settings import Settings
from tests.support.bundles import build_bundle
from tests.support.tokens import BEARER, write_tokens

BODY = {"domain": "home", "items": [{"id": "i1"}]}


async def post(app, body=BODY, messages=None, headers=()):
    """One request; returns status, headers and JSON (None when nothing was sent)."""
    raw = json.dumps(body).encode()
    waiting = iter(
        [{"type": "http.request", "body": raw, "more_body": False}] if messages is None else messages
    )
    sent = []

    async def receive():
        message = next(waiting, None)
        if message is None:
            await asyncio.Event().wait()
        return message

    async def send(message):
        sent.append(message)

    head = [(b"content-type", b"application/json"), *headers]
    await app({"type": "http", "method": "POST", "path": "/score", "headers": head}, receive, send)
    if not sent:
        return None, {}, None
    return sent[0]["status"], dict(sent[0]["headers"]), json.loads(sent[1]["body"])


def run(store, use, **settings):
    async def whole():
        app = create_app(Settings(store=store, **settings))
        await app.serving.load()
        try:
            return await use(app)
        finally:
            app.serving.close()

    return asyncio.run(whole())


def test_requests_above_the_bound_get_429_at_once(small):
    async def use(app):
        unfinished = [{"type": "http.request", "body": b"{", "more_body": True}]
        slow = asyncio.create_task(post(app, messages=unfinished))
        await asyncio.sleep(0)
        refused = await post(app)
        return refused, await slow, await post(app)

    refused, slow, after = run(small.store, use, max_inflight=1, deadline_ms=100)
    assert (refused[0], refused[2]["code"], refused[1][b"retry-after"]) == (429, "overloaded", b"1")
    assert (slow[0], slow[2]["code"]) == (504, "deadline_exceeded")
    assert "the deadline of 100 ms passed at stage 'body'" in slow[2]["detail"]
    assert after[0] == 200


def test_a_caller_that_leaves_gets_nothing_and_frees_its_slot(small):
    async def use(app):
        left = await post(app, messages=[{"type": "http.disconnect"}])
        return left, await post(app), app.serving.metrics.render().decode()

    left, after, text = run(small.store, use, max_inflight=1)
    assert left[0] is None
    assert after[0] == 200
    assert 'outcome="disconnected"' in text


def test_a_header_can_only_shorten_the_deadline(small):
    async def use(app):
        def unfinished():
            return [{"type": "http.request", "body": b"{", "more_body": True}]

        shorter = await post(app, messages=unfinished(), headers=[(b"x-deadline-ms", b"20")])
        longer = await post(app, messages=unfinished(), headers=[(b"x-deadline-ms", b"60000")])
        return shorter, longer, await post(app, headers=[(b"x-deadline-ms", b"0.5")])

    shorter, longer, odd = run(small.store, use, deadline_ms=80)
    assert "the deadline of 20 ms passed at stage 'body'" in shorter[2]["detail"]
    assert "the deadline of 80 ms passed at stage 'body'" in longer[2]["detail"]
    assert (odd[0], odd[2]["field"]) == (422, "x-deadline-ms")
    assert "must be whole milliseconds, 1 or more, got '0.5'" in odd[2]["detail"]


def test_a_caller_that_leaves_while_it_waits_is_not_scored(small):
    runs = []

    async def use(app):
        for predictor in app.serving.scorer.loaded.predictors.values():
            score = predictor.score
            predictor.score = lambda rows, score=score: runs.append(1) or score(rows)
            predictor.clock = RunClock()
            predictor.clock.record(1, 0.8)  # two such runs do not share an iteration of the loop
        whole = {"type": "http.request", "body": json.dumps(BODY).encode(), "more_body": False}
        return await asyncio.gather(post(app), post(app, messages=[whole, {"type": "http.disconnect"}]))

    (status, _, _), left = run(small.store, use)
    assert (status, left[0], len(runs)) == (200, None, 1)


def test_a_crash_is_500_without_its_text_and_with_its_log(small):
    async def use(app):
        def explode(rows):
            raise ZeroDivisionError("secret")

        for predictor in app.serving.scorer.loaded.predictors.values():
            predictor.score = explode
        return await post(app, {**BODY, "request_id": "r-1"})

    with capture_logs() as records:
        status, _, problem = run(small.store, use)
    assert (status, problem["code"], problem["request_id"]) == (500, "internal", "r-1")
    assert "secret" not in json.dumps(problem)
    assert "an unexpected error; the log has its cause" in problem["detail"]
    failed = [record for record in records if record["event"] == "score_failed"]
    assert [record["request_id"] for record in failed] == ["r-1"]
    assert isinstance(failed[0]["exc_info"], ZeroDivisionError)


def test_before_loading_the_answer_is_503(small):
    async def use():
        app = create_app(Settings(store=small.store))
        answer = await post(app)
        app.serving.close()
        return answer

    status, headers, problem = asyncio.run(use())
    assert (status, problem["code"], headers[b"retry-after"]) == (503, "not_ready", b"1")
    assert problem["detail"] == "the bundle is being loaded and verified"


def test_an_unexpected_load_failure_is_not_shown(small):
    async def use():
        app = create_app(Settings(store=small.store))
        app.serving.pool.open = lambda ids: 1 / 0
        await app.serving.load()
        app.serving.close()
        return app.serving

    serving = asyncio.run(use())
    assert (serving.state, serving.reason) == (
        "failed",
        "the bundle could not be loaded; the log has the cause",
    )


@pytest.mark.parametrize("how", ["bundle", "setting"])
def test_zero_shot_scores_unlisted_domains_by_the_fallback_row(tmp_path, how):
    built = build_bundle(tmp_path, policy="zero_shot" if how == "bundle" else "reject")
    policy = "manifest" if how == "bundle" else "zero_shot"
    body = {"domain": "new", "items": [{"id": "i1"}], "explain": True}
    tokens = write_tokens(tmp_path)
    status, _, reply = run(
        tmp_path, lambda app: post(app, body, headers=[BEARER]), unknown_domain=policy, tokens_file=tokens
    )
    assert status == 200
    assert reply["scores"] == pytest.approx(built.expected_stored("new", None, [1]).tolist(), abs=1e-6)
    assert (reply["explain"]["domain"], reply["explain"]["domain_row"]) == ("unknown", 3)
    assert reply["explain"]["user"] == {"status": "anonymous", "age_s": None}
    assert reply["explain"]["experts_kept"] is None


def test_rows_may_name_different_features(small):
    items = [{"id": "i1", "features": {"price": 2.0}}, {"id": "i2"}, {"id": "i3", "features": {"tag": "t"}}]
    plain = {"domain": "home", "items": [{"id": "i1"}, {"id": "i2"}, {"id": "i3"}]}

    async def use(app):
        return (await post(app, {**BODY, "items": items}))[2], (await post(app, plain))[2]

    mixed, stored = run(small.store, use)
    assert mixed["scores"][1] == stored["scores"][1]
    assert mixed["scores"][0] != stored["scores"][0]
    assert mixed["scores"][2] != stored["scores"][2]


def test_a_wrong_value_in_some_rows_is_found_in_its_row(small):
    items = [{"id": "i1"}, {"id": "i2"}, {"id": "i3", "features": {"price": "x"}}]
    status, _, problem = run(small.store, lambda app: post(app, {**BODY, "items": items}))
    assert (status, problem["field"]) == (422, "$.items[2].features.price")


def test_while_draining_replies_close_their_connection(small):
    async def use(app):
        app.serving.begin_drain()
        return await post(app)

    status, headers, _ = run(small.store, use)
    assert (status, headers[b"connection"]) == (200, b"close")


def test_a_body_above_the_limit_in_one_piece_is_refused_at_once(small):
    whole = [{"type": "http.request", "body": b" " * 101, "more_body": False}]
    status, _, problem = run(small.store, lambda app: post(app, messages=whole), max_body_bytes=100)
    assert (status, problem["code"], problem["value"]) == (413, "body_too_large", 101)
