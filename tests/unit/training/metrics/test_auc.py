"""`auc`, `grouped_auc` and `gauc` against hand counts, the specifications, scikit-learn and pair counting."""

import time
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score  # type: ignore[import-untyped,unused-ignore]

from training.metrics import MetricError, auc, gauc, grouped_auc

# Few distinct scores, so that ties are common.
ROWS = st.lists(st.tuples(st.booleans(), st.integers(-4, 4), st.integers(0, 3)), min_size=1, max_size=30)

# A worked example: (3 * .5 + 4 * .75) / 7 = .642857. The scores of the all-negative user u3 leave 13 of
# 18 pooled pairs in order.
GAUC_USERS = ["u1"] * 3 + ["u2"] * 4 + ["u3"] * 2
GAUC_LABELS = [1, 0, 0, 1, 1, 0, 0, 0, 0]
GAUC_SCORES = [0.9, 0.2, 0.95, 0.8, 0.3, 0.4, 0.1, 0.35, 0.25]


def auc_by_pairs(labels: list[bool], scores: list[int]) -> float:
    """Count every (positive, negative) pair: 1 in order, 1/2 tied, 0 otherwise."""
    wins = [
        (positive > negative) + (positive == negative) / 2
        for positive, is_click in zip(scores, labels, strict=True)
        if is_click
        for negative, is_other_click in zip(scores, labels, strict=True)
        if not is_other_click
    ]
    return sum(wins) / len(wins) if wins else float("nan")


def columns(rows: list[tuple[bool, int, int]]) -> tuple[list[bool], list[int], list[int]]:
    """Split drawn rows into labels, scores and groups."""
    return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]


@pytest.mark.parametrize(
    ("labels", "scores", "expected"),
    [
        pytest.param([1, 0, 1, 0, 0, 1], [0.9, 0.2, 0.4, 0.5, 0.1, 0.8], 8 / 9, id="spec-d7-d0"),
        pytest.param([1, 0, 0, 1], [0.6, 0.7, 0.2, 0.65], 0.5, id="spec-d7-d1"),
        pytest.param([0, 1], [0.3, 0.3], 0.5, id="one-tie"),
        pytest.param([1, 0, 0], [2.0, 2.0, 1.0], 0.75, id="half-tied"),
        pytest.param([0, 1], [-np.inf, np.inf], 1.0, id="infinite-scores"),
        pytest.param([1, 1, 0, 0], [-np.inf, np.inf, np.inf, -np.inf], 0.5, id="tied-infinities"),
        pytest.param([0, 1, 1], [3, 2, 1], 0.0, id="all-wrong"),
    ],
)
def test_auc_by_hand(labels: list[int], scores: list[float], expected: float) -> None:
    """Each positive earns 1 per negative below it and 1/2 per tie, over all pairs."""
    assert auc(labels, scores) == pytest.approx(expected, abs=1e-12)


def test_pooled_auc_of_spec_d7() -> None:
    """TotalAUC over the 13 rows of the specification's three domains is .9."""
    labels = [1, 0, 1, 0, 0, 1, 1, 0, 0, 1, 0, 0, 0]
    scores = [0.9, 0.2, 0.4, 0.5, 0.1, 0.8, 0.6, 0.7, 0.2, 0.65, 0.3, 0.1, 0.2]
    assert auc(labels, scores) == pytest.approx(0.9, abs=1e-12)


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1]])
def test_auc_of_one_class_is_nan(labels: list[int]) -> None:
    """With one class there are no pairs, so AUC is undefined rather than an error or a number."""
    assert np.isnan(auc(labels, [0.3, 0.1, 0.2]))


def test_auc_is_nan_when_a_class_has_no_weight() -> None:
    """Rows of weight 0 do not count, so a class that has only such rows is missing."""
    assert np.isnan(auc([0, 1, 1], [0.1, 0.2, 0.3], weights=[0, 1, 1]))


@given(ROWS)
def test_auc_equals_pair_counting(rows: list[tuple[bool, int, int]]) -> None:
    """The sorted form gives exactly what counting every pair gives, ties included."""
    labels, scores, _ = columns(rows)
    np.testing.assert_allclose(auc(labels, scores), auc_by_pairs(labels, scores), rtol=0, atol=1e-12)


@given(ROWS, st.randoms(use_true_random=False))
def test_auc_ignores_row_order_and_increasing_transforms(
    rows: list[tuple[bool, int, int]], random: Random
) -> None:
    """Shuffling rows or cubing and shifting scores leaves AUC bit for bit the same."""
    labels, scores, _ = columns(rows)
    expected = auc(labels, scores)
    random.shuffle(rows)
    labels, scores, _ = columns(rows)
    np.testing.assert_array_equal(auc(labels, [score**3 + 5 for score in scores]), expected)


@given(ROWS)
def test_flipping_scores_or_labels_mirrors_auc(rows: list[tuple[bool, int, int]]) -> None:
    """AUC of negated scores, and of swapped classes, is 1 - AUC."""
    labels, scores, _ = columns(rows)
    mirrored = 1 - auc(labels, scores)
    np.testing.assert_allclose(auc(labels, [-score for score in scores]), mirrored, atol=1e-12)
    np.testing.assert_allclose(auc([not label for label in labels], scores), mirrored, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weighted_auc_agrees_with_scikit_learn(dtype: type[np.floating]) -> None:
    """Weighted AUC with many ties equals scikit-learn's, for both float widths."""
    rng = np.random.default_rng(3)
    labels = rng.random(2000) < 0.2
    scores = (np.round(rng.normal(size=2000) + labels, 1)).astype(dtype)
    weights = rng.exponential(size=2000)
    assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    expected = roc_auc_score(labels, scores, sample_weight=weights)
    assert auc(labels, scores, weights) == pytest.approx(expected, abs=1e-12)


def test_integer_weights_act_as_repeated_rows() -> None:
    """A row of weight w counts as w copies of it."""
    labels, scores, weights = [1, 0, 1, 0], [0.4, 0.4, 0.2, 0.1], [3, 1, 2, 4]
    repeated = auc(np.repeat(labels, weights), np.repeat(scores, weights))
    assert auc(labels, scores, weights) == pytest.approx(repeated, abs=1e-12)


def test_perfect_order_never_exceeds_one_under_rounding() -> None:
    """With weights that round, AUC of a perfect order is at most 1."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        weights = rng.exponential(size=12)
        assert 1 - 1e-12 < auc(np.arange(12) > 5, np.arange(12), weights) <= 1


@given(ROWS)
def test_grouped_auc_equals_the_auc_of_each_group(rows: list[tuple[bool, int, int]]) -> None:
    """One sort gives, for each group id, the counts and AUC of that group's rows taken alone."""
    labels, scores, groups = columns(rows)
    result = grouped_auc(labels, scores, groups)
    assert result.groups.tolist() == sorted(set(groups))
    for position, group in enumerate(result.groups.tolist()):
        own = [row for row in rows if row[2] == group]
        own_labels, own_scores, _ = columns(own)
        assert result.rows[position] == len(own)
        assert result.positives[position] == sum(own_labels)
        expected = auc_by_pairs(own_labels, own_scores)
        np.testing.assert_allclose(result.auc[position], expected, rtol=0, atol=1e-12)


def test_equal_scores_in_neighbouring_groups_are_not_tied() -> None:
    """A score that ends one group and starts the next makes no pair across the groups."""
    result = grouped_auc([0, 1, 0, 1], [0.1, 0.5, 0.5, 0.9], ["a", "a", "b", "b"])
    assert result.auc.tolist() == [1.0, 1.0]


def test_gauc_of_the_specification() -> None:
    """GAUC is (3 * .5 + 4 * .75) / 7 = .642857 while pooled AUC is .722222."""
    assert gauc(GAUC_LABELS, GAUC_SCORES, GAUC_USERS) == pytest.approx(0.642857, abs=1e-6)
    assert auc(GAUC_LABELS, GAUC_SCORES) == pytest.approx(0.722222, abs=1e-6)


def test_gauc_weightings() -> None:
    """Users .5 and .75 count 3 : 4 by impressions, 1 : 2 by clicks, 1 : 1 uniformly."""
    rows = (GAUC_LABELS, GAUC_SCORES, GAUC_USERS)
    assert gauc(*rows, weighting="impressions") == pytest.approx(4.5 / 7, abs=1e-12)
    assert gauc(*rows, weighting="clicks") == pytest.approx(2 / 3, abs=1e-12)
    assert gauc(*rows, weighting="uniform") == pytest.approx(0.625, abs=1e-12)


@pytest.mark.parametrize(
    "ids", [[7, 3, 7, 3], [2**62, -1, 2**62, -1], ["b", "a", "b", "a"], [True, False] * 2]
)
def test_gauc_takes_integer_and_string_users(ids: list[int] | list[str]) -> None:
    """Ids are only told apart, so sparse integers, negative ones and strings give the same GAUC."""
    assert gauc([1, 0, 0, 1], [0.9, 0.9, 0.1, 0.2], ids) == pytest.approx(0.5, abs=1e-12)


def test_gauc_without_a_user_of_both_classes_is_nan() -> None:
    """When every user is left out there is nothing to average."""
    assert np.isnan(gauc([1, 0], [0.9, 0.1], [1, 2]))


def test_gauc_refuses_an_unknown_weighting() -> None:
    """A misspelt weighting is named, with the three that exist."""
    message = "^weighting must be 'impressions', 'clicks' or 'uniform', got 'rows'$"
    with pytest.raises(MetricError, match=message):
        gauc([1, 0], [0.9, 0.1], [1, 1], weighting="rows")  # type: ignore[arg-type]


def test_gauc_of_25k_users_takes_under_50_ms() -> None:
    """30 k rows of 25 k users, a usual evaluation set, cost less than 50 ms at best of five."""
    rng = np.random.default_rng(1)
    users = rng.integers(0, 25_000, 30_000)
    labels, scores = rng.random(30_000) < 0.3, rng.random(30_000)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        gauc(labels, scores, users)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.05
