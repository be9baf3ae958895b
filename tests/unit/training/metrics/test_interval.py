"""`auc_interval` against hand-worked variances, DeLong's definition, Hanley-McNeil and simulated coverage."""

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.metrics import auc, auc_interval

ROWS = st.lists(st.tuples(st.booleans(), st.integers(-4, 4)), min_size=1, max_size=30)
Z = NormalDist().inv_cdf(0.975)


def test_delong_by_hand() -> None:
    """Domain d0 of the worked example: parts 1, 2/3, 1 on both sides give variance 1/81 + 1/81 around 8/9."""
    interval = auc_interval([1, 0, 1, 0, 0, 1], [0.9, 0.2, 0.4, 0.5, 0.1, 0.8])
    assert interval.method == "delong"
    assert interval.auc == pytest.approx(8 / 9, abs=1e-12)
    assert interval.low == pytest.approx(8 / 9 - 1.959964 * 2**0.5 / 9, abs=1e-6)
    assert interval.high == 1.0


def test_delong_agrees_with_its_definition() -> None:
    """With ties, the fast form equals the variance of the full matrix of pair outcomes."""
    rng = np.random.default_rng(5)
    labels = rng.random(300) < 0.3
    scores = np.round(rng.normal(size=300) + 0.7 * labels, 1)
    positives, negatives = scores[labels], scores[~labels]
    outcomes = (positives[:, None] > negatives) + 0.5 * (positives[:, None] == negatives)
    variance = outcomes.mean(axis=1).var(ddof=1) / len(positives)
    variance += outcomes.mean(axis=0).var(ddof=1) / len(negatives)
    interval = auc_interval(labels, scores)
    assert interval.method == "delong"
    assert interval.auc == pytest.approx(outcomes.mean(), abs=1e-12)
    assert interval.low == pytest.approx(outcomes.mean() - Z * variance**0.5, abs=1e-12)
    assert interval.high == pytest.approx(outcomes.mean() + Z * variance**0.5, abs=1e-12)


def test_interval_of_one_pair_by_hand() -> None:
    """One positive above one negative: (1 - t)^2 = z^2 t (1 - t) gives the bound 1 / (1 + z^2) = .206549."""
    interval = auc_interval([0, 1], [0.1, 0.9])
    assert interval.method == "newcombe"
    assert (interval.auc, interval.high) == (1.0, 1.0)
    assert interval.low == pytest.approx(0.206549, abs=1e-6)


@pytest.mark.parametrize(
    ("labels", "scores"),
    [
        pytest.param([0, 0, 0, 1, 1, 1, 1], [1, 2, 3, 4, 5, 6, 7], id="perfect"),
        pytest.param([0, 0, 0, 0, 1], [1, 2, 4, 5, 3], id="one-positive"),
        pytest.param([0, 1, 1, 0], [1, 1, 1, 1], id="constant-score"),
    ],
)
def test_score_interval_solves_hanley_mcneil(labels: list[int], scores: list[float]) -> None:
    """Each inner bound t lies 1.96 Hanley-McNeil standard errors, taken at t, from the AUC."""
    interval = auc_interval(labels, scores)
    assert interval.method == "newcombe"
    num_positives, num_negatives = sum(labels), len(labels) - sum(labels)
    mean_size = len(labels) / 2
    for bound in (interval.low, interval.high):
        if bound in (0.0, 1.0):
            continue
        q1, q2 = bound / (2 - bound), 2 * bound**2 / (1 + bound)
        variance = bound * (1 - bound) + (mean_size - 1) * (q1 + q2 - 2 * bound**2)
        variance /= num_positives * num_negatives
        assert abs(interval.auc - bound) == pytest.approx(Z * variance**0.5, abs=1e-9)


def test_perfect_order_of_few_rows_is_not_taken_as_certain() -> None:
    """Where DeLong's variance is 0 the interval still has width, and more rows make it narrower."""
    few = auc_interval(np.arange(6) > 2, np.arange(6))
    many = auc_interval(np.arange(600) > 299, np.arange(600))
    assert 0.3 < few.low < 0.9 < many.low < 1.0
    assert few.high == many.high == 1.0


@given(ROWS)
def test_interval_brackets_the_auc(rows: list[tuple[bool, int]]) -> None:
    """0 <= low <= auc <= high <= 1 with some width, or all three are nan when a class is missing."""
    labels, scores = [row[0] for row in rows], [row[1] for row in rows]
    interval = auc_interval(labels, scores)
    if all(labels) or not any(labels):
        assert interval.method == "undefined"
        assert np.isnan([interval.auc, interval.low, interval.high]).all()
        return
    assert interval.auc == pytest.approx(auc(labels, scores), abs=1e-12)
    assert 0 <= interval.low <= interval.auc <= interval.high <= 1
    assert interval.high - interval.low > 0.01


@given(ROWS)
def test_interval_mirrors_when_scores_are_negated(rows: list[tuple[bool, int]]) -> None:
    """The interval of negated scores is 1 minus the interval, ends swapped."""
    labels, scores = [row[0] for row in rows], [row[1] for row in rows]
    interval, mirrored = auc_interval(labels, scores), auc_interval(labels, [-score for score in scores])
    np.testing.assert_allclose(
        [mirrored.low, mirrored.high], [1 - interval.high, 1 - interval.low], atol=1e-9, rtol=0
    )


def test_interval_covers_the_true_auc_in_95_percent_of_samples() -> None:
    """On normal scores one deviation apart, 600 intervals hold the true AUC at the promised rate."""
    rng = np.random.default_rng(11)
    truth = NormalDist().cdf(1 / 2**0.5)
    labels = np.arange(120) < 40
    intervals = [auc_interval(labels, rng.normal(size=120) + labels) for _ in range(600)]
    coverage = np.mean([interval.low <= truth <= interval.high for interval in intervals])
    # Three standard errors of a share of .95 in 600 draws are .027.
    assert 0.95 - 0.027 < coverage < 0.95 + 0.027
