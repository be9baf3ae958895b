"""Planned starts: as many as the plan says, where its rate is high, the same for the same seed."""

import numpy as np
import pytest

from loadtests.arrivals import PlanError, Stretch, arrivals, parse_plan


def test_even_starts_at_a_fixed_rate_are_a_ruler():
    assert arrivals([Stretch(2.0, 5, 5)], "even", seed=0).tolist() == pytest.approx(
        [0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8]
    )


def test_even_starts_of_a_rising_rate_follow_its_integral():
    """From 0 to 2 requests per second in 4 s, k requests are due by k = t^2 / 4."""
    starts = arrivals(parse_plan("0:2", 4.0), "even", seed=0)
    assert starts.tolist() == pytest.approx([0, 2, 2 * 2**0.5, 2 * 3**0.5])


def test_stretches_follow_each_other():
    plan = parse_plan("10:10:0:0:10", 4.0)
    assert [(s.seconds, s.first, s.last) for s in plan] == [(1, 10, 10), (1, 10, 0), (1, 0, 0), (1, 0, 10)]
    starts = arrivals(plan, "even", seed=0)
    assert np.histogram(starts, [0, 1, 2, 3, 4])[0].tolist() == [10, 5, 0, 5]


def test_people_come_at_random_and_as_often_as_planned():
    """Gaps of a Poisson process have mean and deviation 1 / rate; counts deviate by their root."""
    starts = arrivals([Stretch(100.0, 100, 100)], "poisson", seed=1)
    gaps = np.diff(starts)
    assert abs(len(starts) - 10_000) < 5 * 100
    assert (gaps >= 0).all()
    assert starts[-1] < 100
    assert gaps.mean() == pytest.approx(0.01, rel=0.05)
    assert gaps.std() == pytest.approx(0.01, rel=0.05)


def test_the_same_seed_gives_the_same_starts():
    plan = parse_plan("50:200", 10.0)
    assert (arrivals(plan, "poisson", seed=3) == arrivals(plan, "poisson", seed=3)).all()
    assert len(arrivals(plan, "poisson", seed=3)) != len(arrivals(plan, "poisson", seed=4))


@pytest.mark.parametrize(
    ("text", "seconds", "message"),
    [
        ("fast", 1.0, "'fast' is no plan; write a rate like 200 or rates like 50:400"),
        ("5:-1", 1.0, "rates must not be negative nor all 0, got '5:-1'"),
        ("0", 1.0, "rates must not be negative nor all 0, got '0'"),
        ("5", 0.0, "a plan must last longer than 0 s, got 0"),
    ],
)
def test_plans_that_cannot_be_followed_are_refused(text, seconds, message):
    with pytest.raises(PlanError, match=message):
        parse_plan(text, seconds)
