"""The circuit breaker: opens after enough failures, tries one call at a time, closes on success."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from service.features.breaker import Breaker, BreakerState


def opened(now=0.0):
    breaker = Breaker(failures=3, window=5, open_s=1.0)
    for _ in range(3):
        assert breaker.allow(now)
        breaker.record(now, failed=True)
    return breaker


def test_it_opens_at_the_limit_and_lets_one_trial_through_after_the_pause():
    breaker = opened()
    assert breaker.state is BreakerState.OPEN
    assert not breaker.allow(0.99)
    assert breaker.allow(1.0)
    assert not breaker.allow(1.0)
    breaker.record(1.1, failed=False)
    assert breaker.state is BreakerState.CLOSED
    assert breaker.allow(1.1)


def test_a_failed_trial_opens_it_for_another_pause():
    breaker = opened()
    assert breaker.allow(1.0)
    breaker.record(1.2, failed=True)
    assert not breaker.allow(2.1)
    assert breaker.allow(2.2)


def test_failures_leave_the_window():
    breaker = Breaker(failures=3, window=5, open_s=1.0)
    for failed in (True, True, False, False, False, True, False, True, False):
        breaker.record(0.0, failed=failed)
    assert breaker.state is BreakerState.CLOSED  # two of the last five
    breaker.record(0.0, failed=True)
    assert breaker.state is BreakerState.OPEN


def test_late_news_does_not_move_an_open_breaker():
    breaker = opened()
    breaker.record(0.5, failed=False)
    assert breaker.state is BreakerState.OPEN


@given(st.lists(st.tuples(st.floats(0, 0.4), st.booleans()), max_size=80))
def test_while_everything_fails_one_call_a_pause_gets_through(steps):
    breaker, now, allowed = opened(), 0.0, []
    for wait, _ in steps:
        now += wait
        if breaker.allow(now):
            allowed.append(now)
            breaker.record(now, failed=True)
    assert all(later - earlier >= 1.0 - 1e-9 for earlier, later in pairwise(allowed))
