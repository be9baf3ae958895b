"""What the metrics refuse, read from the message; and what they take from numpy's many forms."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from training.metrics import (
    MetricError,
    auc,
    auc_interval,
    batch_sums,
    calibration_ratio,
    expected_calibration_error,
    gauc,
    grouped_auc,
    logloss,
    logloss_from_logits,
    reliability_curve,
)

EDGES = np.array([0.5])


def streamed(labels: Any, probabilities: Any) -> Any:
    """Bring `batch_sums` into the shape of the other metrics."""
    return batch_sums(labels, probabilities, edges=EDGES)


ON_SCORES = [auc, auc_interval]
ON_PROBABILITIES = [logloss, calibration_ratio, expected_calibration_error, reliability_curve, streamed]
Metric = Callable[[Any, Any], Any]


@pytest.mark.parametrize("metric", [*ON_SCORES, *ON_PROBABILITIES, logloss_from_logits])
@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([], [], r"^labels has no rows; a metric needs at least one$"),
        ([0, 1, 1], [0.5, 0.5], r"^labels has 3 rows but \w+ has 2$"),
        ([0, 2], [0.5, 0.5], r"^labels must be 0 or 1, got 2.0 at row 1$"),
        ([-1, 1], [0.5, 0.5], r"^labels must be 0 or 1, got -1.0 at row 0$"),
        ([0.0, np.nan], [0.5, 0.5], r"^labels must be 0 or 1, got nan at row 1$"),
        (["0", "1"], [0.5, 0.5], r"^labels must be numeric, got dtype <U1$"),
        ([[0, 1]], [0.5, 0.5], r"^labels must have one dimension, got shape \(1, 2\)$"),
        ([0, 1], [[0.5, 0.5]], r"^\w+ must have one dimension, got shape \(1, 2\)$"),
        ([0, 1], ["a", "b"], r"^\w+ must be numeric, got dtype <U1$"),
    ],
)
def test_every_metric_refuses_unusable_rows(metric: Metric, labels: Any, scores: Any, message: str) -> None:
    """Empty, unequal, non-binary, non-numeric or many-dimensional input is named with its value."""
    with pytest.raises(MetricError, match=message):
        metric(labels, scores)


@pytest.mark.parametrize("metric", ON_SCORES)
def test_nan_scores_are_refused(metric: Metric) -> None:
    """A NaN score has no place in an order, so it is named instead of sorted last."""
    with pytest.raises(MetricError, match=r"^scores must not be NaN, got nan at row 1$"):
        metric([0, 1], [0.5, np.nan])


@pytest.mark.parametrize("metric", ON_PROBABILITIES)
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1.5, r"^probabilities must lie in \[0, 1\], got 1.5 at row 1$"),
        (-0.1, r"^probabilities must lie in \[0, 1\], got -0.1 at row 1$"),
        (np.inf, r"^probabilities must lie in \[0, 1\], got inf at row 1$"),
        (np.nan, r"^probabilities must not be NaN, got nan at row 1$"),
    ],
)
def test_what_is_no_probability_is_refused(metric: Metric, value: float, message: str) -> None:
    """Logits handed in as probabilities show up as values outside [0, 1]."""
    with pytest.raises(MetricError, match=message):
        metric([0, 1], [0.5, value])


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_logits_must_be_finite(value: float) -> None:
    """An infinite logit would make the mean infinite or NaN."""
    with pytest.raises(MetricError, match=rf"^logits must be finite, got {value} at row 0$"):
        logloss_from_logits([1, 0], [value, 0.0])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, -1], r"^weights must be finite and not negative, got -1.0 at row 1$"),
        ([np.nan, 1], r"^weights must be finite and not negative, got nan at row 0$"),
        ([np.inf, 1], r"^weights must be finite and not negative, got inf at row 0$"),
        ([0, 0], r"^weights must not all be 0, got 2 zeros$"),
        ([1, 1, 1], r"^labels has 2 rows but weights has 3$"),
        ([], r"^labels has 2 rows but weights has 0$"),
    ],
)
def test_unusable_weights_are_refused(weights: list[float], message: str) -> None:
    """Negative, non-finite, vanishing or miscounted weights are named by AUC and both losses."""
    with pytest.raises(MetricError, match=message):
        auc([0, 1], [0.1, 0.2], weights)
    with pytest.raises(MetricError, match=message):
        logloss([0, 1], [0.1, 0.2], weights=weights)
    with pytest.raises(MetricError, match=message):
        logloss_from_logits([0, 1], [0.1, 0.2], weights=weights)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0.5, 1.5], "must be integers or strings, got dtype float64"),
        (np.array(["a", None], dtype=object), "must be integers or strings, got dtype object"),
        ([[1, 2]], r"must have one dimension, got shape \(1, 2\)"),
    ],
)
def test_ids_without_an_exact_order_are_refused(ids: Any, message: str) -> None:
    """Float and object ids are refused under the name the caller knows them by."""
    with pytest.raises(MetricError, match=f"^users {message}$"):
        gauc([0, 1], [0.1, 0.2], ids)
    with pytest.raises(MetricError, match=f"^groups {message}$"):
        grouped_auc([0, 1], [0.1, 0.2], ids)


def test_ids_must_match_the_rows() -> None:
    """A missing id is reported as a length, an empty set as no rows."""
    with pytest.raises(MetricError, match=r"^labels has 2 rows but users has 1$"):
        gauc([0, 1], [0.1, 0.2], [1])
    with pytest.raises(MetricError, match=r"^labels has 2 rows but groups has 3$"):
        grouped_auc([0, 1], [0.1, 0.2], [1, 1, 2])
    with pytest.raises(MetricError, match=r"^labels has no rows; a metric needs at least one$"):
        grouped_auc([], [], [])


@pytest.mark.parametrize("metric", [expected_calibration_error, reliability_curve])
def test_bins_must_be_at_least_one(metric: Callable[..., Any]) -> None:
    """Zero bins hold no rows."""
    with pytest.raises(MetricError, match=r"^num_bins must be at least 1, got 0$"):
        metric([0, 1], [0.1, 0.2], num_bins=0)


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.uint8, np.int64, np.float32, np.float64])
def test_labels_may_have_any_numeric_dtype(dtype: type[np.generic]) -> None:
    """0 and 1 mean the same in every dtype a data set stores them in."""
    labels = np.array([0, 1, 1, 0], dtype=dtype)
    assert auc(labels, [0.1, 0.2, 0.3, 0.4]) == 0.5


def test_metric_error_is_a_value_error() -> None:
    """Callers that know nothing of this package may catch ValueError."""
    assert issubclass(MetricError, ValueError)
