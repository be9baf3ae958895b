"""Routing over the whole app: arms answer from their bundles, units, overrides, maturity, the command."""

from functools import partial

import numpy as np
import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from service import cli
from service.app import check_routing
from service.errors import RoutingError
from service.features.opening import FeatureSources
from service.routing.assign import position
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.support.asgi import ask, with_app
from tests.support.bundles import build_bundle
from tests.support.routing import ITEMS, body, build_three, experiment, reply_of, told, unit_of, write_routing


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


def test_arms_answer_from_their_bundles_and_say_so(built, store, write):
    async def use(app):
        replies = {f"u{n}": await reply_of(app, body(f"u{n}")) for n in range(20)}
        again = [await reply_of(app, body(f"u{n}")) for n in range(20)]
        elsewhere = await reply_of(app, body(domain="sport"))
        return replies, again, elsewhere, app.serving.metrics.render().decode()

    replies, again, elsewhere, text = with_app(store, use, routing_file=write(experiment()))
    arms = {}
    for number, (user, reply) in enumerate(replies.items()):
        arm, alias = ("treatment", "canary") if position("s", user) >= 0.5 else ("control", "stable")
        assert told(reply) == ("ab", arm, alias)
        assert reply["model"]["bundle"] == built[alias].bundle.bundle_id
        expected = built[alias].expected_stored("home", number, [1, 2])
        np.testing.assert_allclose(reply["scores"], expected, atol=1e-6)
        arms[arm] = arms.get(arm, 0) + 1
    assert [told(reply) for reply in again] == [told(reply) for reply in replies.values()]
    assert told(elsewhere) == (None, None, "stable")
    for arm, alias in (("control", "stable"), ("treatment", "canary")):
        version = built[alias].bundle.bundle_id[:12]
        line = (
            f'ctr_score_requests_total{{arm="ab/{arm}",outcome="ok",version="{version}"}} {2.0 * arms[arm]}'
        )
        assert line in text


def test_kill_switch_sends_everyone_to_control(store, write):
    async def use(app):
        return {told(await reply_of(app, body(f"u{n}"))) for n in range(20)}

    overridden = {"overrides": {"u1": "treatment"}, "holdout": {"share": 1.0}}
    one = write(experiment(kill_switch=True, **overridden))
    assert with_app(store, use, routing_file=one) == {("ab", "control", "stable")}
    every = write(experiment(control="treatment", **overridden), kill_switch=True)
    assert with_app(store, use, routing_file=every) == {("ab", "treatment", "canary")}


def test_holdout_and_the_unassigned_get_the_default(store, write):
    async def use(app):
        return {told(await reply_of(app, body(f"u{n}"))) for n in range(20)}

    held = write(experiment(holdout={"share": 1.0}))
    assert with_app(store, use, routing_file=held) == {("ab", "holdout", "stable")}
    small = write(experiment(arms=[{"name": "new", "share": 0.0, "bundle": "canary"}]))
    assert with_app(store, use, routing_file=small) == {(None, None, "stable")}


def test_overrides_by_unit_and_by_header_where_enabled(store, write):
    async def use(app):
        control = body(unit_of("control"))
        asked = (b"x-ctr-arm", b"treatment")
        return (
            told(await reply_of(app, body("qa"))),
            told(await reply_of(app, control, asked)),
            told(await reply_of(app, body(domain="sport"), asked)),
            told(await reply_of(app, {"domain": "home", "items": ITEMS}, asked)),
            await ask(app, control, headers=[(b"x-ctr-arm", b"nope")]),
        )

    overrides = {"qa": "control" if position("s", "qa") >= 0.5 else "treatment"}
    enabled = write(experiment(overrides=overrides), override_header="x-ctr-arm")
    by_unit, by_header, elsewhere, anonymous, wrong = with_app(store, use, routing_file=enabled)
    assert by_unit[:2] == ("ab", overrides["qa"])
    assert by_header == anonymous == ("ab", "treatment", "canary")
    assert elsewhere == (None, None, "stable")
    assert (wrong[0], wrong[2]["code"], wrong[2]["field"]) == (422, "invalid_request", "x-ctr-arm")
    assert "experiment 'ab' has no arm 'nope'; it has control, treatment" in wrong[2]["detail"]

    async def ignored(app):
        return await reply_of(app, body(unit_of("control")), (b"x-ctr-arm", b"treatment"))

    assert told(with_app(store, ignored, routing_file=write(experiment()))) == ("ab", "control", "stable")


def test_sessions_fall_back_to_users_and_requests_stand_alone(store, write):
    control, treatment = unit_of("control"), unit_of("treatment")

    async def use(app):
        return [
            told(await reply_of(app, content))[1]
            for content in (
                body(control, session_id=treatment),
                body(control, session_id=""),
                body(control),
                {"domain": "home", "items": ITEMS, "session_id": treatment},
                {"domain": "home", "items": ITEMS},
                body(control, "sport", request_id=treatment),
                body(treatment, "sport", request_id=control),
            )
        ]

    sessions = experiment(unit="session")
    # The positions of both experiments have to be those of the chosen ids.
    by_request = experiment(unit="request", name="r", salt="t", domains=["sport"])
    found = with_app(store, use, routing_file=write(sessions, by_request))
    arm = {name: "treatment" if position("t", name) >= 0.5 else "control" for name in (control, treatment)}
    assert found == ["treatment", "control", "control", "treatment", None, arm[treatment], arm[control]]


def test_a_long_session_id_is_refused(store, write):
    async def use(app):
        return await ask(app, body(session_id="x" * 300))

    status, _, problem = with_app(store, use, routing_file=write(experiment(unit="session")))
    assert (status, problem["code"], problem["limit"]) == (422, "too_long", 256)
    assert "$.session_id, at most 256" in problem["detail"]


def test_integer_ids_are_the_units_of_their_text(store, write):
    async def use(app):
        return [told(await reply_of(app, body(7))), told(await reply_of(app, body("7")))]

    number, text = with_app(store, use, routing_file=write(experiment()))
    assert number == text


def test_failures_count_for_the_arm_that_failed(store, write):
    async def use(app):
        target = app.serving.routing.table.domains["home"].arms["treatment"]
        for predictor in target.scorer.loaded.predictors.values():
            predictor.score = lambda rows: 1 / 0
        failed = await ask(app, body(unit_of("treatment")))
        fine = await ask(app, body(unit_of("control")))
        return failed[0], fine[0], app.serving.metrics.render().decode()

    with capture_logs():
        failed, fine, text = with_app(store, use, routing_file=write(experiment()))
    assert (failed, fine) == (500, 200)
    assert 'ctr_score_requests_total{arm="ab/treatment",outcome="failed"' in text


def logit(p):
    return np.log(p / (1 - p))


def test_domains_are_routed_by_their_rows(tmp_path, write):
    rows = {"home": 0, "sport": 1000, "music": 50_000}

    def count_rows(arguments):
        for name, entry in arguments["domains"].items():
            arguments["domains"][name] = entry.model_copy(update={"num_train_rows": rows[name]})

    models = tmp_path / "models"
    stable = build_bundle(models, alias="stable", change_manifest=count_rows)
    hier = build_bundle(models, alias="hier", seed=10, policy="zero_shot")
    maturity = {"zero_shot": "hier", "mature_rows": 20_000, "prior_rows": 3000}

    async def use(app):
        domains = (*rows, "brand-new")
        return {name: await reply_of(app, body("u3", name)) for name in domains}

    replies = with_app(models, use, routing_file=write(maturity=maturity))
    zero = {name: hier.expected_stored(name, 3, [1, 2]) for name in replies}
    full = {name: stable.expected_stored(name, 3, [1, 2]) for name in rows}
    blended = 1 / (1 + np.exp(-(0.75 * logit(zero["sport"]) + 0.25 * logit(full["sport"]))))

    np.testing.assert_allclose(replies["home"]["scores"], zero["home"], atol=1e-6)
    np.testing.assert_allclose(replies["brand-new"]["scores"], zero["brand-new"], atol=1e-6)
    np.testing.assert_allclose(replies["sport"]["scores"], blended, atol=1e-6)
    np.testing.assert_allclose(replies["music"]["scores"], full["music"], atol=1e-6)
    assert {name: reply["model"]["alias"] for name, reply in replies.items()} == {
        "home": "hier",
        "brand-new": "hier",
        "sport": "stable",
        "music": "stable",
    }
    assert replies["sport"]["model"]["blend"] == {
        "bundle": hier.bundle.bundle_id,
        "alias": "hier",
        "weight": 0.75,
    }
    assert all("blend" not in replies[name]["model"] for name in ("home", "music", "brand-new"))


def test_without_a_zero_shot_route_unlisted_domains_stay_404(store, write):
    async def use(app):
        return await ask(app, body(domain="tab_9"))

    maturity = {"zero_shot": "canary", "mature_rows": 1}
    found = with_app(store, use, routing_file=write(maturity=maturity))
    assert (found[0], found[2]["code"]) == (404, "unknown_domain")


def test_check_command_reads_the_routing_file(store, write, monkeypatch):
    def check(path):
        return CliRunner().invoke(cli.app, ["check", "--store", str(store), "--routing", str(path)])

    monkeypatch.setenv("COLUMNS", "150")
    good = check(write(experiment()))
    assert good.exit_code == 0, good.output
    assert "control (control)" in good.stdout
    assert "routing_serves" not in good.output
    assert "1 in an experiment" in good.stdout
    bad = check(write(experiment(arms=[{"name": "a", "share": 1.0, "bundle": "nowhere"}])))
    assert bad.exit_code == 1
    assert "has no bundle 'nowhere'" in bad.stderr


def test_checking_routing_needs_a_file(store):
    settings = Settings(store=store)
    with pytest.raises(RoutingError, match="the settings name no routing file"):
        check_routing(settings, FeatureSources(settings, Metrics().features), None)
