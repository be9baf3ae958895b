"""The default bundle changes while the app serves: alias moved, broken, damaged, refused by the routing."""

import asyncio
import gc
import json
import threading
import time
import weakref
from functools import partial

import pytest
from structlog.testing import capture_logs

from service.contract.store import ModelStore
from service.scoring.predictor import Predictor
from tests.support.asgi import ask, with_app
from tests.support.redis_app import figure
from tests.support.reloads import BODY, point, served, until
from tests.support.routing import build_three, experiment, write_routing

NEVER_S = 1000.0


@pytest.fixture
def built(tmp_path):
    """Bundles `stable`, `canary` and `hier` in a store of the test's own."""
    return build_three(tmp_path / "models")


@pytest.fixture
def store(built):
    return built["stable"].store


@pytest.fixture
def write(tmp_path):
    """Writes the routing file; returns its path."""
    return partial(write_routing, tmp_path / "routing.yaml")


def damage(built):
    """Change one byte of a bundle's weights."""
    file = built.bundle.path / "graphs/whole.weights"
    raw = bytearray(file.read_bytes())
    raw[40] ^= 1
    file.write_bytes(raw)


async def ready(app):
    return (await ask(app, {}, path="/health/ready", method="GET"))[2]


def test_a_moved_alias_is_followed_while_requests_come(store, built):
    names = {one.bundle.bundle_id: name for name, one in built.items()}
    expected = {
        one.bundle.bundle_id: one.expected_stored("home", 1, [1, 2, 3]).tolist() for one in built.values()
    }
    order = []

    async def use(app):
        async def keep_asking():
            while True:
                bundle, scores = await served(app)
                assert scores == pytest.approx(expected[bundle], abs=1e-6)
                if order[-1:] != [names[bundle]]:
                    order.append(names[bundle])
                await asyncio.sleep(0)

        asking = asyncio.create_task(keep_asking())
        for name in ("canary", "hier", "stable"):
            ModelStore(store).set_alias("stable", built[name].bundle.bundle_id)
            await until(lambda name=name: order[-1:] == [name] or asking.done())
        asking.cancel()
        return figure(app, "ctr_bundle_reloads_total", result="loaded")

    # The alias of `stable` ends where it began: that bundle was closed and is opened anew.
    assert with_app(store, use, alias_poll_s=0.02) == 4
    assert order == ["stable", "canary", "hier", "stable"]


BROKEN = {
    "nowhere": (lambda store, _: point(store, stable="0" * 64), "bundle 'stable' (000000000000): "),
    "gone": (lambda store, _: (store / "aliases.json").write_text("{}"), "has no bundle 'stable'"),
    "missing": (lambda store, _: (store / "aliases.json").unlink(), "has no bundle 'stable'"),
    "half": (lambda store, _: (store / "aliases.json").write_text('{"sta'), "cannot be read as JSON"),
    "damaged": (
        lambda store, built: (damage(built["canary"]), point(store, stable=built["canary"].bundle.bundle_id)),
        "whole.weights: is damaged: sha256",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_leaves_the_last_good_bundle_and_is_tried_again_when_it_changes(store, built, name):
    breaks, reason = BROKEN[name]
    good = {alias: one.bundle.bundle_id for alias, one in built.items()}

    async def use(app):
        before = await served(app)
        breaks(store, built)
        await until(lambda: app.serving.refused is not None)
        told, attempt = await ready(app), app.serving.last_reload
        await asyncio.sleep(0.2)  # ten looks
        unchanged = app.serving.last_reload is attempt
        again = await app.serving.reload_all()
        assert await served(app) == before
        stale = figure(app, "ctr_bundle_stale_workers")
        point_back = {**good, "stable": good["hier"]}
        (store / "aliases.json").write_text(json.dumps(point_back))
        await until(lambda: app.serving.version == good["hier"][:12])
        return told, unchanged, again, stale, await ready(app), figure(app, "ctr_bundle_stale_workers")

    with capture_logs() as records:
        told, unchanged, again, stale, after, fresh = with_app(store, use, alias_poll_s=0.02)
    assert (told["status"], told["bundle"]) == ("ready", good["stable"])
    assert told["reload"]["state"] == "last_good"
    assert reason in told["reload"]["reason"]
    assert unchanged
    assert (again.result, again.bundle) == ("refused", good["stable"])
    assert reason in again.reason
    assert (stale, fresh) == (1, 0)
    assert after["reload"] == {"state": "current"}
    refused = [record for record in records if record["event"] == "bundle_refused"]
    assert [record["serves"] for record in refused] == [good["stable"][:12]] * 2


def test_an_alias_put_back_is_current_again_without_loading_anything(store, built):
    async def use(app):
        loaded = app.serving.scorer.loaded
        point(store, stable="0" * 64)
        refused = await app.serving.reload()
        point(store, stable=built["stable"].bundle.bundle_id)
        back = await app.serving.reload()
        return refused.result, back.result, app.serving.refused, app.serving.scorer.loaded is loaded

    assert with_app(store, use, alias_poll_s=0) == ("refused", "unchanged", None, True)


def test_a_service_that_could_not_start_becomes_ready_when_the_alias_is_repaired(store, built):
    damage(built["stable"])

    async def use(app):
        state, told = app.serving.state, await ready(app)
        point(store, stable=built["canary"].bundle.bundle_id)
        await until(lambda: app.serving.state == "ready")
        return state, told, (await served(app))[0]

    state, told, bundle = with_app(store, use, alias_poll_s=0.02)
    assert (state, told["status"], bundle) == ("failed", 503, built["canary"].bundle.bundle_id)
    assert "is damaged" in told["detail"]


def test_a_service_that_starts_with_a_bad_routing_file_becomes_ready_when_it_is_repaired(store, write):
    async def use(app):
        told = await ready(app)
        write(experiment())
        await until(lambda: app.serving.state == "ready")
        return told, app.serving.pool.shown(), await ready(app)

    path = write(experiment(arms=[{"name": "a", "share": 2.0}]))
    told, shown, after = with_app(store, use, alias_poll_s=0.02, routing_file=path)
    assert (told["status"], told["code"]) == (503, "not_ready")
    assert "share" in told["detail"]
    assert sorted(one.holders for one in shown) == [("default",), ("routing",)]
    assert after["routing"]["state"] == "current"


def test_a_request_in_flight_keeps_its_bundle_and_then_the_bundle_is_gone(store, built, monkeypatch):
    old = built["stable"].bundle.bundle_id

    async def use(app):
        loaded = app.serving.scorer.loaded
        session, mapped = weakref.ref(loaded.predictors["whole"]), weakref.ref(loaded.source.items._ints)
        del loaded
        begun, released = threading.Event(), threading.Event()
        score = Predictor.score

        def wait(self, rows):
            if self is session():
                begun.set()
                released.wait(30)
            return score(self, rows)

        monkeypatch.setattr(Predictor, "score", wait)
        asking = asyncio.create_task(served(app))
        await asyncio.to_thread(begun.wait, 30)
        point(store, stable=built["canary"].bundle.bundle_id)
        changed = await app.serving.reload()
        during = {one.bundle_id: (one.holders, one.leases) for one in app.serving.pool.shown()}
        new = (await served(app))[0]
        released.set()
        answered = (await asking)[0]
        del asking
        after = [one.bundle_id for one in app.serving.pool.shown()]
        await until(lambda: session() is None and mapped() is None)
        return changed.result, during, new, answered, after, figure(app, "ctr_bundle_open_bytes")

    gc.collect()
    gc.disable()  # what is left alive by a cycle would show
    try:
        result, during, new, answered, after, num_bytes = with_app(
            store, use, alias_poll_s=0, deadline_ms=60_000, inline_max_ms=0, ort_threads=2
        )
    finally:
        gc.enable()
    canary = built["canary"].bundle.bundle_id
    assert (result, new, answered, after) == ("loaded", canary, old, [canary])
    assert during == {old: ((), 1), canary: (("default",), 0)}
    files = [*(built["canary"].bundle.path / "graphs").iterdir()]
    files += (built["canary"].bundle.path / "features").iterdir()
    assert num_bytes == sum(file.stat().st_size for file in files)


def test_default_and_arm_share_a_bundle_and_the_plain_arm_follows_the_default(store, built, write):
    canary = built["canary"].bundle.bundle_id

    async def use(app):
        point(store, stable=canary)
        changed = await app.serving.reload()
        return changed.result, app.serving.pool.shown(), (await served(app))[0], await ready(app)

    arms = [{"name": "control", "share": 1.0}, {"name": "side", "share": 0.0, "bundle": "canary"}]
    path = write(experiment(arms=arms))
    result, shown, bundle, told = with_app(
        store, use, alias_poll_s=0, routing_poll_s=NEVER_S, routing_file=path
    )
    assert (result, bundle, told["bundle"]) == ("loaded", canary, canary)
    assert [(one.bundle_id, one.holders) for one in shown] == [(canary, ("default", "routing"))]


def test_a_default_that_the_routing_cannot_use_is_refused_until_the_routing_changes(store, built, write):
    hier, canary = built["hier"].bundle.bundle_id, built["canary"].bundle.bundle_id
    point(store, stable=hier)  # scores domains that it does not list; `canary` rejects them
    plain = [{"name": "control", "share": 1.0}]

    async def use(app):
        point(store, stable=canary)
        await until(lambda: app.serving.refused is not None)
        reason, kept = app.serving.refused.reason, (await served(app))[0]
        write(experiment(domains=["home"], arms=plain))
        await until(lambda: app.serving.version == canary[:12])
        return kept, reason, (await ready(app))["reload"]

    path = write(experiment(domains=["home", "tab_9"], arms=plain))
    kept, reason, state = with_app(store, use, alias_poll_s=0.02, routing_poll_s=0.02, routing_file=path)
    assert kept == hier
    assert "domain 'tab_9': experiment 'ab': the default, bundle 'stable'" in reason
    assert state == {"state": "current"}


def test_default_and_routing_that_only_go_together_change_together(store, built, write):
    hier, canary = built["hier"].bundle.bundle_id, built["canary"].bundle.bundle_id
    plain = [{"name": "control", "share": 1.0}]

    async def use(app):
        write(experiment(name="new", domains=["tab_9"], arms=plain))
        point(store, stable=hier)
        done = await app.serving.reload()
        status, _, reply = await ask(app, {**BODY, "domain": "tab_9"})
        return done.result, status, reply["experiment"], reply["model"]["bundle"]

    point(store, stable=canary)
    path = write(experiment(name="old", domains=["home"], arms=plain))
    settings = {"alias_poll_s": 0, "routing_poll_s": NEVER_S, "routing_file": path}
    assert with_app(store, use, **settings) == ("loaded", 200, "new", hier)


def test_a_broken_routing_file_does_not_keep_the_default_where_it_is(store, built, write):
    async def use(app):
        path.write_text("version: 1\nexperiments: oops\n")
        point(store, stable=built["hier"].bundle.bundle_id)
        done = await app.serving.reload_all()
        return done.result, (await served(app))[0], await ready(app)

    path = write(experiment(arms=[{"name": "control", "share": 1.0}]))
    result, bundle, told = with_app(store, use, alias_poll_s=0, routing_poll_s=NEVER_S, routing_file=path)
    assert (result, bundle) == ("loaded", built["hier"].bundle.bundle_id)
    assert (told["reload"]["state"], told["routing"]["state"]) == ("current", "last_good")


def test_a_bundle_above_the_memory_bound_is_refused_and_the_last_good_stays(store, built):
    async def use(app):
        num_bytes = app.serving.pool.num_bytes
        point(store, stable=built["canary"].bundle.bundle_id)
        refused = await app.serving.reload()
        return num_bytes, refused, (await served(app))[0]

    async def size(app):
        return app.serving.pool.num_bytes

    one = with_app(store, size)
    num_bytes, refused, bundle = with_app(store, use, alias_poll_s=0, max_bundles_bytes=2 * one - 1)
    assert (num_bytes, bundle) == (one, built["stable"].bundle.bundle_id)
    assert f"that is {2 * one}, above max_bundles_bytes ({2 * one - 1})" in refused.reason


@pytest.mark.parametrize("jump_s", [-3600, 3600])
def test_a_jump_of_the_wall_clock_moves_no_deadline_and_no_reload(store, built, monkeypatch, jump_s):
    now, now_ns = time.time, time.time_ns

    async def use(app):
        asked = asyncio.create_task(ask(app, BODY))
        monkeypatch.setattr(time, "time", lambda: now() + jump_s)
        monkeypatch.setattr(time, "time_ns", lambda: now_ns() + jump_s * 10**9)
        replies = [await asked, *[await ask(app, BODY) for _ in range(20)]]
        begun = time.monotonic()
        point(store, stable=built["canary"].bundle.bundle_id)
        await until(lambda: app.serving.version == built["canary"].bundle.bundle_id[:12])
        return {reply[0] for reply in replies}, time.monotonic() - begun, (await ready(app))["status"]

    codes, took_s, status = with_app(store, use, alias_poll_s=0.02, deadline_ms=5000)
    assert (codes, status) == ({200}, "ready")
    assert took_s < 30


def test_while_it_drains_nothing_is_reloaded(store, built):
    async def use(app):
        app.serving.begin_drain()
        point(store, stable=built["canary"].bundle.bundle_id)
        refused = await app.serving.reload()
        return refused.result, refused.reason, (await served(app))[0]

    assert with_app(store, use, alias_poll_s=0) == (
        "refused",
        "the process is draining",
        built["stable"].bundle.bundle_id,
    )


@pytest.mark.parametrize("part", ["load", "swap"])
def test_an_unexpected_failure_of_a_reload_keeps_the_last_good_and_shows_nothing(
    store, built, monkeypatch, part
):
    async def use(app):
        if part == "load":
            monkeypatch.setattr(app.serving.pool, "_load", lambda bundle_id: 1 / 0)
        else:
            monkeypatch.setattr("service.serving.bundle_metrics", lambda *_: 1 / 0)
        point(store, stable=built["canary"].bundle.bundle_id)
        reason = (await app.serving.reload()).reason
        return reason, (await served(app))[0], [one.bundle_id for one in app.serving.pool.shown()]

    with capture_logs() as records:
        reason, bundle, opened = with_app(store, use, alias_poll_s=0)
    assert reason == "the bundle could not be loaded; the log has the cause"
    assert opened == [bundle] == [built["stable"].bundle.bundle_id]
    assert "bundle_load_crashed" in {record["event"] for record in records}
