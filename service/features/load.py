"""Loads encoded rows into Redis: whole snapshots, whole tables, or a stream of updates.

Reads batches of rows (`RowBatch`), writes blobs, and keeps a cursor file, so that a load that was
interrupted goes on where it stopped. Invariant: the cursor never counts a row that is not stored.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract.encode import EncodedBlock, EntityEncoder
from service.contract.errors import EncodeError
from service.contract.files import write_atomic
from service.contract.layout import entity_layout
from service.contract.schema import Entity, FeatureSchema
from service.features.blob import BlobCodec
from service.features.errors import LoadError
from service.features.ids import id_limits
from service.features.keys import KeySpace
from service.features.memory_source import EntityTable
from service.features.writer import BlobWriter

MAX_AHEAD_MS = 86_400_000  # an event time further in the future is a mistake in its unit or clock
CURSOR_EVERY_S = 0.5


@dataclass(frozen=True)
class RowBatch:
    """Encoded rows of one entity.

    Attributes:
        ids: n ids.
        block: n rows.
        event_ms: (n,) int64, when each was true, ms since 1970.
    """

    ids: list[str]
    block: EncodedBlock
    event_ms: NDArray[np.int64]


class Cursor:
    """How far a load has come, in a file.

    Args:
        path: The file; None keeps nothing.
        job: What is loaded into what; a cursor of another job is refused.

    Raises:
        LoadError: The file is of another job, or no cursor.
    """

    def __init__(self, path: Path | None, job: Mapping[str, Any]) -> None:
        self._path = path
        text = json.dumps(job, sort_keys=True)
        self._job = hashlib.sha256(text.encode()).hexdigest()
        self._done: dict[str, int] = {}
        self._written_s = 0.0
        if path is None or not path.exists():
            return
        try:
            stored = json.loads(path.read_text())
            of_job, done = stored["job"], {str(k): int(v) for k, v in stored["done"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise LoadError(f"{path}: is no cursor of a load") from None
        if of_job != self._job:
            raise LoadError(f"{path}: belongs to a load of something else; remove it, or name another file")
        self._done = done

    def rows(self, entity: Entity) -> int:
        """Rows of an entity that are stored."""
        return self._done.get(entity.value, 0)

    def advance(self, entity: Entity, count: int) -> None:
        """Count rows that were stored just now."""
        self._done[entity.value] = self.rows(entity) + count
        if time.monotonic() - self._written_s >= CURSOR_EVERY_S:
            self.save()

    def save(self) -> None:
        """Write the file."""
        if self._path is not None:
            text = json.dumps({"job": self._job, "done": self._done})
            write_atomic(self._path, text.encode())
        self._written_s = time.monotonic()


class Loader:
    """Writes batches of one schema.

    Args:
        schema: Of the rows.
        prefix: Of keys.
        writer: Of the store.
        rate: Most rows per second; 0: as fast as it goes.
    """

    def __init__(self, schema: FeatureSchema, prefix: str, writer: BlobWriter, *, rate: float = 0.0) -> None:
        self._spaces = {e: KeySpace(prefix, schema.digest, e) for e in (Entity.USER, Entity.ITEM)}
        layouts = {e: entity_layout(schema, e) for e in self._spaces}
        self._codecs = {
            e: BlobCodec(layouts[e], id_limits(schema, layouts[e]), self._spaces[e]) for e in self._spaces
        }
        self._writer = writer
        self._rate = rate
        self._begun_s = 0.0
        self._num_written = 0

    async def load(
        self,
        entity: Entity,
        batches: Iterable[RowBatch],
        cursor: Cursor,
        *,
        on_rows: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Write batches and advance the cursor behind them; it is saved whatever happens.

        Raises:
            FeatureStoreError: A row does not fit, or the store does not take it.
        """
        try:
            for batch in batches:
                await self.write(entity, batch)
                cursor.advance(entity, len(batch.ids))
                on_rows(len(batch.ids))
        finally:
            cursor.save()

    async def write(self, entity: Entity, batch: RowBatch) -> None:
        """Write one batch.

        Raises:
            LoadError: An event time lies more than a day ahead.
            FeatureStoreError: A row does not fit, or the store does not take it.
        """
        limit_ms = int(time.time() * 1000) + MAX_AHEAD_MS
        if len(ahead := np.flatnonzero(batch.event_ms > limit_ms)):
            row = int(ahead[0])
            raise LoadError(
                f"{entity.value} '{batch.ids[row]}': event time {int(batch.event_ms[row])} ms is more than a "
                "day ahead"
            )
        blobs = self._codecs[entity].encode(batch.ids, batch.block, batch.event_ms)
        await self._writer.write(self._spaces[entity].keys(batch.ids), blobs)
        await self._keep_rate(len(batch.ids))

    def close(self) -> None:
        """Close the writer's connections."""
        self._writer.close()

    async def _keep_rate(self, count: int) -> None:
        now = time.monotonic()
        self._begun_s = self._begun_s or now
        self._num_written += count
        if self._rate:
            await asyncio.sleep(max(0.0, self._begun_s + self._num_written / self._rate - now))


def snapshot_batches(table: EntityTable, *, event_ms: int, size: int, start: int) -> Iterator[RowBatch]:
    """Rows of a bundle's snapshot from row `start`, all true at one time."""
    for ids, block in table.batches(size, start=start):
        yield RowBatch(ids, block, np.full(len(ids), event_ms, dtype=np.int64))


class UpdateLines:
    """Turns lines of JSON into rows: `{"entity", "id", "features", "event_time_ms"}`, one row a line.

    A line holds the whole row: features that it leaves out are missing from then on. `event_time_ms`
    defaults to now.

    Args:
        schema: Of the rows.
    """

    def __init__(self, schema: FeatureSchema) -> None:
        self._encoders = {e.value: EntityEncoder(schema, e) for e in (Entity.USER, Entity.ITEM)}

    def read(self, line: str | bytes) -> tuple[Entity, RowBatch]:
        """One row.

        Raises:
            LoadError: The line is no such row; the message says why.
        """
        try:
            update = json.loads(line)
        except ValueError:
            raise LoadError("is not JSON") from None
        if not isinstance(update, dict):
            raise LoadError("is not a JSON object")
        if odd := set(update) - {"entity", "id", "features", "event_time_ms"}:
            raise LoadError(f"has unknown keys {sorted(odd)}")
        encoder = self._encoders.get(str(update.get("entity")))
        if encoder is None:
            raise LoadError(f"entity must be one of {sorted(self._encoders)}, got {update.get('entity')!r}")
        value, features = update.get("id"), update.get("features", {})
        if isinstance(value, bool) or not isinstance(value, str | int) or not isinstance(features, dict):
            raise LoadError("needs an id (string or integer) and features (an object)")
        event_ms = update.get("event_time_ms", int(time.time() * 1000))
        if isinstance(event_ms, bool) or not isinstance(event_ms, int) or abs(event_ms) >= 2**62:
            raise LoadError(f"event_time_ms must be an integer, got {event_ms!r}")
        block = encode_rows(encoder, [str(value)], {name: [v] for name, v in features.items()})
        return encoder.layout.entity, RowBatch([str(value)], block, np.array([event_ms], dtype=np.int64))


def encode_rows(encoder: EntityEncoder, ids: list[str], columns: Mapping[str, Any]) -> EncodedBlock:
    """Encode raw columns; the entity's own id feature is filled from the ids.

    Raises:
        LoadError: A value does not fit its feature.
    """
    own = encoder.layout.id_feature
    try:
        return encoder.encode(columns if own is None else {**columns, own: ids}, len(ids))
    except EncodeError as error:
        where = "" if error.row is None else f" of '{ids[error.row]}'"
        raise LoadError(f"feature '{error.feature}'{where}: {error.reason}") from None


@dataclass
class StreamOutcome:
    """How a stream of updates went."""

    num_written: int = 0
    num_refused: int = 0


async def stream_updates(
    chunks: AsyncIterator[bytes],
    lines: UpdateLines,
    loader: Loader,
    *,
    on_refused: Callable[[int, str], None],
) -> StreamOutcome:
    """Write updates as they come; what came in one piece is written in one round trip per entity.

    Args:
        chunks: Pieces of newline-separated JSON.
        lines: Reads them.
        loader: Writes them.
        on_refused: Told the line's number (from 1) and why it was left out.

    Raises:
        FeatureStoreError: The store does not take them.
    """
    outcome, rest, number = StreamOutcome(), b"", 0
    async for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        pending: dict[Entity, dict[str, RowBatch]] = {}
        for line in whole:
            number += 1
            if not line.strip():
                continue
            try:
                entity, row = lines.read(line)
            except LoadError as error:
                outcome.num_refused += 1
                on_refused(number, str(error))
                continue
            pending.setdefault(entity, {})[row.ids[0]] = row  # the last line of an id wins
            outcome.num_written += 1
        for entity, rows in pending.items():
            await loader.write(entity, _joined(list(rows.values())))
    return outcome


def _joined(rows: list[RowBatch]) -> RowBatch:
    block = EncodedBlock(
        np.concatenate([row.block.ints for row in rows]), np.concatenate([row.block.floats for row in rows])
    )
    return RowBatch([row.ids[0] for row in rows], block, np.concatenate([row.event_ms for row in rows]))


__all__ = [
    "Cursor",
    "Loader",
    "RowBatch",
    "StreamOutcome",
    "UpdateLines",
    "encode_rows",
    "snapshot_batches",
    "stream_updates",
]
