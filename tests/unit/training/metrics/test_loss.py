"""`logloss` and `logloss_from_logits` against hand values, scikit-learn and each other."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss  # type: ignore[import-untyped,unused-ignore]

from training.metrics import logloss, logloss_from_logits


def test_logloss_by_hand() -> None:
    """Rows (1, .9) and (0, .2) cost -ln .9 and -ln .8: mean .164252."""
    assert logloss([1, 0], [0.9, 0.2]) == pytest.approx(0.164252, abs=1e-6)
    assert logloss([1, 0, 1], [0.5, 0.5, 0.5]) == pytest.approx(math.log(2), abs=1e-12)


def test_weights_count_rows() -> None:
    """Weights 3 and 1 average the two rows three to one; weight 0 takes a row out."""
    expected = (3 * -math.log(0.9) - math.log(0.8)) / 4
    assert logloss([1, 0], [0.9, 0.2], weights=[3, 1]) == pytest.approx(expected, abs=1e-12)
    assert logloss([1, 0], [0.9, 0.2], weights=[0, 2]) == pytest.approx(-math.log(0.8), abs=1e-12)
    assert logloss_from_logits([1, 0], [0.0, 9.0], weights=[1, 0]) == pytest.approx(math.log(2), abs=1e-12)


@pytest.mark.parametrize(("label", "probability"), [(1, 0.0), (0, 1.0)])
def test_certain_and_wrong_costs_the_clip(label: int, probability: float) -> None:
    """A probability of 0 or 1 on the wrong side costs -ln 1e-7 = 16.118096, not infinity."""
    assert logloss([label], [probability]) == pytest.approx(16.118096, abs=1e-6)


def test_certain_and_right_costs_next_to_nothing() -> None:
    """The clip also acts on the right side, where it costs 1e-7."""
    assert logloss([1, 0], [1.0, 0.0]) == pytest.approx(1e-7, rel=1e-6)


@pytest.mark.parametrize(
    ("label", "logit", "expected"),
    [(0, 1000.0, 1000.0), (1, -1000.0, 1000.0), (1, 1000.0, 0.0), (0, -1000.0, 0.0)],
)
def test_large_logits_stay_exact(label: int, logit: float, expected: float) -> None:
    """Logits far past where the sigmoid saturates cost their own size, without overflow."""
    assert logloss_from_logits([label], [logit]) == expected


@given(st.lists(st.tuples(st.booleans(), st.floats(-12, 12)), min_size=1, max_size=20))
def test_logits_and_their_probabilities_cost_the_same(rows: list[tuple[bool, float]]) -> None:
    """Within the clip, the loss of logits is the loss of their sigmoids."""
    labels, logits = [row[0] for row in rows], [row[1] for row in rows]
    probabilities = [1 / (1 + math.exp(-logit)) for logit in logits]
    assert logloss_from_logits(labels, logits) == pytest.approx(logloss(labels, probabilities), rel=1e-6)


def test_logloss_agrees_with_scikit_learn() -> None:
    """Weighted loss of random rows equals scikit-learn's."""
    rng = np.random.default_rng(2)
    labels, probabilities = rng.random(500) < 0.1, rng.uniform(0.001, 0.999, 500)
    weights = rng.exponential(size=500)
    expected = log_loss(labels, probabilities, sample_weight=weights)
    assert logloss(labels, probabilities, weights=weights) == pytest.approx(expected, abs=1e-12)
