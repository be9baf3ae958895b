"""Array types, checks and tie rules that every module of clustering shares.

Reads and writes nothing. Invariant: choices among domains or clusters go by values
rounded alike (`snap`, `first_max`), so equal values, and values equal but for rounding, are decided by the
lowest id.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from training.clustering.errors import MatrixError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

TIE_DIGITS = 12
"""Decimal digits, relative to the largest magnitude, in which two values must differ not to be a tie."""

TIE = 10.0**-TIE_DIGITS
"""The same as a share of the largest magnitude."""


def as_finite(name: str, values: ArrayLike, shape: Sequence[int | None]) -> FloatArray:
    """Take `values` as float64 of a given shape.

    Args:
        name: How the message calls it.
        values: Anything numpy reads.
        shape: Expected shape; None leaves an axis free.

    Raises:
        MatrixError: another shape, or a NaN or infinite entry.
    """
    array: FloatArray = np.asarray(values, dtype=np.float64)
    _require_shape(name, array, shape)
    if not np.isfinite(array).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise MatrixError(f"{name}{list(where)} is {array[where]}; every entry must be finite")
    return array


def as_mask(name: str, values: ArrayLike, shape: Sequence[int | None]) -> BoolArray:
    """Take `values` as booleans of a given shape.

    Raises:
        MatrixError: another shape or type.
    """
    array = np.asarray(values)
    if array.dtype != np.bool_:
        raise MatrixError(f"{name} has type {array.dtype}; it must be boolean")
    _require_shape(name, array, shape)
    return array


def _require_shape(name: str, array: NDArray[Any], shape: Sequence[int | None]) -> None:
    fits = array.ndim == len(shape) and all(
        want is None or have == want for have, want in zip(array.shape, shape, strict=True)
    )
    if not fits:
        wanted = " x ".join("any" if want is None else str(want) for want in shape)
        raise MatrixError(f"{name} has shape {array.shape}; it must be {wanted}")


def snap(values: FloatArray) -> FloatArray:
    """Round to `TIE_DIGITS` digits relative to the largest magnitude, so that rounding makes no order."""
    scale = float(np.max(np.abs(values), initial=0.0))
    return np.round(values / scale, TIE_DIGITS) if scale > 0 else values


def first_max(values: FloatArray) -> int:
    """Index of the largest of (n,) values, the lowest index among ties."""
    return int(np.argmax(snap(values)))
