"""The row files of a prepared folder: columns, row groups, writing and reading.

`rows/{train,valid,test}.parquet`, row groups of `GROUP_ROWS` rows in the order of the log. Blocks of several
numbers are fixed-size lists; a block of width 0 has no column. Invariant: reading a row group gives the
arrays that were written.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

GROUP_ROWS = 65_536
SCALARS: dict[str, Any] = {
    "user_slot": np.int32,
    "item_slot": np.int32,
    "domain": np.int32,
    "user_code": np.int32,
    "label": np.float32,
    "weight": np.float32,
    "true_probability": np.float32,
    "time_ms": np.int64,
}
BLOCKS: dict[str, Any] = {
    "context_ints": np.int32,
    "context_floats": np.float32,
    "user_stats": np.float32,
    "item_stats": np.float32,
    "pairs": np.float32,
}
Rows = dict[str, NDArray[Any]]
"""(n,) per scalar and (n, width) per block."""


def arrow_schema(widths: dict[str, int]) -> pa.Schema:
    """Columns of a row file; `widths` per block."""
    columns = [(name, pa.from_numpy_dtype(dtype)) for name, dtype in SCALARS.items()]
    for name, dtype in BLOCKS.items():
        if widths[name]:
            columns.append((name, pa.list_(pa.from_numpy_dtype(dtype), widths[name])))
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns])


@dataclass
class RowWriter:
    """Writes one row file; use as a context manager, give it rows in order."""

    path: Path
    widths: dict[str, int]
    rows: int = 0
    _pending: list[pa.Table] = field(default_factory=list)
    _held: int = 0

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._schema = arrow_schema(self.widths)
        self._writer = pq.ParquetWriter(
            self.path, self._schema, compression="zstd", compression_level=1, use_dictionary=False
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._held:
            self._writer.write_table(pa.concat_tables(self._pending), row_group_size=GROUP_ROWS)
        self._writer.close()

    def write(self, rows: Rows) -> None:
        """Append rows; full row groups go to the file at once."""
        arrays = []
        for column in self._schema:
            values = np.ascontiguousarray(rows[column.name])
            if column.name in BLOCKS:
                flat = pa.array(values.reshape(-1))
                arrays.append(pa.FixedSizeListArray.from_arrays(flat, self.widths[column.name]))
            else:
                arrays.append(pa.array(values))
        table = pa.Table.from_arrays(arrays, schema=self._schema)
        self.rows += table.num_rows
        self._held += table.num_rows
        self._pending.append(table)
        if self._held >= GROUP_ROWS:
            joined = pa.concat_tables(self._pending)
            whole = self._held - self._held % GROUP_ROWS
            self._writer.write_table(joined.slice(0, whole), row_group_size=GROUP_ROWS)
            # A copy, so that what was written can be freed.
            rest = joined.slice(whole)
            self._pending = [rest.take(pa.array(np.arange(rest.num_rows)))] if rest.num_rows else []
            self._held -= whole


class RowFile:
    """Reads one row file by row group."""

    def __init__(self, path: Path, widths: dict[str, int]) -> None:
        self._file = pq.ParquetFile(path, pre_buffer=False)
        self._widths = widths
        metadata = self._file.metadata
        self.group_rows: tuple[int, ...] = tuple(
            metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)
        )

    def read_group(self, index: int) -> Rows:
        """All columns of one row group."""
        table = self._file.read_row_group(index)
        n = table.num_rows
        rows: Rows = {name: np.zeros((n, 0), dtype) for name, dtype in BLOCKS.items()}
        for name in table.column_names:
            column = table.column(name).combine_chunks()
            if isinstance(column, pa.ChunkedArray):
                column = pa.concat_arrays(column.chunks)
            if name in BLOCKS:
                rows[name] = column.flatten().to_numpy().reshape(n, self._widths[name])
            else:
                rows[name] = column.to_numpy()
        return rows

    def close(self) -> None:
        """Close the file."""
        self._file.close()
