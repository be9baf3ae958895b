"""Sizes before the start and always-valid results: textbook numbers, inverses, 1,000 simulated A/A tests."""

import math

import numpy as np
import pytest

from training.ab.errors import PlanValueError
from training.ab.power import Test as Plan
from training.ab.power import Traffic, design_effect, detectable, required
from training.ab.sequential import half_width, mixture_variance, p_value, tightest_ratio
from training.ab.simulate import World, simulate, wilson


def test_textbook_size_without_clustering():
    # 0.05 against 0.06: (1.959964 + 0.841621)^2 (0.05 * 0.95 + 0.06 * 0.94) / 0.01^2 = 8154.6 per arm
    need = required(Traffic(0.05, 1.0, 1.0), Plan(), 0.2)
    per_arm = (1.959963985 + 0.841621234) ** 2 * (0.05 * 0.95 + 0.06 * 0.94) / 0.01**2
    assert need.units == math.ceil(2 * per_arm) == need.rows == 16_310


def test_design_effect_by_hand():
    assert design_effect(rows_per_unit=21, rows_cv=0, icc=0.05) == pytest.approx(2.0)
    assert design_effect(rows_per_unit=20, rows_cv=1, icc=0.05) == pytest.approx(1 + 39 * 0.05)
    assert design_effect(rows_per_unit=20, rows_cv=1, icc=0) == 1


def test_clustering_raises_units_by_its_effect_and_rows_lower_them():
    plain = required(Traffic(0.05, 1.0, 1.0), Plan(), 0.1).units
    assert required(Traffic(0.05, 1.0, 3.0), Plan(), 0.1).units == pytest.approx(3 * plain, abs=3)
    assert required(Traffic(0.05, 4.0, 3.0), Plan(), 0.1).units == pytest.approx(3 * plain / 4, abs=3)


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_detectable_is_the_inverse_of_required(share):
    traffic, plan = Traffic(0.03, 8.0, 2.5), Plan(treatment_share=share)
    units = required(traffic, plan, 0.04).units
    assert detectable(traffic, plan, units) == pytest.approx(0.04, rel=1e-4)


def test_mixture_is_the_planned_effect_at_usual_levels():
    # ratio -2 ln 0.05 + ln(1 - 2 ln 0.05) = 5.99146 + 1.94469; planned standard error: effect / 2.80159
    assert tightest_ratio(0.05) == pytest.approx(7.93615, abs=1e-4)
    assert mixture_variance(0.01, alpha=0.05, power=0.8) == pytest.approx(
        7.93615 * (0.01 / 2.801585) ** 2, rel=1e-5
    )


def test_interval_is_the_confidence_sequence_of_the_mean():
    # sigma^2 = 4, rho^2 = 0.1, t = 50: 2 sqrt(2 (6) / (2500 * 0.1) * log(sqrt(6) / 0.05))
    expected = 2 * math.sqrt(2 * 6 / 250 * math.log(math.sqrt(6) / 0.05))
    assert half_width(4 / 50, mixture=4 * 0.1, alpha=0.05) == pytest.approx(expected)


def test_interval_is_near_its_tightest_at_the_planned_moment():
    widths = [float(half_width(1.0, mixture=m, alpha=0.05)) for m in np.geomspace(1, 60, 200)]
    assert half_width(1.0, mixture=tightest_ratio(0.05), alpha=0.05) < 1.003 * min(widths)


def test_interval_and_p_value_say_the_same():
    variance, mixture = np.geomspace(0.01, 10, 30), 0.7
    edge = half_width(variance, mixture=mixture, alpha=0.05)
    np.testing.assert_allclose(p_value(edge, variance, mixture=mixture), 0.05)
    assert p_value(0.0, 1.0, mixture=1.0) == 1.0


def test_wilson_by_hand():
    share = wilson(0, 10)
    assert (share.low, share.high) == (0.0, pytest.approx(3.8414588 / 13.8414588))


@pytest.fixture(scope="module")
def aa():
    world = World(ctr=0.1, units_per_arm=150, rows_per_unit=10.0, looks=10, icc=0.1)
    return simulate(world, experiments=1000, planned_lift=0.3, seed=7)


def test_a_thousand_aa_tests_read_once_are_wrong_one_time_in_twenty(aa):
    assert aa.fixed_at_end.experiments == 1000
    assert aa.fixed_at_end.low <= 0.05 <= aa.fixed_at_end.high


def test_a_thousand_aa_tests_peeked_at_are_wrong_far_too_often_unless_always_valid(aa):
    assert aa.fixed_peeking.low > 0.1
    assert aa.always_valid_peeking.share <= 0.05
    assert aa.always_valid_at_end.significant <= aa.always_valid_peeking.significant


def test_a_true_lift_is_found_and_seeds_repeat():
    world = World(ctr=0.1, lift=1.0, units_per_arm=150, rows_per_unit=10.0, looks=5, icc=0.1)
    first = simulate(world, experiments=60, planned_lift=0.3, seed=1)
    assert first.always_valid_peeking.share > 0.8
    assert first == simulate(world, experiments=60, planned_lift=0.3, seed=1)


def test_unclustered_intervals_would_be_wrong():
    """The same A/A data under a plain z-test over rows, for contrast: twice the error or more."""
    rng = np.random.default_rng(3)
    chance = rng.beta(0.1 * 9, 0.9 * 9, (2, 400, 150))
    clicks = rng.binomial(20, chance).sum(axis=2) / 3000
    pooled = clicks.mean(axis=0)
    z = np.abs(clicks[1] - clicks[0]) / np.sqrt(pooled * (1 - pooled) * 2 / 3000)
    assert (z > 1.96).mean() > 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Traffic(0.0, 1, 1), r"ctr must lie between 0 and 1 \(both excluded\), got 0"),
        (lambda: Traffic(0.1, 0.5, 1), "rows per unit must be at least 1, got 0.5"),
        (lambda: Traffic(0.1, 1, 0), "design effect must lie between 0 and inf"),
        (lambda: Plan(alpha=1), "alpha must lie between 0 and 1"),
        (lambda: Plan(power=0), "power must lie between 0 and 1"),
        (lambda: Plan(treatment_share=1), "treatment share must lie between 0 and 1"),
        (lambda: design_effect(rows_per_unit=2, rows_cv=-1, icc=0), "rows cv must be at least 0, got -1"),
        (lambda: design_effect(rows_per_unit=2, rows_cv=1, icc=1.5), r"icc must lie in \[0, 1\], got 1.5"),
        (lambda: required(Traffic(0.5, 1, 1), Plan(), 0.0), "lift must not be 0"),
        (lambda: required(Traffic(0.5, 1, 1), Plan(), 1.5), "1.5 on 0.5 gives 1.25"),
        (lambda: detectable(Traffic(0.5, 1, 1), Plan(), 1), "units must be at least 2, got 1"),
        (
            lambda: detectable(Traffic(0.5, 1, 9), Plan(), 2),
            "2 units cannot show any lift of a click rate of 0.5",
        ),
        (lambda: mixture_variance(0, alpha=0.05, power=0.8), "planned effect must lie between 0 and inf"),
        (lambda: World(lift=30), "ctr of the treatment arm must lie between 0 and 1"),
        (lambda: World(icc=0), "icc must lie between 0 and 1"),
        (lambda: World(units_per_arm=1), "units per arm must be at least 2, got 1"),
        (lambda: World(rows_per_unit=0), "rows per unit must lie between 0 and inf"),
        (lambda: World(looks=0), "looks must be at least 1, got 0"),
        (lambda: simulate(World(), experiments=0), "experiments must be at least 1, got 0"),
    ],
)
def test_numbers_out_of_range_are_refused(make, message):
    with pytest.raises(PlanValueError, match=message):
        make()
