"""Exposure and feedback files turned into parquet parts, in bounded memory.

Reads `*.jsonl` segments and those still open (`*.jsonl.open`) by the structs that the service writes them
with; writes parts of at most `PART_ROWS` requests. Invariant: every whole line is in a part exactly once, or
the reading ends with the file and line that cannot be read; only an unfinished last line of an open segment
is left out, and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
import polars as pl

from service.contract.events import (
    EXPOSURES,
    FEEDBACK,
    ExposureRecord,
    FeedbackRecord,
    decode_exposure,
    decode_feedback,
)
from service.contract.values import canonical
from training.data.errors import TableError

PART_ROWS = 5_000
OPEN = ".open"
CONTEXT = "context_"
"""Prefix of the columns that hold context features."""

REQUEST_SCHEMA: dict[str, Any] = {
    "request": pl.Int64,
    "request_id": pl.String,
    "time_ms": pl.Int64,
    "user": pl.String,
    "domain": pl.String,
    "bundle": pl.String,
    "graph": pl.String,
    "experiment": pl.String,
    "arm": pl.String,
    "unit": pl.String,
    "reason": pl.String,
    "features": pl.String,
    "degraded": pl.Boolean,
    "item": pl.List(pl.String),
    "score": pl.List(pl.Float32),
    "position": pl.List(pl.Int32),
}
FEEDBACK_SCHEMA: dict[str, Any] = {
    "request_id": pl.String,
    "item": pl.String,
    "click": pl.Int8,
    "value": pl.Float64,
    "time_ms": pl.Int64,
    "received_ms": pl.Int64,
}

Record = TypeVar("Record")


@dataclass
class EventFiles(Generic[Record]):
    """The segments of one kind in a folder.

    Attributes:
        torn_lines: Unfinished last lines met by the last pass over `records`.
    """

    folder: Path
    kind: str
    decode: Callable[[bytes], Record]
    torn_lines: int = field(default=0, init=False)

    @property
    def paths(self) -> list[Path]:
        """Segments by name, which is by the time they were opened.

        Raises:
            TableError: There is none.
        """
        found = sorted([*self.folder.glob(f"{self.kind}-*.jsonl"), *self.folder.glob(f"{self.kind}-*{OPEN}")])
        if not found:
            raise TableError(f"{self.folder}: no {self.kind}-*.jsonl file there")
        return found

    def records(self) -> Iterator[Record]:
        """Every whole line.

        Raises:
            TableError: A line cannot be read.
        """
        self.torn_lines = 0
        for path in self.paths:
            with path.open("rb") as lines:
                for number, line in enumerate(lines, 1):
                    if not line.endswith(b"\n") and path.name.endswith(OPEN):
                        self.torn_lines += 1
                        break
                    try:
                        yield self.decode(line)
                    except (msgspec.DecodeError, UnicodeDecodeError) as error:
                        raise TableError(f"{path}: line {number} is no {self.kind} record: {error}") from None


def exposure_files(folder: Path) -> EventFiles[ExposureRecord]:
    """The exposure segments of a folder."""
    return EventFiles(folder, EXPOSURES, decode_exposure)


def feedback_files(folder: Path) -> EventFiles[FeedbackRecord]:
    """The feedback segments of a folder."""
    return EventFiles(folder, FEEDBACK, decode_feedback)


def context_types(files: EventFiles[ExposureRecord]) -> dict[str, Any]:
    """Type of each context feature, by name: what all its values have in common.

    Numbers are Float64 when one has a fraction, Int64 otherwise; mixed kinds are strings. Features with
    lists or objects have no single column and are left out.
    """
    kinds: dict[str, set[type]] = {}
    for record in files.records():
        for name, value in record.context.items():
            kinds.setdefault(name, set()).add(type(value))
    types: dict[str, Any] = {}
    for name, found in kinds.items():
        found.discard(type(None))
        if not found or found & {list, dict}:
            continue
        if found == {bool}:
            types[name] = pl.Boolean
        elif found == {int}:
            types[name] = pl.Int64
        elif found <= {int, float}:
            types[name] = pl.Float64
        else:
            types[name] = pl.String
    return dict(sorted(types.items()))


def write_requests(files: EventFiles[ExposureRecord], context: dict[str, Any], out: Path) -> int:
    """Write exposures as parts with one row per request; gives their number."""
    schema = REQUEST_SCHEMA | {CONTEXT + name: kind for name, kind in context.items()}
    rows = (_request_row(number, record, context) for number, record in enumerate(files.records()))
    return _write_parts(rows, schema, out)


def write_outcomes(files: EventFiles[FeedbackRecord], out: Path) -> int:
    """Write feedback as parts with one row per item; gives their number."""
    rows = (
        (record.request_id, item.id, item.click, item.value, item.time_ms, record.received_ms)
        for record in files.records()
        for item in record.items
    )
    return _write_parts(rows, FEEDBACK_SCHEMA, out)


def _request_row(number: int, record: ExposureRecord, context: dict[str, Any]) -> tuple[Any, ...]:
    # An item that a request names twice counts where it stands first.
    first = {item: place for place, item in reversed([*enumerate(record.items)])}
    places = sorted(first.values())
    return (
        number,
        record.request_id,
        record.time_ms,
        record.user,
        record.domain,
        record.bundle,
        record.graph,
        record.experiment,
        record.arm,
        record.unit,
        record.reason,
        record.features,
        bool(record.degraded),
        [record.items[place] for place in places],
        [record.scores[place] for place in places],
        places,
        *(_context_value(record.context.get(name), kind) for name, kind in context.items()),
    )


def _context_value(value: Any, kind: Any) -> Any:
    if value is None or kind != pl.String or isinstance(value, str):
        return value
    return repr(value) if isinstance(value, float) else canonical(value)


def _write_parts(rows: Iterator[tuple[Any, ...]], schema: dict[str, Any], out: Path) -> int:
    """Write rows as parts of `PART_ROWS`, at least one part; gives the number of rows."""
    out.mkdir(parents=True)
    total, part, batch = 0, 0, []
    for row in rows:
        batch.append(row)
        if len(batch) == PART_ROWS:
            _write_part(batch, schema, out, part)
            total, part, batch = total + len(batch), part + 1, []
    if batch or not part:
        _write_part(batch, schema, out, part)
    return total + len(batch)


def _write_part(batch: list[tuple[Any, ...]], schema: dict[str, Any], out: Path, part: int) -> None:
    pl.DataFrame(batch, schema=schema, orient="row", strict=False).write_parquet(out / f"{part:06d}.parquet")
