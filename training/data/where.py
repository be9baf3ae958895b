"""Which rows of the log are read at all: equality and membership tests on its columns.

Pure; works on one record batch at a time, so a filtered log is still streamed. Invariants: a row passes when
every named column holds one of its values; a missing value never passes; a value that the column's type
cannot hold is refused rather than matched with nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from training.data.errors import DescriptionError

Value = bool | int | float | str
Where = Mapping[str, Value | tuple[Value, ...]]


def passing(table: pa.Table, where: Where) -> NDArray[np.bool_]:
    """Which rows pass.

    Args:
        table: n rows with at least the columns of `where`.
        where: Allowed value or values of each column.

    Returns:
        (n,) bool.

    Raises:
        DescriptionError: A value that the column's type cannot hold.
    """
    keep = np.ones(table.num_rows, dtype=bool)
    for name, allowed in where.items():
        column = table.column(name)
        kind = column.type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
            column = column.cast(kind)
        found = pc.is_in(column, value_set=_value_set(name, allowed, kind))
        keep &= found.to_numpy(zero_copy_only=False) if isinstance(found, pa.Array) else found.to_numpy()
    return keep


def _value_set(name: str, allowed: Value | tuple[Value, ...], kind: pa.DataType) -> pa.Array:
    values = allowed if isinstance(allowed, tuple) else (allowed,)
    for value in values:
        if not _fits(value, kind):
            raise DescriptionError(f"where: {value!r} is no value of column '{name}', whose type is {kind}")
    return pa.array(values, type=kind)


def _fits(value: Value, kind: pa.DataType) -> bool:
    if isinstance(value, bool):
        return bool(pa.types.is_boolean(kind))
    if isinstance(value, str):
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
    if pa.types.is_floating(kind):
        return True
    if not (isinstance(value, int) and pa.types.is_integer(kind)):
        return False
    limits = np.iinfo(kind.to_pandas_dtype())
    return int(limits.min) <= value <= int(limits.max)
