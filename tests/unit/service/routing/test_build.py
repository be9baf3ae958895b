"""Tables from files and bundles: who answers which domain, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import RoutingError
from service.routing.build import TableBuilder
from service.routing.config import RoutingConfig
from service.routing.target import blend_logits
from service.scoring.runner import Runner
from service.scoring.scorer import Scorer
from service.telemetry.metrics import Metrics

HALVES = [{"name": "a", "share": 0.5}, {"name": "b", "share": 0.5, "bundle": "other"}]


@pytest.fixture
def build(small_loaded_with_check):
    """Builds a table; `other` lists the domains given, the default those of the small bundle."""
    runner = Runner(inline_max_ms=3.0, num_threads=1)

    def build(content, *, domains=("home", "sport", "music")):
        default = small_loaded_with_check
        routes = {name: default.routes[name] for name in domains}
        bundles = {default.alias: default, "other": replace(default, alias="other", routes=routes)}
        return TableBuilder(
            RoutingConfig.model_validate({"version": 1, **content}),
            default=Scorer(default, runner, max_items=10),
            bundles=bundles,
            runner=runner,
            shadow_runner=runner,
            metrics=Metrics(),
            max_items=10,
        ).build("digest")

    yield build
    runner.close()


def experiment(name="e", **changes):
    return {"name": name, "domains": "all", "unit": "user", "salt": name, "arms": HALVES, **changes}


def names(table):
    return {
        domain: route.experiment and route.experiment.assigner.experiment
        for domain, route in table.domains.items()
    }


def test_an_experiment_on_a_domain_stands_above_one_on_all(build):
    table = build({"experiments": [experiment(), experiment("own", domains=["sport"])]})
    assert names(table) == {"home": "e", "sport": "own", "music": "e"}
    assert table.unlisted.experiment is None
    assert table.describe() == "3 domains: 3 to stable; 0 blended; 3 in an experiment"


def test_arms_on_the_alias_of_the_default_are_the_default(build):
    arms = [{"name": "a", "share": 1.0, "bundle": "stable"}, {"name": "b", "share": 0.0}]
    route = build({"experiments": [experiment(arms=arms)]}).domains["home"]
    assert route.arms["a"].scorer is route.arms["b"].scorer is route.plain.target.scorer
    assert {target.arm for target in route.arms.values()} == {"e/a", "e/b", "e/holdout"}


# The small bundle counts 1000, 2000 and 3000 rows in home, sport and music.
@pytest.mark.parametrize(
    ("mature_rows", "weights"),
    [
        (1000, {"home": None, "sport": None, "music": None}),
        (2001, {"home": 0.5, "sport": 1 / 3, "music": None}),
        (9999, {"home": 0.5, "sport": 1 / 3, "music": 0.25}),
    ],
)
def test_a_domain_is_blended_until_it_is_mature(build, mature_rows, weights):
    table = build({"maturity": {"zero_shot": "other", "mature_rows": mature_rows, "prior_rows": 1000}})
    blends = {name: route.plain.target.blend for name, route in table.domains.items()}
    assert {name: blend and blend.weight for name, blend in blends.items()} == pytest.approx(weights)


REFUSED = {
    "arm": ({"experiments": [experiment()]}, "domain 'sport': experiment 'e': arm 'b', bundle 'other'"),
    "shadow": (
        {"experiments": [experiment(arms=HALVES[:1], shadow={"bundle": "other", "share": 0.5})]},
        "domain 'sport': experiment 'e': the shadow, bundle 'other'",
    ),
    "blend": (
        {"maturity": {"zero_shot": "other"}},
        "domain 'sport': maturity: 2000 rows ask for a blend, but few_shot, bundle 'other'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bundle_that_lacks_a_domain_it_is_to_serve_is_refused(build, name):
    content, message = REFUSED[name]
    with pytest.raises(RoutingError) as caught:
        build(content, domains=("home", "music"))
    assert message in str(caught.value)
    assert "does not score it; its 2 domains are home, music" in str(caught.value)


def test_a_zero_shot_bundle_that_lacks_a_domain_without_rows_is_refused(
    build, small_loaded_with_check, monkeypatch
):
    entry = small_loaded_with_check.bundle.manifest.domains["sport"]
    monkeypatch.setitem(
        small_loaded_with_check.bundle.manifest.domains,
        "sport",
        entry.model_copy(update={"num_train_rows": 0}),
    )
    with pytest.raises(
        RoutingError, match="domain 'sport': maturity: it has no rows, but zero_shot, bundle 'other'"
    ):
        build({"maturity": {"zero_shot": "other", "mature_rows": 1}}, domains=("home", "music"))


probabilities = st.floats(0, 1, width=32)


@given(probabilities, probabilities, st.floats(0, 1))
def test_a_blend_lies_between_what_it_is_made_of(first, second, weight):
    one, two = np.float32([first]), np.float32([second])
    blended = blend_logits(one, two, weight)
    assert blended.dtype == np.float32
    assert min(first, second) - 2e-7 <= blended[0] <= max(first, second) + 2e-7


def test_a_blend_is_the_weighted_mean_of_logits():
    """Odds 1/3 and 3: half of each gives odds 1; a quarter of the second gives 3 ** -0.5."""
    one, two = np.float32([0.25, 0.25]), np.float32([0.75, 0.75])
    np.testing.assert_allclose(blend_logits(one, two, 0.5), [0.5, 0.5], atol=1e-6)
    odds = 3**-0.5
    np.testing.assert_allclose(blend_logits(one, two, 0.25), [odds / (1 + odds)] * 2, atol=1e-6)
