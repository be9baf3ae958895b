"""Features from a real Redis: the same scores as embedded ones, one round trip, every status."""

import asyncio
import time

import numpy as np
import pytest

from service.contract.schema import Entity
from service.features.keys import KeySpace
from service.settings import Settings
from tests.support.redis_app import ask, figure, fill, now_ms, running_app

ITEMS = [f"i{n}" for n in range(40)]
HOUR_S = 3600


def run(small, url, use, *, event_ms=None, filled=True, **changes):
    """Fill Redis, run the app on it, and use it."""
    options = {"feature_timeout_ms": 2000, "deadline_ms": 5000, **changes}
    settings = Settings(
        store=small.store, feature_source="redis", redis_url=getattr(url, "url", url), **options
    )

    async def whole():
        if filled:
            await fill(small, settings, event_ms=event_ms)
        async with running_app(settings) as app:
            return await use(app)

    return asyncio.run(whole())


def mgets(client):
    return client.info("commandstats").get("cmdstat_mget", {}).get("calls", 0)


def expected(small, user=3, items=range(40), domain="home"):
    return small.expected_stored(domain, user, list(items))


@pytest.mark.parametrize("cache", [{}, {"near_cache_user_bytes": 0, "near_cache_item_bytes": 0}])
def test_scores_are_those_of_the_formula(small, server, client, cache):
    async def use(app):
        first = await ask(app, "u3", ITEMS)
        again = await ask(app, "u3", ITEMS[::-1], "music")
        doubled = await ask(app, "u3", ["i5", "i5", "i1", "nowhere", "i5"])
        anonymous = await ask(app, None, ITEMS)
        return first, again, doubled, anonymous

    first, again, doubled, anonymous = run(small, server, use, **cache)
    np.testing.assert_allclose(first["scores"], expected(small), atol=1e-6)
    np.testing.assert_allclose(again["scores"][::-1], expected(small, domain="music"), atol=1e-6)
    np.testing.assert_allclose(doubled["scores"], expected(small, items=[5, 5, 1, None, 5]), atol=1e-6)
    np.testing.assert_allclose(anonymous["scores"], expected(small, user=None), atol=1e-6)
    assert [reply["degraded"] for reply in (first, again, doubled, anonymous)] == [[]] * 4


def test_a_request_costs_one_round_trip_and_none_once_cached(small, server, client):
    async def use(app):
        await ask(app, "u3", ITEMS)
        once = mgets(client)
        await ask(app, "u3", ITEMS)
        await ask(app, "u3", [*ITEMS, "nowhere"])
        partly = mgets(client)
        await ask(app, "u3", [*ITEMS, "nowhere"])
        return once, partly, mgets(client), figure_of_cache(app)

    once, partly, last, counted = run(small, server, use)
    assert (once, partly, last) == (1, 2, 2)
    assert counted == {"hit": 40 + 40 + 41, "miss": 41, "joined": 0}


def figure_of_cache(app, group="item"):
    results = ("hit", "miss", "joined")
    return {r: figure(app, "ctr_near_cache_requests_total", group=group, result=r) for r in results}


def test_concurrent_requests_share_one_read(small, server, client):
    async def use(app):
        replies = await asyncio.gather(*(ask(app, f"u{n % 4}", ITEMS[n % 3 :]) for n in range(24)))
        return replies, mgets(client), figure_of_cache(app)

    replies, calls, counted = run(small, server, use)
    for n, reply in enumerate(replies):
        np.testing.assert_allclose(
            reply["scores"], expected(small, user=n % 4, items=range(n % 3, 40)), atol=1e-6
        )
    assert calls <= 4  # one with all items, and one for each further user
    assert counted["miss"] == 40
    assert counted["joined"] + counted["hit"] == sum(40 - n % 3 for n in range(24)) - 40


@pytest.mark.parametrize("policy", ["use", "default"])
def test_rows_past_their_age_are_stale_on_every_read(small, server, client, policy):
    async def use(app):
        replies = [await ask(app, "u3", ITEMS[:3]), await ask(app, "u3", ITEMS[:3])]
        reads = [figure(app, "ctr_feature_reads_total", group="item", status=s) for s in ("stale", "fresh")]
        return replies, reads

    replies, reads = run(
        small,
        server,
        use,
        event_ms=now_ms() - 2 * HOUR_S * 1000,
        feature_item_max_age_s=HOUR_S,
        feature_user_max_age_s=3 * HOUR_S,
        feature_stale=policy,
    )
    rows = [0, 1, 2] if policy == "use" else [None, None, None]
    for reply in replies:
        np.testing.assert_allclose(reply["scores"], expected(small, items=rows), atol=1e-6)
        assert reply["degraded"] == []  # old is not failed
    assert reads == [6, 0]


def key_of(small, entity, value):
    return KeySpace("ctr", small.schema.digest, entity).key(value)


def test_corrupt_blobs_are_counted_and_treated_as_missing(small, server, client):
    async def use(app):
        key = key_of(small, Entity.ITEM, "i1")
        blob = bytearray(client.get(key))
        blob[20] ^= 1
        client.set(key, bytes(blob))
        client.set(key_of(small, Entity.ITEM, "i2"), client.get(key_of(small, Entity.ITEM, "i3")))
        client.set(key_of(small, Entity.ITEM, "i4"), b"short")
        reply = await ask(app, "u3", ITEMS[:6])
        counts = {
            s: figure(app, "ctr_feature_reads_total", group="item", status=s)
            for s in ("fresh", "invalid", "missing", "failed")
        }
        return reply, counts

    reply, counts = run(small, server, use)
    np.testing.assert_allclose(reply["scores"], expected(small, items=[0, None, None, 3, None, 5]), atol=1e-6)
    assert counts == {"fresh": 3, "invalid": 3, "missing": 0, "failed": 0}
    assert reply["degraded"] == []


def test_rows_of_another_schema_are_not_seen(small, server, client):
    async def use(app):
        for key in client.keys("ctr:*"):
            client.rename(key, key.replace(small.schema.digest[:12].encode(), b"0" * 12))
        return await ask(app, "u3", ITEMS[:2])

    reply = run(small, server, use)
    np.testing.assert_allclose(reply["scores"], expected(small, None, [None, None]), atol=1e-6)


def test_updates_are_seen_after_the_near_caches_time(small, server, client):
    async def use(app):
        before = await ask(app, "u3", ["i1"])
        client.delete(key_of(small, Entity.ITEM, "i1"))
        cached = await ask(app, "u3", ["i1"])
        await asyncio.sleep(0.3)
        return before, cached, await ask(app, "u3", ["i1"])

    before, cached, after = run(small, server, use, near_cache_ttl_s=0.3)
    assert before["scores"] == cached["scores"]
    np.testing.assert_allclose(after["scores"], expected(small, items=[None]), atol=1e-6)


@pytest.mark.parametrize("jump_s", [-10 * 365 * 86400, 2 * HOUR_S])
def test_a_jump_of_the_wall_clock_changes_ages_and_nothing_else(small, server, client, monkeypatch, jump_s):
    async def use(app):
        await ask(app, "u3", ITEMS[:3])
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + jump_s)
        reply = await ask(app, "u3", ITEMS[:3])
        stale = figure(app, "ctr_feature_reads_total", group="item", status="stale")
        calls = mgets(client)
        await asyncio.sleep(0.4)
        await ask(app, "u3", ITEMS[:3])
        return reply, stale, calls, mgets(client)

    reply, stale, calls, later = run(small, server, use, feature_item_max_age_s=HOUR_S, near_cache_ttl_s=0.4)
    np.testing.assert_allclose(reply["scores"], expected(small, items=[0, 1, 2]), atol=1e-6)
    assert stale == (3 if jump_s > 0 else 0)  # a row from the future is as fresh as can be
    assert (calls, later) == (1, 2)  # the near cache keeps its own time


def test_error_replies_degrade_the_request_and_are_counted(small, server, client):
    async def use(app):
        client.execute_command("ACL", "SETUSER", "default", "-mget")
        try:
            reply = await ask(app, "u3", ITEMS[:2])
        finally:
            client.execute_command("ACL", "SETUSER", "default", "+mget")
        return (
            reply,
            figure(app, "ctr_feature_store_failures_total", cause="reply"),
            await ask(app, "u3", ITEMS[:2]),
        )

    refused, failures, after = run(small, server, use)
    assert refused["degraded"] == ["user_features", "item_features"]
    np.testing.assert_allclose(refused["scores"], expected(small, None, [None, None]), atol=1e-6)
    assert failures == 1
    assert after["degraded"] == []


def test_passwords_and_databases_are_used(small, server, client):
    client.execute_command("ACL", "SETUSER", "reader", "on", ">s3cret/", "~*", "+@all")
    url = f"redis://reader:s3cret%2F@127.0.0.1:{server.port}/5"

    async def use(app):
        return await ask(app, "u3", ITEMS[:2]), app.serving.scorer.loaded.source.describe()

    reply, shown = run(small, url, use)
    assert reply["degraded"] == []
    np.testing.assert_allclose(reply["scores"], expected(small, items=[0, 1]), atol=1e-6)
    assert "s3cret" not in shown
    assert f"127.0.0.1:{server.port}" in shown
    wrong, _ = run(small, url.replace("s3cret", "guess"), use, filled=False)
    assert wrong["degraded"] == ["user_features", "item_features"]
