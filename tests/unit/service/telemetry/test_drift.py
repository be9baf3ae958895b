"""The window of scores: sums by hand, and what is too old no longer counts."""

from array import array

import pytest

from service.telemetry import drift
from service.telemetry.drift import NUM_PERIODS, NUM_SLOTS, PERIOD_S, ScoreWindow, mean_score_ratio
from service.telemetry.metrics import Metrics

START_S = 1_700_000_040.0  # the first second of a minute
READS = {"user_reads": (1, 0, 0, 0, 0), "item_reads": (1, 0, 0, 0, 0)}


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now_s = START_S

        def time(self):
            return self.now_s

    clock = Clock()
    monkeypatch.setattr(drift, "time", clock)
    return clock


def window():
    slots = array("d", bytes(8 * NUM_SLOTS))
    return ScoreWindow(memoryview(slots)), slots


def test_the_ratio_is_scores_over_expected_scores_of_all_processes(clock):
    (first, first_slots), (second, second_slots) = window(), window()
    first.add(10, 2.0, 1.0)
    second.add(5, 0.5, 1.0)
    clock.now_s += PERIOD_S
    second.add(5, 2.0, 0.25)
    parts = [first_slots, second_slots]
    assert mean_score_ratio(parts) == pytest.approx(4.5 / 2.25)
    assert drift.window_candidates(parts) == 20


def test_what_is_older_than_the_window_no_longer_counts(clock):
    mine, slots = window()
    mine.add(1, 9.0, 1.0)
    clock.now_s += (NUM_PERIODS - 1) * PERIOD_S
    mine.add(1, 1.0, 1.0)
    assert mean_score_ratio([slots]) == pytest.approx(5.0)
    clock.now_s += PERIOD_S
    assert mean_score_ratio([slots]) == pytest.approx(1.0)
    mine.add(1, 3.0, 1.0)  # takes the place of the first
    assert mean_score_ratio([slots]) == pytest.approx(2.0)
    clock.now_s += 3 * NUM_PERIODS * PERIOD_S
    assert mean_score_ratio([slots]) is None
    assert drift.window_candidates([slots]) == 0


def test_each_bundle_is_held_to_its_own_mean(clock):
    """Two arms with other means, both at twice theirs; an unlisted domain and a blend expect nothing."""
    metrics = Metrics()
    for arm, mean in (("e/a", 0.1), ("e/b", 0.3)):
        mine = metrics.for_bundle(model="m", version=arm[-1], alias=arm, mean_scores={"home": mean}, arm=arm)
        mine.scored(domain="home", score_sum=2 * mean * 10, num_items=10, **READS)
        mine.scored(domain="home", score_sum=9.0, num_items=10, **READS, blended=True)
        mine.scored(domain="unlisted", score_sum=9.0, num_items=10, **READS)
    text = metrics.render().decode()
    ratio = next(line for line in text.splitlines() if line.startswith('ctr_mean_score_ratio{domain="home"}'))
    assert float(ratio.split()[1]) == pytest.approx(2.0)
    assert 'ctr_mean_score_window_candidates{domain="home"} 20.0\n' in text
    assert 'ctr_mean_score_ratio{domain="other"}' not in text


def test_domains_beyond_the_cap_are_held_to_their_own_means_together(clock):
    metrics = Metrics(max_domain_labels=0)
    mine = metrics.for_bundle(model="m", version="v", alias="a", mean_scores={"a": 0.1, "b": 0.5, "c": None})
    mine.scored(domain="a", score_sum=1.0, num_items=10, **READS)
    mine.scored(domain="b", score_sum=2.5, num_items=10, **READS)
    mine.scored(domain="c", score_sum=7.0, num_items=10, **READS)
    text = metrics.render().decode()
    ratio = next(
        line for line in text.splitlines() if line.startswith('ctr_mean_score_ratio{domain="other"}')
    )
    assert float(ratio.split()[1]) == pytest.approx(3.5 / 6.0)
    assert 'ctr_mean_score_window_candidates{domain="other"} 20.0\n' in text
