"""The two jobs of `ctr-serve features`: load a bundle's snapshot or a parquet file, and stream updates.

Builds loader, writer and rows from settings and a bundle; writes to Redis and to the cursor file.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from service.contract.bundle import Bundle
from service.contract.encode import EntityEncoder
from service.contract.schema import Entity
from service.errors import StartupError
from service.features.connection import parse_addresses
from service.features.errors import LoadError
from service.features.load import (
    Cursor,
    Loader,
    RowBatch,
    StreamOutcome,
    UpdateLines,
    snapshot_batches,
    stream_updates,
)
from service.features.memory_source import MemorySource
from service.features.writer import RETRIES, BlobWriter
from service.settings import Settings

PIECE_BYTES = 1 << 18


@dataclass(frozen=True)
class Part:
    """Rows of one entity to be loaded.

    Attributes:
        entity: Whose.
        num_rows: How many.
        origin: What they are, for the cursor.
        notes: What the operator should know of them.
        batches: Makes batches of `size` rows from row `start`.
    """

    entity: Entity
    num_rows: int
    origin: str
    notes: tuple[str, ...]
    batches: Callable[[int, int], Iterator[RowBatch]]


def event_time_ms(given: str | None, bundle: Bundle | None) -> int:
    """When rows without a time of their own were true: as given, else when the bundle was trained.

    Raises:
        LoadError: The text is no time, or there is none.
    """
    text = given or (bundle.manifest.provenance.trained_at if bundle is not None else "")
    if text == "now":
        return int(time.time() * 1000)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        what = f"'{text}' is no ISO 8601 time" if text else "the rows have no time"
        raise LoadError(f"{what}; give --event-time (an ISO time, or now)") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1000)


def snapshot_parts(bundle: Bundle, event_ms: int) -> list[Part]:
    """Users and items of a bundle's own snapshot.

    Raises:
        BundleError: The snapshot does not fit the schema.
    """
    source = MemorySource.from_bundle(bundle)
    return [
        Part(
            entity,
            len(table),
            f"bundle {bundle.bundle_id} at {event_ms}",
            (),
            lambda size, start, table=table: snapshot_batches(  # type: ignore[misc]
                table, event_ms=event_ms, size=size, start=start
            ),
        )
        for entity, table in ((Entity.USER, source.users), (Entity.ITEM, source.items))
    ]


def parquet_part(
    bundle: Bundle,
    path: Path,
    entity: Entity,
    *,
    id_column: str | None,
    time_column: str | None,
    event_time: str | None,
) -> Part:
    """Rows of a parquet file, encoded by the bundle's schema.

    Raises:
        LoadError: The file does not fit.
        StartupError: pyarrow is not installed.
    """
    try:
        from service.features.parquet import ParquetRows
    except ImportError:
        raise StartupError("reading parquet needs pyarrow; install the extra `features`") from None
    encoder = EntityEncoder(bundle.schema, entity)
    rows = ParquetRows.open(path, encoder, id_column=id_column, time_column=time_column)
    event_ms = 0 if time_column else event_time_ms(event_time, None)
    stat = path.stat()
    notes = []
    if rows.absent:
        notes.append(f"no column for {', '.join(rows.absent)}: defaults are stored")
    if rows.ignored:
        notes.append(f"no features, left out: {', '.join(rows.ignored)}")
    return Part(
        entity,
        rows.num_rows,
        f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {id_column} {time_column} {event_time}",
        tuple(notes),
        lambda size, start: rows.batches(event_ms=event_ms, size=size, start=start),
    )


def make_writer(settings: Settings, *, expire_s: int = 0, retries: int = RETRIES) -> BlobWriter:
    """Writer to the server or cluster that the settings name.

    Raises:
        StartupError: A Redis URL cannot be read.
    """
    seeds = parse_addresses(settings.redis_urls())
    cluster = settings.feature_source == "redis_cluster"
    return BlobWriter(seeds, cluster=cluster, expire_s=expire_s, retries=retries)


def make_cursor(path: Path | None, settings: Settings, bundle: Bundle, parts: list[Part]) -> Cursor:
    """Cursor of loading these parts into that store.

    Raises:
        LoadError: The file belongs to another load.
    """
    servers = [address.name for address in parse_addresses(settings.redis_urls())]
    job = {
        "schema": bundle.schema.digest,
        "prefix": settings.redis_key_prefix,
        "servers": servers,
        "parts": {part.entity.value: part.origin for part in parts},
    }
    return Cursor(path, job)


async def run_load(
    parts: list[Part],
    loader: Loader,
    cursor: Cursor,
    *,
    batch_rows: int,
    on_rows: Callable[[Entity, int], None],
) -> None:
    """Load parts one after the other, from where the cursor stands.

    Raises:
        FeatureStoreError: A row does not fit, or the store does not take it.
    """
    try:
        for part in parts:
            batches = part.batches(batch_rows, cursor.rows(part.entity))
            await loader.load(part.entity, batches, cursor, on_rows=partial(on_rows, part.entity))
    finally:
        loader.close()


async def run_stream(
    bundle: Bundle,
    loader: Loader,
    chunks: AsyncIterator[bytes],
    *,
    on_refused: Callable[[int, str], None],
) -> StreamOutcome:
    """Write updates until their source ends.

    Raises:
        FeatureStoreError: The store does not take them.
    """
    try:
        return await stream_updates(chunks, UpdateLines(bundle.schema), loader, on_refused=on_refused)
    finally:
        loader.close()


async def file_pieces(descriptor: int) -> AsyncIterator[bytes]:
    """What a file or pipe holds, as it comes, ending in a newline; reads in a thread."""
    last = b"\n"
    while piece := await asyncio.to_thread(os.read, descriptor, PIECE_BYTES):
        last = piece[-1:]
        yield piece
    if last != b"\n":
        yield b"\n"


__all__ = [
    "Part",
    "event_time_ms",
    "file_pieces",
    "make_cursor",
    "make_writer",
    "parquet_part",
    "run_load",
    "run_stream",
    "snapshot_parts",
]
