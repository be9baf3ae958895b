"""Stream the interactions of a raw data set in bounded memory.

Reads parquet by record batches of at most `BATCH_ROWS` rows and only the columns asked for. Invariant:
every pass over a `Log` yields the same rows in the same order, and never holds more than one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from training.data.columns import Ints, binary, distinct, numbers, one_array
from training.data.errors import DescriptionError, TableError
from training.data.source import DataSource
from training.data.table import DatasetDescription, TimeColumn
from training.data.where import Where, passing

BATCH_ROWS = 32_768
SPLITS = ("train", "valid", "test")
TRAIN = 0
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS

Progress = Callable[[str, int, int], None]
"""Called with (name of the phase, rows done, rows in all)."""


def silent(_phase: str, _done: int, _total: int) -> None:
    """A progress that nobody watches."""


@dataclass(frozen=True)
class Cuts:
    """First moments of valid and test, ms since 1970 UTC."""

    valid_from_ms: int
    test_from_ms: int

    def split_of(self, time_ms: Ints) -> NDArray[np.int8]:
        """(n,) 0 train, 1 valid, 2 test."""
        after_valid = (time_ms >= self.valid_from_ms).astype(np.int8)
        return after_valid + (time_ms >= self.test_from_ms).astype(np.int8)


@dataclass(frozen=True)
class LogBatch:
    """Some rows of the log; columns are read and checked when they are asked for.

    Attributes:
        positions: (n,) int64 place of each row in the log's files, rows that `where` leaves out counted.
        table: n raw rows.
    """

    positions: Ints
    table: pa.Table
    log: Log
    cuts: Cuts | None

    @property
    def start(self) -> int:
        """Position of the first row, 0 without rows."""
        return int(self.positions[0]) if len(self.positions) else 0

    def only(self, mask: NDArray[np.bool_]) -> LogBatch:
        """The rows marked in (n,) `mask`."""
        return replace(self, positions=self.positions[mask], table=self.table.filter(pa.array(mask)))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def column(self, name: str) -> pa.Array:
        """A raw column as one array."""
        return one_array(self.table.column(name))

    def place(self, name: str) -> str:
        """Where a column of this batch is, for messages."""
        return f"interactions: column '{name}' (rows from {self.start})"

    def time_ms(self) -> Ints:
        """(n,) int64 ms since 1970 UTC."""
        time = self.log.description.columns.time
        return to_ms(self.column(time.column), time, self.place(time.column))

    def split(self) -> NDArray[np.int8]:
        """(n,) int8 index into SPLITS."""
        name = self.log.description.columns.split
        if name is None:
            if self.cuts is None:
                raise DescriptionError("split: no split column, and no cuts were planned")
            return self.cuts.split_of(self.time_ms())
        index, values = distinct(self.column(name), self.place(name))
        wrong = [v for v in values if v not in SPLITS] + (["null"] if (index < 0).any() else [])
        if wrong:
            raise TableError(f"{self.place(name)}: value {wrong[0]!r}; allowed: {list(SPLITS)}")
        codes = np.array([SPLITS.index(v) for v in values], dtype=np.int8)
        return codes[index]

    def target(self, name: str) -> NDArray[np.int8]:
        """(n,) int8 of 0 and 1: an outcome, or the label."""
        column = self.log.target_column(name)
        return binary(self.column(column), self.place(column))

    def domain_names(self) -> tuple[Ints, list[str]]:
        """(n,) index into the list of domain names of this batch."""
        domain = self.log.description.columns.domain
        index, values = distinct(self.column(domain.column), self.place(domain.column))
        if (index < 0).any():
            raise TableError(f"{self.place(domain.column)}: missing domain; every row needs one")
        return index, [domain.prefix + value for value in values]

    def floats(self, name: str | None, *, default: float) -> NDArray[np.float32]:
        """(n,) float32 of a column, `default` where there is no such column or no value."""
        if name is None:
            return np.full(len(self), default, dtype=np.float32)
        values = numbers(self.column(name), self.place(name))
        return np.where(np.isnan(values), default, values).astype(np.float32)

    def weight(self) -> NDArray[np.float32]:
        """(n,) float32, not negative; 1 without a weight column."""
        name = self.log.description.columns.weight
        values = self.floats(name, default=1.0)
        if (values < 0).any():
            raise TableError(f"{self.place(str(name))}: weight {values.min()} is negative")
        return values


@dataclass(frozen=True)
class Log:
    """The interactions of a source; `num_rows` counts those of the files, before `where`."""

    source: DataSource
    num_rows: int = field(init=False)
    column_names: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        rows, names = 0, None
        for path in self.source.interactions:
            metadata = pq.read_metadata(path)
            found = frozenset(metadata.schema.to_arrow_schema().names)
            rows += metadata.num_rows
            names = found if names is None else names & found
        object.__setattr__(self, "num_rows", rows)
        object.__setattr__(self, "column_names", names or frozenset())
        if rows == 0:
            raise TableError(f"interactions: {len(self.source.interactions)} files hold no rows")

    @property
    def description(self) -> DatasetDescription:
        """The description of the source."""
        return self.source.description

    def target_column(self, name: str) -> str:
        """Column of a target; `label` is the label column."""
        return self.description.columns.label if name == "label" else name

    def require(self, columns: Iterable[str]) -> None:
        """Refuse columns that some file of the log lacks.

        Raises:
            DescriptionError: Names the first such column.
        """
        for name in columns:
            if name not in self.column_names:
                raise DescriptionError(
                    f"interactions: no column '{name}'; the files have {sorted(self.column_names)}"
                )

    def batches(
        self,
        columns: Iterable[str],
        *,
        cuts: Cuts | None = None,
        phase: str = "read",
        progress: Progress = silent,
    ) -> Iterator[LogBatch]:
        """Yield the log once, in file order, with the named columns; only rows that `where` lets pass.

        Raises:
            DescriptionError: A column that some file lacks, or a value of `where` that is none of its values.
            TableError: No row passes.
        """
        where = self.description.where
        wanted = sorted({*columns, *where})
        self.require(wanted)
        done = kept = 0
        for path in self.source.interactions:
            with pq.ParquetFile(path, pre_buffer=False) as file:
                for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=wanted):
                    whole = LogBatch(
                        done + np.arange(batch.num_rows), pa.Table.from_batches([batch]), self, cuts
                    )
                    part = whole.only(passing(whole.table, where)) if where else whole
                    if len(part):
                        yield part
                    kept += len(part)
                    done += batch.num_rows
                    progress(phase, done, self.num_rows)
        if not kept:
            raise TableError(f"where: none of {done} rows has {_shown(where)}")


def _shown(where: Where) -> str:
    """The conditions in words."""
    return " and ".join(f"{name} in {list(v) if isinstance(v, tuple) else [v]}" for name, v in where.items())


def to_ms(array: pa.Array, time: TimeColumn, place: str) -> Ints:
    """(n,) int64 ms since 1970 UTC from timestamps or integers of the column's unit.

    Raises:
        TableError: Missing times, or a column of another type.
    """
    if array.null_count:
        raise TableError(f"{place}: {array.null_count} missing times; every row needs one")
    if pa.types.is_timestamp(array.type):
        array = pc.cast(array, pa.timestamp("ms", tz=array.type.tz), safe=False).cast(pa.int64())
        return np.asarray(array.to_numpy(zero_copy_only=False), dtype=np.int64)
    if not pa.types.is_integer(array.type):
        raise TableError(f"{place}: type {array.type} is no time; allowed: timestamp, or integers in a unit")
    values = array.cast(pa.int64()).to_numpy(zero_copy_only=False)
    return np.asarray(
        {"s": values * 1000, "ms": values, "step": values, "us": values // 1000}[time.unit], dtype=np.int64
    )


def local_hours(time_ms: Ints, offset_h: float) -> Ints:
    """(n,) whole hours of local time since 1970."""
    return np.asarray((time_ms + round(offset_h * HOUR_MS)) // HOUR_MS)


def time_part(time_ms: Ints, part: str, offset_h: float) -> Ints:
    """(n,) local hour of the day 0-23, or weekday 0 (Monday) to 6."""
    hours = local_hours(time_ms, offset_h)
    # 1 January 1970 was a Thursday.
    return np.asarray(hours % 24 if part == "hour" else (hours // 24 + 3) % 7)
