"""Routing files and aliases that change while the app serves, and what is refused at its start."""

import asyncio
import json
from functools import partial

import pytest
from structlog.testing import capture_logs

from service.contract.store import ModelStore
from service.routing.live import RETRY_LOOKS
from tests.support.asgi import ask, with_app
from tests.support.bundles import build_bundle
from tests.support.routing import (
    HALVES,
    body,
    build_three,
    experiment,
    refresh,
    reply_of,
    told,
    unit_of,
    write_routing,
)

NEVER_S = 1000.0  # tests look themselves


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build_three(tmp_path_factory.mktemp("store"))


@pytest.fixture
def store(built):
    return built["stable"].store


@pytest.fixture
def write(tmp_path):
    """Writes the routing file; returns its path."""
    return partial(write_routing, tmp_path / "routing.yaml")


def test_changes_are_taken_up_and_what_is_broken_is_not(store, write):
    async def use(app):
        user = unit_of("treatment")
        states = []

        async def note():
            reply = await reply_of(app, body(user))
            health = (await ask(app, {}, path="/health/ready", method="GET"))[2]["routing"]
            states.append((told(reply)[1], health["state"], health.get("reason", "")))

        await note()
        path.write_text("version: 1\nexperiments: oops\n")
        first, again = await refresh(app), await refresh(app)
        await note()
        path.unlink()
        await refresh(app)
        await note()
        write(experiment(kill_switch=True))
        taken = await refresh(app)
        await note()
        return states, (first, again, taken), app.serving.metrics.render().decode()

    path = write(experiment())
    with capture_logs() as records:
        states, took, text = with_app(store, use, routing_poll_s=NEVER_S, routing_file=path)
    assert took == (False, False, True)
    assert [state[:2] for state in states] == [
        ("treatment", "current"),
        ("treatment", "last_good"),
        ("treatment", "last_good"),
        ("control", "current"),
    ]
    assert "experiments: Input should be a valid list" in states[1][2]
    assert "cannot be read (FileNotFoundError)" in states[2][2]
    refused = [record for record in records if record["event"] == "routing_refused"]
    assert [record["log_level"] for record in refused] == ["error", "error"]
    assert 'ctr_routing_reloads_total{result="refused"} 2.0' in text
    assert 'ctr_routing_reloads_total{result="loaded"} 1.0' in text
    assert "ctr_routing_stale_workers 0.0" in text
    assert (
        sum(line.startswith("ctr_routing_info{") and line.endswith(" 1.0") for line in text.splitlines()) == 1
    )


def test_a_file_put_back_as_it_was_is_current_again(store, write):
    async def use(app):
        good = path.read_text()
        path.write_text("")
        await refresh(app)
        broken = app.serving.metrics.render().decode()
        path.write_text(good)
        await refresh(app)
        return broken, app.serving.routing.describe()["state"], app.serving.metrics.render().decode()

    path = write(experiment())
    broken, state, text = with_app(store, use, routing_poll_s=NEVER_S, routing_file=path)
    assert "ctr_routing_stale_workers 1.0" in broken
    assert state == "current"
    assert "ctr_routing_stale_workers 0.0" in text


def test_the_file_is_followed_while_requests_come(store, write):
    async def use(app):
        user = unit_of("treatment")
        before = told(await reply_of(app, body(user)))[1]
        write(experiment(kill_switch=True))
        async with asyncio.timeout(20):
            while (after := told(await reply_of(app, body(user)))[1]) == before:
                await asyncio.sleep(0.01)
        return before, after

    assert with_app(store, use, routing_file=write(experiment()), routing_poll_s=0.02) == (
        "treatment",
        "control",
    )


def test_a_moved_alias_moves_its_arm_and_a_broken_one_does_not(tmp_path, write):
    models = tmp_path / "models"
    for number, alias in enumerate(("stable", "canary", "next")):
        build_bundle(models, alias=alias, seed=number)
    bundles = ModelStore(models).aliases()
    aliases = models / "aliases.json"

    async def use(app):
        found = []

        async def note():
            await refresh(app)
            reply = await reply_of(app, body(unit_of("treatment")))
            state = app.serving.routing.describe()
            found.append((reply["model"]["bundle"], reply["model"]["alias"], state["state"]))
            return state.get("reason", "")

        await note()
        ModelStore(models).set_alias("canary", bundles["next"])
        await note()
        aliases.write_text(json.dumps({"stable": bundles["stable"]}))
        gone = await note()
        aliases.write_text(json.dumps({"canary": "0" * 64}))
        missing = await note()
        return found, gone, missing, app.serving.metrics.render().decode()

    with capture_logs():
        found, gone, missing, text = with_app(
            models, use, routing_poll_s=NEVER_S, routing_file=write(experiment())
        )
    assert found == [
        (bundles["canary"], "canary", "current"),
        (bundles["next"], "canary", "current"),
        (bundles["next"], "canary", "last_good"),
        (bundles["next"], "canary", "last_good"),
    ]
    assert "has no bundle 'canary'" in gone
    assert "bundle 'canary' (000000000000): " in missing
    info = 'ctr_bundle_info{alias="canary",model="small",version="%s"} %s'
    assert info % (bundles["canary"][:12], "0.0") in text
    assert info % (bundles["next"][:12], "1.0") in text


REFUSED = {
    "alias": (
        experiment(arms=[{"name": "a", "share": 1.0, "bundle": "nowhere"}]),
        {},
        "has no bundle 'nowhere'",
    ),
    "domain": (
        experiment(domains=["tab_9"]),
        {},
        "domain 'tab_9': experiment 'ab': the default, bundle 'stable'",
    ),
    "arm": (
        experiment(domains=["tab_9"]),
        {"alias": "hier"},
        "domain 'tab_9': experiment 'ab': arm 'treatment', bundle 'canary'",
    ),
    "shadow": (
        experiment(domains=["tab_9"], arms=HALVES[:1], shadow={"bundle": "canary", "share": 1.0}),
        {"alias": "hier"},
        "domain 'tab_9': experiment 'ab': the shadow, bundle 'canary'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_not_be_served_is_refused_at_start(store, write, name):
    content, settings, message = REFUSED[name]

    async def use(app):
        return await ask(app, {}, path="/health/ready", method="GET")

    with capture_logs():
        status, _, problem = with_app(
            store, use, routing_poll_s=NEVER_S, routing_file=write(content), **settings
        )
    assert (status, problem["code"]) == (503, "not_ready")
    assert message in problem["detail"]


def test_an_unexpected_failure_of_a_reload_keeps_the_last_good(store, write, monkeypatch):
    async def use(app):
        monkeypatch.setattr("service.routing.live.TableBuilder", lambda *a, **k: 1 / 0)
        write(experiment(kill_switch=True))
        took = await refresh(app)
        return took, app.serving.routing.describe(), told(await reply_of(app, body(unit_of("treatment"))))

    with capture_logs() as records:
        took, state, reply = with_app(store, use, routing_poll_s=NEVER_S, routing_file=write(experiment()))
    assert (took, state["state"]) == (False, "last_good")
    assert state["reason"] == "the routing could not be loaded; the log has the cause"
    assert reply == ("ab", "treatment", "canary")
    assert "routing_refresh_crashed" in {record["event"] for record in records}


def test_what_was_refused_is_tried_again_after_a_while(tmp_path, write):
    models = tmp_path / "models"
    canary = build_bundle(models, alias="canary", seed=1).bundle.path
    build_bundle(models)

    async def use(app):
        hidden = canary.with_name(".hidden")
        canary.rename(hidden)
        write(experiment())
        refused = await refresh(app)
        hidden.rename(canary)
        looks = [await refresh(app) for _ in range(RETRY_LOOKS)]
        return refused, looks, app.serving.routing.describe()["state"]

    with capture_logs() as records:
        started = write()
        refused, looks, state = with_app(models, use, routing_poll_s=NEVER_S, routing_file=started)
    assert (refused, looks) == (False, [False] * (RETRY_LOOKS - 1) + [True])
    assert state == "current"
    assert [record["event"] for record in records].count("routing_refused") == 1
