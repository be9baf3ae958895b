"""Ranks, HR@k, NDCG@k and MRR against hand values and scikit-learn."""

import math

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.metrics import ndcg_score  # type: ignore[import-untyped,unused-ignore]

from training.metrics import MetricError, hit_rate_at_k, mrr, ndcg_at_k, ranks_of_positive

SCORES = [[0.9, 0.1, 0.5], [0.2, 0.3, 0.1], [0.1, 0.7, 0.6]]


def test_rank_counts_the_candidates_above() -> None:
    """Rank 0 is the best candidate and N - 1 the worst."""
    assert_array_equal(ranks_of_positive(SCORES, [0, 0, 0]), [0, 1, 2])
    assert_array_equal(ranks_of_positive(SCORES, [2, 1, 2]), [1, 0, 1])


def test_one_index_serves_all_rows() -> None:
    """A single integer stands for the same column in every row."""
    assert_array_equal(ranks_of_positive(SCORES, 0), [0, 1, 2])


def test_ties_count_against_the_positive() -> None:
    """A constant score ranks the positive last wherever it stands; a partial tie costs its own size."""
    assert_array_equal(ranks_of_positive(np.zeros((2, 5)), [0, 4]), [4, 4])
    assert_array_equal(ranks_of_positive([[0.5, 0.9, 0.5, 0.1]], [0]), [2])


def test_minus_infinity_leaves_a_candidate_out() -> None:
    """Masked candidates rank below any finite positive."""
    assert_array_equal(ranks_of_positive([[0.1, -np.inf, 0.2, -np.inf]], [0]), [1])


def test_metrics_by_hand() -> None:
    """Ranks 0, 1, 4: HR counts ranks below k, NDCG adds 1 / log2(rank + 2), MRR is not cut."""
    ranks = [0, 1, 4]
    assert hit_rate_at_k(ranks, 1) == pytest.approx(1 / 3, abs=1e-12)
    assert hit_rate_at_k(ranks, 2) == pytest.approx(2 / 3, abs=1e-12)
    assert hit_rate_at_k(ranks, 5) == 1.0
    assert ndcg_at_k(ranks, 1) == pytest.approx(1 / 3, abs=1e-12)
    assert ndcg_at_k(ranks, 4) == pytest.approx((1 + 1 / math.log2(3)) / 3, abs=1e-12)
    assert ndcg_at_k(ranks, 5) == pytest.approx((1 + 1 / math.log2(3) + 1 / math.log2(6)) / 3, abs=1e-12)
    assert mrr(ranks) == pytest.approx((1 + 1 / 2 + 1 / 5) / 3, abs=1e-12)


def test_ndcg_agrees_with_scikit_learn() -> None:
    """On distinct scores NDCG@10 equals scikit-learn's with one relevant candidate."""
    rng = np.random.default_rng(4)
    scores, positives = rng.normal(size=(50, 100)), rng.integers(0, 100, 50)
    relevance = np.eye(100)[positives]
    expected = ndcg_score(relevance, scores, k=10)
    assert ndcg_at_k(ranks_of_positive(scores, positives), 10) == pytest.approx(expected, abs=1e-12)


def test_random_scores_among_100_earn_the_known_chance_level() -> None:
    """Uniform ranks among 100 give HR@10 .10 and NDCG@10 .045, the chance level the specification reports."""
    ranks = np.arange(100)
    assert hit_rate_at_k(ranks, 10) == pytest.approx(0.10, abs=1e-12)
    assert ndcg_at_k(ranks, 10) == pytest.approx(0.045, abs=5e-4)


@pytest.mark.parametrize(
    ("scores", "index", "message"),
    [
        ([0.1, 0.2], [0], r"^scores must have shape \(rows, candidates\), got \(2,\)$"),
        ([["a"]], [0], r"^scores must be numeric, got dtype <U1$"),
        ([[0.1, 0.2], [0.3, np.nan]], [0, 0], r"^scores must not be NaN, got nan at row 1, candidate 1$"),
        ([[0.1, 0.2]], [2], r"^positive_index must lie in \[0, 2\), got 2 at row 0$"),
        ([[0.1, 0.2]], [-1], r"^positive_index must lie in \[0, 2\), got -1 at row 0$"),
        ([[0.1, 0.2]], [0.5], r"^positive_index must be integers, got dtype float64$"),
        ([[0.1, 0.2]], [0, 1], r"^scores has 1 rows but positive_index has 2$"),
        (np.empty((0, 3)), [], r"^scores has no rows; a metric needs at least one$"),
    ],
)
def test_ranks_refuse_what_has_no_rank(scores: list[list[float]], index: list[int], message: str) -> None:
    """Each unusable table or index is named with the offending value."""
    with pytest.raises(MetricError, match=message):
        ranks_of_positive(scores, index)


def test_rank_metrics_refuse_bad_ranks_and_k() -> None:
    """Empty, negative or fractional ranks and k below 1 are errors, not results."""
    with pytest.raises(MetricError, match=r"^ranks has no rows; a metric needs at least one$"):
        mrr([])
    with pytest.raises(MetricError, match=r"^ranks must lie in \[0, 9223372036854775807\), got -1 at row 1$"):
        mrr([0, -1])
    with pytest.raises(MetricError, match=r"^ranks must be integers, got dtype float64$"):
        hit_rate_at_k([0.5], 1)
    with pytest.raises(MetricError, match=r"^k must be at least 1, got 0$"):
        hit_rate_at_k([0], 0)
    with pytest.raises(MetricError, match=r"^k must be at least 1, got -2$"):
        ndcg_at_k([0], -2)
