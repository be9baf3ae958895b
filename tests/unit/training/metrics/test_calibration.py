"""Calibration ratio, reliability curve and ECE against hand-worked bins and properties."""

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.metrics import calibration_ratio, expected_calibration_error, reliability_curve

LABELS, PROBABILITIES = [0, 1, 0, 1], [0.1, 0.3, 0.6, 0.8]


def test_calibration_ratio_by_hand() -> None:
    """1.8 clicks promised and 2 seen give .9."""
    assert calibration_ratio(LABELS, PROBABILITIES) == pytest.approx(0.9, abs=1e-12)


def test_calibration_ratio_without_clicks_is_nan() -> None:
    """Nothing observed means nothing to divide by."""
    assert np.isnan(calibration_ratio([0, 0], [0.1, 0.2]))


def test_reliability_curve_by_hand() -> None:
    """Two bins of two rows: .2 promised against .5 seen, .7 against .5; ECE (.3 + .2) / 2 = .25."""
    curve = reliability_curve(LABELS, PROBABILITIES, num_bins=2)
    np.testing.assert_allclose(curve.mean_score, [0.2, 0.7], atol=1e-12)
    np.testing.assert_allclose(curve.mean_label, [0.5, 0.5], atol=1e-12)
    assert curve.rows.tolist() == [2, 2]
    assert expected_calibration_error(LABELS, PROBABILITIES, num_bins=2) == pytest.approx(0.25, abs=1e-12)


def test_ece_weighs_bins_by_rows() -> None:
    """Five rows tied at .2 without a click and one click at .5: gaps .2 and .5 count 5 to 1."""
    labels, probabilities = [0, 0, 0, 0, 0, 1], [0.2] * 5 + [0.5]
    curve = reliability_curve(labels, probabilities, num_bins=2)
    assert curve.rows.tolist() == [5, 1]
    assert curve.ece == pytest.approx((5 * 0.2 + 1 * 0.5) / 6, abs=1e-12)


def test_constant_score_at_the_base_rate_is_calibrated_in_any_row_order() -> None:
    """Tied rows share a bin, so sorting the labels cannot make a calibrated constant look wrong."""
    for labels in ([0, 0, 1, 1], [1, 1, 0, 0], [0, 1, 0, 1]):
        assert expected_calibration_error(labels, [0.5] * 4, num_bins=2) == 0.0


def test_one_bin_is_the_gap_of_the_means() -> None:
    """With a single bin ECE is |mean score - mean label|: |.45 - .5|."""
    assert expected_calibration_error(LABELS, PROBABILITIES, num_bins=1) == pytest.approx(0.05, abs=1e-12)


def test_fewer_rows_than_bins_gives_a_bin_per_row() -> None:
    """Fifteen bins over four distinct scores are four bins, so ECE is the mean of .1, .7, .6, .2."""
    assert len(reliability_curve(LABELS, PROBABILITIES).rows) == 4
    assert expected_calibration_error(LABELS, PROBABILITIES) == pytest.approx(0.4, abs=1e-12)


@given(st.sets(st.integers(0, 1000), min_size=1, max_size=60), st.integers(1, 20))
def test_distinct_scores_fill_bins_evenly(thousandths: set[int], num_bins: int) -> None:
    """Without ties every bin is used and bin sizes differ by at most one row."""
    probabilities = [value / 1000 for value in thousandths]
    rows = reliability_curve([0] * len(probabilities), probabilities, num_bins=num_bins).rows
    assert len(rows) == min(num_bins, len(probabilities))
    assert rows.sum() == len(probabilities)
    assert rows.max() - rows.min() <= 1


@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])), min_size=1, max_size=30),
    st.integers(1, 6),
    st.randoms(use_true_random=False),
)
def test_ece_ignores_row_order_and_is_bounded(
    rows: list[tuple[bool, float]], num_bins: int, random: Random
) -> None:
    """ECE lies between the one-bin gap and 1, and shuffling the rows does not move it, ties or not."""
    labels, probabilities = [row[0] for row in rows], [row[1] for row in rows]
    ece = expected_calibration_error(labels, probabilities, num_bins=num_bins)
    assert abs(np.mean(labels) - np.mean(probabilities)) - 1e-12 <= ece <= 1
    random.shuffle(rows)
    shuffled = expected_calibration_error(
        [row[0] for row in rows], [row[1] for row in rows], num_bins=num_bins
    )
    assert shuffled == pytest.approx(ece, abs=1e-12)


def test_scores_drawn_as_their_own_labels_are_calibrated() -> None:
    """Labels drawn from the scores give a ratio near 1 and an ECE near 0; doubled scores show as 2."""
    rng = np.random.default_rng(7)
    probabilities = rng.beta(2, 20, 200_000)
    labels = rng.random(200_000) < probabilities
    assert calibration_ratio(labels, probabilities) == pytest.approx(1.0, abs=0.03)
    assert expected_calibration_error(labels, probabilities) < 0.005
    assert calibration_ratio(labels, np.minimum(2 * probabilities, 1)) == pytest.approx(2.0, abs=0.06)
