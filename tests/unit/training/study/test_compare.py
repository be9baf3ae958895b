"""Means over seeds and paired differences, by hand and against the closed form of t with 2 degrees."""

import math

import pytest

from training.study.compare import paired, spread


def test_the_spread_is_mean_and_sample_deviation():
    assert spread([1.0, 2.0, 3.0]) == {"mean": 2.0, "sd": 1.0, "values": [1.0, 2.0, 3.0]}
    assert spread([5.0]) == {"mean": 5.0, "sd": None, "values": [5.0]}


def test_a_spread_with_an_undefined_value_is_undefined():
    assert spread([1.0, None]) is None
    assert spread([]) is None


def test_the_interval_of_three_differences_is_students():
    found = paired({0: 2.0, 1: 4.0, 2: 6.0}, {0: 1.0, 1: 2.0, 2: 3.0}, lower_is_better=False)
    assert found.values == (1.0, 2.0, 3.0)
    assert found.mean == 2.0
    # With 2 degrees of freedom the distribution of t is 1/2 + t / (2 sqrt(t^2 + 2)); its 97.5 % point is
    # the t with t / sqrt(t^2 + 2) = 0.95, and sd = 1, so the half width is t / sqrt(3).
    t = math.sqrt(2 * 0.95**2 / (1 - 0.95**2))
    assert found.low == pytest.approx(2 - t / math.sqrt(3))
    assert found.high == pytest.approx(2 + t / math.sqrt(3))
    of_mean = 2 * math.sqrt(3)
    assert found.p == pytest.approx(1 - of_mean / math.sqrt(of_mean**2 + 2))
    assert (found.won, found.lost, found.n, found.verdict) == (3, 0, 3, 0)


def test_seeds_are_paired_by_number_and_only_common_ones_count():
    found = paired({3: 0.7, 1: 0.5, 9: None}, {1: 0.6, 3: 0.6, 4: 0.9, 9: 0.1}, lower_is_better=False)
    assert found.values == pytest.approx((0.1, -0.1))
    assert (found.n, found.won, found.lost) == (2, 1, 1)


def test_lower_may_be_better():
    found = paired({0: 0.4, 1: 0.4}, {0: 0.5, 1: 0.4}, lower_is_better=True)
    assert (found.won, found.lost) == (1, 0)


def test_one_seed_has_no_interval():
    found = paired({0: 0.7}, {0: 0.6}, lower_is_better=False)
    assert (found.low, found.high, found.p, found.verdict) == (None, None, None, 0)


def test_no_common_seed_is_no_difference():
    assert paired({0: 0.7}, {1: 0.6}, lower_is_better=False) is None


@pytest.mark.parametrize(("shift", "p"), [(0.0, 1.0), (0.25, 0.0)])
def test_equal_differences_have_an_interval_of_no_width(shift, p):
    found = paired({0: 0.5 + shift, 1: 0.75 + shift}, {0: 0.5, 1: 0.75}, lower_is_better=False)
    assert (found.low, found.high, found.p) == (shift, shift, p)


def test_the_verdict_is_the_direction_of_a_clear_difference():
    better = paired({0: 1.1, 1: 1.2, 2: 1.15}, {0: 0, 1: 0, 2: 0}, lower_is_better=False)
    worse = paired({0: 0, 1: 0, 2: 0}, {0: 1.1, 1: 1.2, 2: 1.15}, lower_is_better=False)
    assert (better.verdict, worse.verdict) == (1, -1)
