"""What `explain` says: status and age of stored features, the arm and its reason; and when it is refused."""

import asyncio

import pytest

from service.routing.assign import position
from service.settings import Settings
from tests.support.asgi import ask, with_app
from tests.support.bundles import build_bundle
from tests.support.redis_app import fill, now_ms, running_app
from tests.support.routing import body, build_three, experiment, reply_of, unit_of, write_routing
from tests.support.tokens import BEARER, write_tokens

HOUR_MS = 3_600_000
CONTROL, TREATMENT = unit_of("control"), unit_of("treatment")


@pytest.fixture
def tokens(tmp_path):
    return write_tokens(tmp_path)


def test_explain_without_a_tokens_file_is_forbidden_and_says_which_setting(small):
    status, _, problem = with_app(small.store, lambda app: ask(app, body(explain=True)))
    assert (status, problem["code"], problem["field"]) == (403, "forbidden", "$.explain")
    assert "explain is off" in problem["detail"]
    assert "CTR_TOKENS_FILE" in problem["detail"]


def test_explain_without_a_token_is_unauthorized_and_absent_unless_asked_for(small, tokens):
    async def use(app):
        return await ask(app, body(explain=True)), await reply_of(app, body(), BEARER)

    refused, plain = with_app(small.store, use, tokens_file=tokens)
    assert (refused[0], refused[2]["code"]) == (401, "unauthorized")
    assert "explain" not in plain


def test_rows_of_the_snapshot_are_as_old_as_the_bundle_says(tmp_path, tokens):
    build_bundle(
        tmp_path / "store", change_manifest=lambda m: m.update(feature_time_ms=now_ms() - 2 * HOUR_MS)
    )
    asked = body("u3", items=[{"id": "i1"}, {"id": "nowhere"}], explain=True)
    explained = with_app(tmp_path / "store", lambda app: reply_of(app, asked, BEARER), tokens_file=tokens)[
        "explain"
    ]

    assert explained["user"]["status"] == "fresh"
    assert explained["user"]["age_s"] == pytest.approx(7200, abs=30)
    assert explained["items"][0]["age_s"] == pytest.approx(7200, abs=30)
    assert explained["items"][1] == {"status": "missing", "age_s": None}


def test_redis_rows_have_their_own_age_and_status(small, server, client, tokens):
    settings = Settings(
        store=small.store,
        feature_source="redis",
        redis_url=server.url,
        feature_timeout_ms=2000,
        deadline_ms=5000,
        feature_item_max_age_s=3600,
        tokens_file=tokens,
    )

    async def whole():
        await fill(small, settings, event_ms=now_ms() - 3 * HOUR_MS)
        client.set(client.keys("*item:i2")[0], b"damaged")
        async with running_app(settings) as app:
            items = [{"id": name} for name in ("i1", "i2", "nowhere")]
            first = await reply_of(app, body("u3", items=items, explain=True), BEARER)
            cached = await reply_of(app, body("u3", items=items[:1], explain=True), BEARER)
            return first["explain"], cached["explain"]

    first, cached = asyncio.run(whole())
    assert [item["status"] for item in first["items"]] == ["stale", "invalid", "missing"]
    assert [item["age_s"] for item in first["items"][1:]] == [None, None]
    assert first["user"]["status"] == "fresh"  # users have no maximum age here
    for row in (first["user"], first["items"][0], cached["user"], cached["items"][0]):
        assert row["age_s"] == pytest.approx(3 * 3600, abs=30)


def test_the_arm_comes_with_its_reason_unit_and_position(tmp_path, tokens):
    build_three(tmp_path / "store")
    routing = write_routing(
        tmp_path / "routing.yaml", experiment(overrides={"qa": "treatment"}), override_header="x-ctr-arm"
    )

    async def use(app):
        async def explained(user, domain="home", *headers):
            return (await reply_of(app, body(user, domain, explain=True), BEARER, *headers))["explain"]

        return [
            (await explained(TREATMENT))["assignment"],
            (await explained("qa"))["assignment"],
            (await explained(CONTROL, "home", (b"x-ctr-arm", b"treatment")))["assignment"],
            await explained("u1", "music"),
        ]

    hashed, qa, asked, outside = with_app(tmp_path / "store", use, routing_file=routing, tokens_file=tokens)
    assert hashed == {
        "experiment": "ab",
        "arm": "treatment",
        "unit": TREATMENT,
        "position": position("s", TREATMENT),
        "reason": "hash",
    }
    assert (qa["unit"], qa["reason"], asked["arm"], asked["reason"]) == (
        "qa",
        "override",
        "treatment",
        "override",
    )
    assert outside["assignment"] is None
    assert (outside["graph"], outside["cluster"]) == ("cluster-1", 1)
