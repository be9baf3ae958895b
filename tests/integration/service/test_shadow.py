"""Shadows over the whole app: they compare, and never touch the reply."""

import asyncio
import threading
from contextlib import contextmanager, suppress
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from structlog.testing import capture_logs

from tests.support.asgi import ask, with_app
from tests.support.bundles import build_bundle

ITEMS = [{"id": "i1"}, {"id": "i2"}]
BODY = {"domain": "home", "user": {"id": "u3"}, "items": ITEMS}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    return {
        alias: build_bundle(store, alias=alias, seed=seed) for alias, seed in (("stable", 0), ("next", 9))
    }


@pytest.fixture
def routed(built, tmp_path):
    """Runs a test against an app whose one arm has a shadow; returns its result and the metrics."""

    def routed(use, **shadow):
        path = tmp_path / "routing.yaml"
        experiment = {
            "name": "ab",
            "domains": ["home"],
            "unit": "user",
            "salt": "s",
            "arms": [{"name": "control", "share": 1.0}],
            "shadow": {"bundle": "next", "share": 1.0, **shadow},
        }
        path.write_text(yaml.safe_dump({"version": 1, "experiments": [experiment]}))

        async def whole(app):
            shadow = app.serving.routing.table.domains["home"].experiment.shadow
            return await use(app, shadow), app.serving.metrics.render().decode()

        return with_app(built["stable"].store, whole, routing_file=path)

    return routed


def value(text, name):
    """The sample of a metric as the scrape has it."""
    lines = [line for line in text.splitlines() if line.startswith(name)]
    return sum(float(line.split()[-1]) for line in lines)


def count(text, result):
    return value(text, f'ctr_shadow_requests_total{{arm="ab/control",result="{result}"}}')


@contextmanager
def held(shadow):
    """Keep graph runs of the shadow from ending; they wait on its thread until the block is left."""
    released = threading.Event()

    def waiting(score):
        def wait(rows):
            released.wait(30)
            return score(rows)

        return wait

    for predictor in shadow.scorer.loaded.predictors.values():
        predictor.score = waiting(predictor.score)
    try:
        yield
    finally:
        released.set()


def test_the_mean_difference_is_measured_and_the_reply_is_that_of_the_arm(built, routed):
    async def use(app, shadow):
        reply = (await ask(app, BODY))[2]
        await shadow.drained()
        return reply

    reply, text = routed(use, budget_ms=10_000)
    served, beside = (built[alias].expected_stored("home", 3, [1, 2]) for alias in ("stable", "next"))
    np.testing.assert_allclose(reply["scores"], served, atol=1e-6)
    assert (reply["arm"], reply["model"]["alias"]) == ("control", "stable")
    assert count(text, "scored") == 1
    total = value(text, 'ctr_shadow_abs_difference_sum{arm="ab/control"}')
    assert total == pytest.approx(float(np.abs(served - beside).mean()), abs=1e-6)


def test_replies_do_not_wait_for_a_shadow_and_its_time_is_bounded(routed):
    async def use(app, shadow):
        with held(shadow):
            statuses = [(await ask(app, BODY))[0] for _ in range(3)]
            await shadow.drained()
        return statuses

    with capture_logs() as records:
        statuses, text = routed(use, budget_ms=100)
    assert statuses == [200, 200, 200]
    assert count(text, "late") == 3
    assert not [record for record in records if record["event"] == "shadow_failed"]


def test_a_failing_shadow_is_counted_and_told_once(routed):
    async def use(app, shadow):
        for predictor in shadow.scorer.loaded.predictors.values():
            predictor.score = lambda rows: 1 / 0
        statuses = [(await ask(app, BODY))[0] for _ in range(3)]
        await shadow.drained()
        return statuses

    with capture_logs() as records:
        statuses, text = routed(use, budget_ms=10_000)
    assert statuses == [200, 200, 200]
    assert count(text, "failed") == 3
    assert [record["event"] for record in records if "shadow" in record["event"]] == ["shadow_failed"]


def test_no_more_wait_than_may_none_while_busy_and_all_are_counted(routed):
    """Six requests: one runs, two wait, three find no room; a seventh comes while busy; then it closes."""

    async def use(app, shadow):
        with held(shadow):
            for _ in range(6):
                await ask(app, BODY)
                await asyncio.sleep(0)
            shadow.offer(None, None, "ab/control", busy=True)
            before = app.serving.metrics.render().decode()
            app.serving.routing.table.close()
            with suppress(asyncio.CancelledError):
                await shadow.drained()
        return before

    before, after = routed(use, budget_ms=10_000, max_waiting=2)
    assert (count(before, "dropped"), count(after, "dropped")) == (4, 7)
    assert count(after, "scored") == 0


def test_a_share_of_the_requests_is_taken(routed, monkeypatch):
    draws = iter([0.05, 0.15, 0.1, 0.0999])
    drawing = SimpleNamespace(random=lambda: next(draws))
    monkeypatch.setattr("service.routing.shadow.random", drawing)

    async def use(app, shadow):
        for _ in range(4):
            await ask(app, BODY)
        await shadow.drained()

    _, text = routed(use, share=0.1, budget_ms=10_000)
    assert count(text, "scored") == 2
