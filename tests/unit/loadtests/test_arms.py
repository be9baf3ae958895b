"""The check of arms: units counted once, shares by a sample-ratio test, nobody in two arms."""

import pytest
from scipy.stats import chi2

from loadtests.arms import check_arms, check_experiment
from loadtests.record import Call
from service.routing.config import ExperimentConfig, RoutingConfig
from tests.support.routing import experiment


def call(user, arm, **changes):
    known = {
        "kind": "score",
        "profile": "tiny",
        "num_items": 1,
        "intended_s": 0.0,
        "sent_s": 0.0,
        "done_s": 0.1,
    }
    return Call(**known | {"status": 200, "user": user, "experiment": "ab", "arm": arm} | changes)


def config(**changes):
    return ExperimentConfig.model_validate(experiment(**changes))


def calls(control, treatment):
    return [call(f"c{n}", "control") for n in range(control)] + [
        call(f"t{n}", "treatment") for n in range(treatment)
    ]


def test_shares_that_hold_pass_and_others_do_not():
    """Of 100 units 50 are expected: (60 - 50)^2 / 50 + (40 - 50)^2 / 50 = 4, and 75 to 25 give 25."""
    check = check_experiment(calls(60, 40), config())
    assert (check.units, check.expected) == (
        {"control": 60, "treatment": 40},
        {"control": 50, "treatment": 50},
    )
    assert check.p_value == pytest.approx(chi2.sf(4, 1))
    assert check.problems(0.001) == []
    (problem,) = check_experiment(calls(75, 25), config()).problems(0.001)
    assert problem.startswith(
        "experiment 'ab' has units {'control': 75, 'treatment': 25}, its shares promise "
    )
    assert "{'control': 50.0, 'treatment': 50.0}: p = 5.7e-07, at least 0.001" in problem


def test_a_unit_counts_once_however_often_it_asks():
    """One lively user would otherwise look like a mismatch."""
    check = check_experiment(calls(30, 30) + [call("c0", "control")] * 500, config())
    assert check.units == {"control": 30, "treatment": 30}
    assert check.p_value == 1


def test_units_are_those_of_the_experiment():
    made = [
        call("u", "control", session=f"s{n % 20}", request_id=f"r{n}", experiment="ab") for n in range(40)
    ]
    assert check_experiment(made, config(unit="user")).units["control"] == 1
    assert check_experiment(made, config(unit="session")).units["control"] == 20
    assert check_experiment(made, config(unit="request")).units["control"] == 40
    assert check_experiment([call("u", "control")], config(unit="session")).units["control"] == 1


def test_shares_that_leave_some_to_nobody_are_compared_with_each_other():
    arms = [{"name": "control", "share": 0.3}, {"name": "treatment", "share": 0.1}]
    assert check_experiment(calls(75, 25), config(arms=arms)).p_value == pytest.approx(1)
    assert check_experiment(calls(50, 50), config(arms=arms)).p_value == pytest.approx(chi2.sf(100 / 3, 1))


def test_an_arm_without_a_share_must_have_nobody():
    arms = [{"name": "control", "share": 1.0}, {"name": "treatment", "share": 0.0}]
    assert check_experiment(calls(50, 0), config(arms=arms)).p_value is None  # one arm: nothing to compare
    assert check_experiment(calls(50, 1), config(arms=arms)).p_value == 0


def test_too_few_units_are_not_judged():
    assert check_experiment(calls(9, 0), config()).p_value is None
    assert check_experiment(calls(10, 0), config()).p_value is not None
    assert check_experiment([], config()).p_value is None


def test_who_was_in_two_arms_is_told():
    check = check_experiment([*calls(20, 20), call("c0", "treatment")], config())
    assert check.num_switched == 1
    assert check.units["control"] == 19
    assert check.problems(0.001) == ["experiment 'ab' put 1 units into more than one arm"]


def test_an_arm_that_the_file_lacks_is_told_and_the_holdout_is_none():
    check = check_experiment([*calls(20, 20), call("x", "other"), call("h", "holdout")], config())
    assert check.problems(0.001) == ["experiment 'ab' has no arm 'other', but replies do"]


def test_overrides_say_nothing():
    check = check_experiment([*calls(20, 20), call("qa", "treatment")], config(overrides={"qa": "treatment"}))
    assert check.units == {"control": 20, "treatment": 20}


def test_experiments_under_a_kill_switch_are_not_checked():
    both = [experiment(), experiment(name="off", salt="t", domains=["sport"], kill_switch=True)]
    routing = {"version": 1, "experiments": both}
    assert [check.experiment for check in check_arms(calls(5, 5), RoutingConfig.model_validate(routing))] == [
        "ab"
    ]
    assert check_arms(calls(5, 5), RoutingConfig.model_validate(routing | {"kill_switch": True})) == []
