"""Sums of batches against the metrics of all rows at once and against hand values."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.metrics import (
    MetricError,
    batch_sums,
    calibration_ratio,
    equal_mass_edges,
    expected_calibration_error,
    logloss,
    values_of_sums,
)

LABELS, PROBABILITIES = [0, 1, 0, 1], [0.1, 0.3, 0.6, 0.8]
EDGES = np.array([0.5])


def test_sums_by_hand() -> None:
    """The table holds rows, clicks, promised clicks and loss of each bin."""
    sums = batch_sums(LABELS, PROBABILITIES, edges=EDGES)
    losses = [-np.log(0.9 * 0.3), -np.log(0.4 * 0.8)]
    np.testing.assert_allclose(sums, [[2, 1, 0.4, losses[0]], [2, 1, 1.4, losses[1]]], atol=1e-12)


def test_values_by_hand() -> None:
    """Bins (.2 promised, .5 seen) and (.7, .5) give ECE .25; 1.8 clicks promised of 2 give ratio .9."""
    values = values_of_sums(batch_sums(LABELS, PROBABILITIES, edges=EDGES))
    assert (values.rows, values.positives) == (4, 2)
    assert values.ece == pytest.approx(0.25, abs=1e-12)
    assert values.calibration_ratio == pytest.approx(0.9, abs=1e-12)
    assert values.logloss == pytest.approx(-np.log(0.9 * 0.3 * 0.4 * 0.8) / 4, abs=1e-12)


def test_ratio_without_clicks_is_nan() -> None:
    """A window in which nobody clicked has no calibration ratio."""
    assert np.isnan(values_of_sums(batch_sums([0], [0.2], edges=EDGES)).calibration_ratio)


@given(
    st.lists(
        st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1, max_size=8), min_size=1, max_size=5
    )
)
def test_added_sums_have_the_values_of_all_rows(batches: list[list[tuple[bool, float]]]) -> None:
    """However rows are cut into batches, loss and ratio equal those of the rows together."""
    edges = np.array([0.2, 0.7])
    sums = np.zeros((3, 4))
    for batch in batches:
        sums += batch_sums([row[0] for row in batch], [row[1] for row in batch], edges=edges)
    rows = [row for batch in batches for row in batch]
    labels, probabilities = [row[0] for row in rows], [row[1] for row in rows]
    values = values_of_sums(sums)
    assert (values.rows, values.positives) == (len(rows), sum(labels))
    assert values.logloss == pytest.approx(logloss(labels, probabilities), abs=1e-9)
    np.testing.assert_allclose(values.calibration_ratio, calibration_ratio(labels, probabilities), atol=1e-9)


def test_equal_mass_edges_lead_to_the_equal_mass_ece() -> None:
    """Edges taken from the very rows cut them into the same bins as `expected_calibration_error`."""
    rng = np.random.default_rng(9)
    probabilities = rng.random(600)
    labels = rng.random(600) < probabilities**2
    edges = equal_mass_edges(probabilities, num_bins=6)
    sums = batch_sums(labels, probabilities, edges=edges)
    assert sums[:, 0].tolist() == [100.0] * 6
    expected = expected_calibration_error(labels, probabilities, num_bins=6)
    assert values_of_sums(sums).ece == pytest.approx(expected, abs=1e-12)


def test_edges_of_tied_scores_are_distinct() -> None:
    """A constant sample gives one edge, not num_bins - 1 equal ones."""
    assert equal_mass_edges([0.4] * 10, num_bins=5).tolist() == [0.4]
    assert equal_mass_edges([0.1, 0.4], num_bins=1).tolist() == []


def test_streaming_refuses_what_has_no_value() -> None:
    """Edges out of order, an empty sample, no bins and a table without rows are named."""
    with pytest.raises(MetricError, match=r"^edges must be strictly increasing, got \[0.5, 0.5\]$"):
        batch_sums([1], [0.5], edges=np.array([0.5, 0.5]))
    with pytest.raises(MetricError, match=r"^probabilities has no rows; a metric needs at least one$"):
        equal_mass_edges([])
    with pytest.raises(MetricError, match=r"^num_bins must be at least 1, got 0$"):
        equal_mass_edges([0.1], num_bins=0)
    with pytest.raises(MetricError, match=r"^sums hold no rows; a metric needs at least one$"):
        values_of_sums(np.zeros((3, 4)))
