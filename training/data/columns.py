"""Arrow columns to canonical values, codes and numbers, whole columns at a time.

Pure apart from the growing `Codes`. Invariant: values are spelled by the contract's `canonical`, so a code
found here and an id found by the service's encoder come from the same string.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from service.contract.values import canonical
from training.data.errors import TableError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def one_array(column: Any) -> Any:
    """A chunked column as one array; an array as it is."""
    if isinstance(column, pa.ChunkedArray):
        return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    return column


def tidy(array: Any, place: str) -> Any:
    """Categorical values as strings, integers or booleans.

    Floats that hold whole numbers only (integers with gaps, as pandas and polars write them) become
    integers; NaN becomes null.

    Raises:
        TableError: Fractional numbers, or a type that no category can have.
    """
    kind = array.type
    if pa.types.is_dictionary(kind):
        return tidy(array.cast(kind.value_type), place)
    if pa.types.is_floating(kind):
        values = array.to_numpy(zero_copy_only=False).astype(np.float64)
        missing = np.isnan(values)
        whole = np.where(missing, 0.0, values)
        if not (np.isfinite(whole).all() and (whole == np.floor(whole)).all()):
            raise TableError(f"{place}: fractional numbers cannot be categories; use kind: numeric")
        return pa.array(whole.astype(np.int64), mask=missing)
    if pa.types.is_null(kind):
        return array.cast(pa.string())
    if pa.types.is_date(kind):
        return array.cast(pa.string())
    if not (
        pa.types.is_integer(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
    ):
        raise TableError(f"{place}: type {kind} cannot hold categories; allowed: string, integer, boolean")
    return array


def distinct(array: Any, place: str) -> tuple[Ints, list[str]]:
    """Factorise a categorical column.

    Returns:
        (n,) int64 index into the list, -1 for missing; the distinct canonical values in order of appearance.
    """
    encoded = tidy(array, place).dictionary_encode()
    index = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return index, [canonical(value) for value in encoded.dictionary.to_pylist()]


@dataclass
class Codes:
    """Canonical value -> code 0, 1, ... in order of first appearance; grows by `add`."""

    values: list[str] = field(default_factory=list)
    _code_of: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.values)

    def add(self, array: Any, place: str) -> Ints:
        """(n,) int64 codes, new values get new codes, missing gets -1."""
        index, names = distinct(array, place)
        codes = np.empty(len(names) + 1, dtype=np.int64)
        codes[-1] = -1
        for i, name in enumerate(names):
            code = self._code_of.get(name)
            if code is None:
                code = self._code_of[name] = len(self.values)
                self.values.append(name)
            codes[i] = code
        return codes[index]

    def look_up(self, array: Any, place: str) -> Ints:
        """(n,) int64 codes, -1 for values without one and for missing."""
        index, names = distinct(array, place)
        codes = np.array([self._code_of.get(name, -1) for name in names] + [-1], dtype=np.int64)
        return codes[index]


def numbers(array: Any, place: str) -> Floats:
    """(n,) float64, NaN for missing.

    Raises:
        TableError: Not a number column, or an infinite value.
    """
    kind = array.type
    if pa.types.is_null(kind):
        return np.full(len(array), np.nan)
    if pa.types.is_decimal(kind) or pa.types.is_boolean(kind):
        array = array.cast(pa.float64() if pa.types.is_decimal(kind) else pa.int8())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise TableError(f"{place}: type {kind} is no number")
    values = np.asarray(array.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
    if np.isinf(values).any():
        raise TableError(f"{place}: row {int(np.flatnonzero(np.isinf(values))[0])} is infinite")
    return values


def binary(array: Any, place: str) -> NDArray[np.int8]:
    """(n,) int8 of 0 and 1.

    Raises:
        TableError: Anything else, missing included.
    """
    values = numbers(array, place)
    wrong = ~((values == 0) | (values == 1))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise TableError(f"{place}: row {row} is {values[row]}; allowed: 0 and 1")
    return values.astype(np.int8)


@dataclass(frozen=True)
class Lists:
    """A list column, flat: row r holds `flat[starts[r] : starts[r] + lengths[r]]`."""

    flat: Any
    lengths: Ints

    @property
    def rows(self) -> Ints:
        """(len(flat),) row of each element."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @property
    def positions(self) -> Ints:
        """(len(flat),) place of each element in its row's list."""
        starts = np.cumsum(self.lengths) - self.lengths
        return np.arange(int(self.lengths.sum())) - np.repeat(starts, self.lengths)


def lists(array: Any, place: str, separator: str | None = None) -> Lists:
    """Flatten a list column, or a string column cut at `separator`; missing is an empty list.

    Raises:
        TableError: Not a list column, or a separator on a column of another type than string.
    """
    if separator is not None:
        if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
            raise TableError(f"{place}: separator needs a string column, got {array.type}")
        array = pc.split_pattern(pc.if_else(pc.equal(array, ""), None, array), separator)
    if pa.types.is_null(array.type):
        array = array.cast(pa.list_(pa.string()))
    kind = array.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise TableError(f"{place}: expected a list column, got {kind}")
    lengths = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return Lists(flat=one_array(pc.list_flatten(array)), lengths=lengths)
