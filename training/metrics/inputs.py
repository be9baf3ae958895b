"""Check and convert what callers hand to a metric.

Reads anything numpy can view as an array (lists, CPU tensors, data frame columns); gives one-dimensional
arrays of one fixed dtype. Invariant: past these functions, labels are bool, numbers are float64 without
NaN, ids are sortable, and arrays that belong together have the same, non-zero number of rows.
"""

from collections.abc import Sized
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from training.metrics.errors import MetricError

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]
BoolArray: TypeAlias = NDArray[np.bool_]
IdArray: TypeAlias = NDArray[Any]
"""Integers, booleans or fixed-width strings: whatever numpy sorts exactly."""


def as_labels(labels: ArrayLike) -> BoolArray:
    """Give labels (B,) as bool, True for a click.

    Raises:
        MetricError: not one-dimensional, not numeric, or a value other than 0 and 1.
    """
    values = _as_numbers(labels, name="labels")
    _refuse(values, (values != 0) & (values != 1), name="labels", allowed="be 0 or 1")
    is_positive: BoolArray = values == 1
    return is_positive


def as_scores(scores: ArrayLike, *, name: str = "scores") -> FloatArray:
    """Give scores (B,) as float64 for ranking; infinities are kept, as their order is defined.

    Raises:
        MetricError: not one-dimensional, not numeric, or NaN.
    """
    values = _as_numbers(scores, name=name)
    _refuse(values, np.isnan(values), name=name, allowed="not be NaN")
    return values


def as_logits(logits: ArrayLike) -> FloatArray:
    """Give logits (B,) as float64.

    Raises:
        MetricError: not one-dimensional, not numeric, NaN or infinite.
    """
    values = _as_numbers(logits, name="logits")
    _refuse(values, ~np.isfinite(values), name="logits", allowed="be finite")
    return values


def as_probabilities(probabilities: ArrayLike, *, name: str = "probabilities") -> FloatArray:
    """Give click probabilities (B,) as float64.

    Raises:
        MetricError: not one-dimensional, not numeric, NaN, or outside [0, 1].
    """
    values = as_scores(probabilities, name=name)
    _refuse(values, (values < 0) | (values > 1), name=name, allowed="lie in [0, 1]")
    return values


def as_weights(weights: ArrayLike) -> FloatArray:
    """Give row weights (B,) as float64.

    Raises:
        MetricError: not one-dimensional, not numeric, negative, not finite, or all zero.
    """
    values = _as_numbers(weights, name="weights")
    _refuse(
        values, ~(np.isfinite(values) & (values >= 0)), name="weights", allowed="be finite and not negative"
    )
    if len(values) and not values.any():
        raise MetricError(f"weights must not all be 0, got {len(values)} zeros")
    return values


def as_ids(ids: ArrayLike, *, name: str) -> IdArray:
    """Give ids (B,) of users or groups: integers, booleans or fixed-width strings.

    Raises:
        MetricError: not one-dimensional, or a dtype whose order is not exact (float, object).
    """
    values = np.asarray(ids)
    _require_one_dimension(values, name=name)
    if len(values) == 0:  # numpy makes an empty list float64; `require_same_rows` has the better message
        return np.empty(0, dtype=np.int64)
    if values.dtype.kind not in "iubUS":
        raise MetricError(f"{name} must be integers or strings, got dtype {values.dtype}")
    return values


def as_indices(indices: ArrayLike, *, size: int, name: str) -> IntArray:
    """Give indices (B,) as int64, each in [0, size).

    Raises:
        MetricError: not one-dimensional, not integers, or out of range.
    """
    values = np.asarray(indices)
    _require_one_dimension(values, name=name)
    if len(values) == 0:
        return np.empty(0, dtype=np.int64)
    if values.dtype.kind not in "iu":
        raise MetricError(f"{name} must be integers, got dtype {values.dtype}")
    _refuse(values, (values < 0) | (values >= size), name=name, allowed=f"lie in [0, {size})")
    return values.astype(np.int64)


def require_same_rows(**arrays: Sized) -> None:
    """Refuse arrays that do not describe the same rows, or that describe none.

    Raises:
        MetricError: two lengths differ (both are named), or the length is 0.
    """
    (first, reference), *rest = arrays.items()
    for name, array in rest:
        if len(array) != len(reference):
            raise MetricError(f"{first} has {len(reference)} rows but {name} has {len(array)}")
    if len(reference) == 0:
        raise MetricError(f"{first} has no rows; a metric needs at least one")


def require_at_least_one(value: int, *, name: str) -> None:
    """Refuse a count below 1.

    Raises:
        MetricError: `value` < 1.
    """
    if value < 1:
        raise MetricError(f"{name} must be at least 1, got {value}")


def _as_numbers(values: ArrayLike, *, name: str) -> FloatArray:
    array = np.asarray(values)
    _require_one_dimension(array, name=name)
    if array.dtype.kind not in "fiub":
        raise MetricError(f"{name} must be numeric, got dtype {array.dtype}")
    return array.astype(np.float64)


def _require_one_dimension(array: NDArray[Any], *, name: str) -> None:
    if array.ndim != 1:
        raise MetricError(f"{name} must have one dimension, got shape {array.shape}")


def _refuse(values: NDArray[Any], bad: BoolArray, *, name: str, allowed: str) -> None:
    if bad.any():
        row = int(bad.argmax())
        raise MetricError(f"{name} must {allowed}, got {values[row]} at row {row}")
