"""Rows of one entity from a parquet file whose columns are named as the schema's features.

The only module of the service that needs pyarrow (extra `features`); it serves loading, never a
request. Reads row group by row group, so memory does not grow with the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from service.contract.encode import EntityEncoder
from service.contract.values import canonical
from service.features.errors import LoadError
from service.features.load import RowBatch, encode_rows


@dataclass(frozen=True)
class ParquetRows:
    """What a file holds for an entity.

    Attributes:
        path: The file.
        num_rows: Of the file.
        features: Features with a column.
        absent: Features without one; their rows hold the default.
        ignored: Columns that are no features.
    """

    path: Path
    encoder: EntityEncoder
    id_column: str
    time_column: str | None
    num_rows: int
    features: tuple[str, ...]
    absent: tuple[str, ...]
    ignored: tuple[str, ...]

    @classmethod
    def open(
        cls, path: Path, encoder: EntityEncoder, *, id_column: str | None, time_column: str | None
    ) -> ParquetRows:
        """Look at a file.

        Args:
            path: The file.
            encoder: Of the entity.
            id_column: Column with ids; None takes the entity's id feature.
            time_column: Column with event times, a timestamp or integer ms; None for none.

        Raises:
            LoadError: It is no parquet file, or lacks a column that was named.
        """
        try:
            file = pq.ParquetFile(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise LoadError(f"{path}: cannot be read as parquet ({type(error).__name__})") from None
        names = file.schema_arrow.names
        own = encoder.layout.id_feature
        chosen = id_column or own
        if chosen is None:
            raise LoadError("the entity has no id feature, so the id column must be named")
        for name in (chosen, time_column):
            if name is not None and name not in names:
                raise LoadError(f"{path}: has no column '{name}'; columns are {', '.join(names)}")
        known = encoder.feature_names - {own}
        features = tuple(name for name in names if name in known)
        return cls(
            path=path,
            encoder=encoder,
            id_column=chosen,
            time_column=time_column,
            num_rows=file.metadata.num_rows,
            features=features,
            absent=tuple(sorted(known - set(features))),
            ignored=tuple(n for n in names if n not in known and n not in (chosen, time_column, own)),
        )

    def batches(self, *, event_ms: int, size: int, start: int) -> Iterator[RowBatch]:
        """Rows from row `start`; `event_ms` stands in where the file has no time column.

        Raises:
            LoadError: A value does not fit its feature, or an id or time is null.
        """
        file = pq.ParquetFile(self.path)
        columns = [self.id_column, *self.features, *([self.time_column] if self.time_column else [])]
        for group in range(file.num_row_groups):
            num_rows = file.metadata.row_group(group).num_rows
            if start >= num_rows:
                start -= num_rows
                continue
            for piece in file.iter_batches(size, row_groups=[group], columns=columns):
                if start >= piece.num_rows:
                    start -= piece.num_rows
                    continue
                yield self._encode(piece.slice(start), event_ms)
                start = 0

    def _encode(self, piece: Any, event_ms: int) -> RowBatch:
        raw_ids = piece.column(self.id_column).to_pylist()
        try:
            ids = [canonical(value) for value in raw_ids]
        except TypeError as error:
            raise LoadError(f"{self.path}: column '{self.id_column}' holds an id of type {error}") from None
        columns = {name: _column(piece.column(name)) for name in self.features}
        times = np.full(len(ids), event_ms, dtype=np.int64)
        if self.time_column is not None:
            times = self._times(piece.column(self.time_column))
        return RowBatch(ids, encode_rows(self.encoder, ids, columns), times)

    def _times(self, column: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
        if column.null_count:
            raise LoadError(f"{self.path}: column '{self.time_column}' holds a null")
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.timestamp("ms"), safe=False).cast(pa.int64())
        if not pa.types.is_integer(column.type):
            raise LoadError(
                f"{self.path}: column '{self.time_column}' must be a timestamp or integer ms, "
                f"is {column.type}"
            )
        return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.int64)


def _column(column: Any) -> Any:
    """A column as the encoder takes it: an array of floats where that loses nothing, else a list."""
    if pa.types.is_floating(column.type):
        return column.to_numpy(zero_copy_only=False)
    return column.to_pylist()


__all__ = ["ParquetRows"]
