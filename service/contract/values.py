"""One raw value to an id or a number, by the rule of its encoder.

Pure. Invariant: an id lies in [0, num_rows) of its encoder, and equal values of different types (7, "7", a
numpy 7) have one id; a value of a wrong kind raises TypeError or ValueError, which the caller explains.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from service.contract.schema import (
    FIRST_ID,
    MISSING_ID,
    UNKNOWN_ID,
    BucketiseEncoder,
    HashEncoder,
    IdEncoder,
    StandardiseEncoder,
    VocabularyEncoder,
)

IdOf = Callable[[Any], int]


def canonical(value: Any) -> str:
    """One spelling for a categorical value, so that 7, np.int64(7) and "7" are the same id.

    Raises:
        TypeError: Not a string, integer or boolean.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, int | np.integer):
        return str(int(value))
    raise TypeError(type(value).__name__)


def hash_id(value: str, encoder: HashEncoder) -> int:
    """Row of a value under a hash encoder; the same in every process, host and release."""
    return FIRST_ID + int(
        xxhash.xxh64_intdigest(value.encode("utf-8", "surrogatepass"), encoder.seed) % encoder.num_buckets
    )


def bucket_id(value: float, encoder: BucketiseEncoder) -> int:
    """Row of a finite number under a bucketise encoder."""
    return FIRST_ID + int(np.searchsorted(encoder.boundaries, value, side="right"))


def vocabulary_rows(encoder: VocabularyEncoder) -> dict[str, int]:
    """Row of every listed value."""
    return {value: FIRST_ID + i for i, value in enumerate(encoder.values)}


def id_function(encoder: IdEncoder) -> IdOf:
    """Function from one raw value to its id; raises TypeError or ValueError on values of a wrong kind."""
    if isinstance(encoder, VocabularyEncoder):
        rows = vocabulary_rows(encoder)

        def vocabulary(value: Any) -> int:
            if value is None:
                return MISSING_ID
            return rows.get(value if type(value) is str else canonical(value), UNKNOWN_ID)

        return vocabulary
    if isinstance(encoder, HashEncoder):

        def hashed(value: Any) -> int:
            return MISSING_ID if value is None else hash_id(canonical(value), encoder)

        return hashed

    def bucketised(value: Any) -> int:
        number = number_of(value)
        return MISSING_ID if math.isnan(number) else bucket_id(number, encoder)

    return bucketised


def number_of(value: Any) -> float:
    """A finite float, or NaN for None; refuses strings, booleans and infinities."""
    if value is None:
        return math.nan
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(type(value).__name__)
    number = float(value)
    if math.isinf(number):
        raise ValueError(number)
    return number


def standardise(values: NDArray[np.float64], encoder: StandardiseEncoder) -> NDArray[np.float32]:
    """Apply a standardise encoder; NaN (missing) becomes 0. Any shape, float64 to float32."""
    moved = np.sign(values) * np.log1p(np.abs(values)) if encoder.transform == "log1p" else values
    with np.errstate(over="ignore"):  # an overflow is an infinity, which the clip then bounds
        scaled = (moved - encoder.mean) / encoder.std
    # np.clip and np.nan_to_num cost more than the work on the few rows of a request.
    clipped = np.minimum(np.maximum(scaled, -encoder.clip), encoder.clip)
    clipped[np.isnan(clipped)] = 0.0
    return clipped.astype(np.float32)


__all__ = [
    "IdOf",
    "bucket_id",
    "canonical",
    "hash_id",
    "id_function",
    "number_of",
    "standardise",
    "vocabulary_rows",
]
