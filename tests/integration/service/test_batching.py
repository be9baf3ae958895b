"""Batching through the whole app: the scores of single requests, whatever shares their run."""

import asyncio

import numpy as np
import pytest

from tests.support.asgi import ask, with_app
from tests.support.bundles import DOMAINS, build_bundle


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return build_bundle(tmp_path_factory.mktemp("store"))


def bodies():
    """Users and items of all kinds: stored, unknown, anonymous; one to five candidates."""
    rng = np.random.default_rng(0)
    for number in range(40):
        user = {} if number % 7 == 0 else {"user": {"id": f"u{rng.integers(25)}"}}
        items = [{"id": f"i{k}"} for k in rng.integers(0, 130, 1 + number % 5)]
        if number % 3 == 0:
            items[0]["features"] = {"price": float(rng.uniform(0, 9))}
        yield {
            "domain": DOMAINS[number % len(DOMAINS)],
            **user,
            "context": {"hour": number % 24},
            "items": items,
        }


def test_scores_of_shared_runs_are_those_of_single_ones(small):
    async def together(app):
        runs = []
        for predictor in app.serving.scorer.loaded.predictors.values():
            run = predictor.run
            predictor.run = lambda inputs, run=run: runs.append(len(inputs["domain"])) or run(inputs)
        return await asyncio.gather(*(ask(app, body) for body in bodies())), runs

    async def one_by_one(app):
        return [await ask(app, body) for body in bodies()]

    shared, runs = with_app(small.store, together, batch_max_rows=64, inline_max_ms=10_000)
    single = with_app(small.store, one_by_one)
    assert sum(runs) == 40
    assert len(runs) < 6  # 120 candidates for two graphs, 64 in a run
    for (status, _, reply), (_, _, expected) in zip(shared, single, strict=True):
        assert status == 200
        np.testing.assert_allclose(reply["scores"], expected["scores"], atol=1e-6)


def test_a_bad_request_among_others_fails_alone(small):
    good = {"domain": "home", "items": [{"id": "i1"}]}
    bad = {"domain": "home", "items": [{"id": "i1", "features": {"price": "x"}}]}

    async def use(app):
        return await asyncio.gather(ask(app, good), ask(app, bad), ask(app, good))

    statuses = [reply[0] for reply in with_app(small.store, use, batch_max_rows=64)]
    assert statuses == [200, 422, 200]
