"""`ctr-serve features`: load stored features into Redis, and stream updates of them."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from service.cli_settings import fail, option, read_settings
from service.contract.bundle import Bundle
from service.contract.errors import ContractError
from service.contract.schema import Entity
from service.contract.store import ModelStore
from service.errors import StartupError
from service.settings import Settings

if TYPE_CHECKING:
    from service.features.jobs import Part
    from service.features.load import Cursor

app = typer.Typer(help="Stored features in Redis: load them, keep them up to date.", no_args_is_help=True)

Store = Annotated[Path | None, option("store")]
Alias = Annotated[str | None, option("alias")]
FeatureSource = Annotated[str | None, option("feature_source")]
RedisUrl = Annotated[str | None, option("redis_url")]
KeyPrefix = Annotated[str | None, option("redis_key_prefix")]
ExpireS = Annotated[int, typer.Option(min=0, help="Life of a row in Redis; 0: for ever.")]


@app.command()
def load(
    store: Store = None,
    alias: Alias = None,
    feature_source: FeatureSource = None,
    redis_url: RedisUrl = None,
    redis_key_prefix: KeyPrefix = None,
    parquet: Annotated[
        Path | None,
        typer.Option(help="Parquet file to load instead of the bundle's snapshot."),
    ] = None,
    entity: Annotated[str, typer.Option(help="Whose rows the parquet file holds: user or item.")] = "item",
    id_column: Annotated[
        str | None, typer.Option(help="Its column of ids; otherwise the one named as the id feature.")
    ] = None,
    time_column: Annotated[
        str | None, typer.Option(help="Its column of event times: timestamps, or integer ms since 1970.")
    ] = None,
    event_time: Annotated[
        str | None,
        typer.Option(
            help="When rows without a time were true: ISO 8601, or `now`. A snapshot has its training's."
        ),
    ] = None,
    cursor: Annotated[
        Path | None, typer.Option(help="File that remembers how far a load came; the next one goes on there.")
    ] = None,
    rate: Annotated[float, typer.Option(min=0, help="Most rows per second; 0: no limit.")] = 0.0,
    expire_s: ExpireS = 0,
    batch_rows: Annotated[int, typer.Option(min=1, help="Rows per write.")] = 2000,
) -> None:
    """Write all rows of a bundle's snapshot, or of a parquet file, into Redis."""
    from service.features import jobs
    from service.features.errors import FeatureStoreError

    if entity not in (Entity.USER.value, Entity.ITEM.value):
        fail(f"--entity must be user or item, got '{entity}'")
    settings = _redis_settings(store, alias, feature_source, redis_url, redis_key_prefix)
    bundle = _open(settings)
    try:
        if parquet is None:
            parts = jobs.snapshot_parts(bundle, jobs.event_time_ms(event_time, bundle))
        else:
            named = {"id_column": id_column, "time_column": time_column, "event_time": event_time}
            parts = [jobs.parquet_part(bundle, parquet, Entity(entity), **named)]
        place = jobs.make_cursor(cursor, settings, bundle, parts)
        before = sum(place.rows(part.entity) for part in parts)
        seconds = _load_parts(bundle, settings, parts, place, rate, expire_s, batch_rows)
    except (ContractError, FeatureStoreError, StartupError) as error:
        fail(str(error))
    rows = sum(place.rows(part.entity) for part in parts)
    pace = (rows - before) / max(seconds, 1e-9)
    typer.echo(
        f"{rows} rows are stored, {rows - before} of them by this run in {seconds:.1f} s ({pace:.0f}/s)"
    )


def _load_parts(
    bundle: Bundle,
    settings: Settings,
    parts: list[Part],
    place: Cursor,
    rate: float,
    expire_s: int,
    batch_rows: int,
) -> float:
    """Load with a bar per entity; returns the seconds it took."""
    from service.features import jobs
    from service.features.load import Loader

    writer = jobs.make_writer(settings, expire_s=expire_s)
    loader = Loader(bundle.schema, settings.redis_key_prefix, writer, rate=rate)
    console = Console(stderr=True)
    for part in parts:
        for note in part.notes:
            console.print(note)
    begun = time.perf_counter()
    with _progress(console) as progress:
        bars = {
            part.entity: progress.add_task(
                f"{part.entity.value}s", total=part.num_rows, completed=place.rows(part.entity)
            )
            for part in parts
        }

        def advance(entity: Entity, count: int) -> None:
            progress.advance(bars[entity], count)

        asyncio.run(jobs.run_load(parts, loader, place, batch_rows=batch_rows, on_rows=advance))
    return time.perf_counter() - begun


@app.command()
def stream(
    store: Store = None,
    alias: Alias = None,
    feature_source: FeatureSource = None,
    redis_url: RedisUrl = None,
    redis_key_prefix: KeyPrefix = None,
    expire_s: ExpireS = 0,
) -> None:
    """Write updates from stdin until it ends: one row a line, as JSON.

    {"entity": "item", "id": "i7", "features": {"price": 3.5}, "event_time_ms": 1767225600000}

    A line holds the whole row; without event_time_ms it is true now. Lines that do not fit are named on
    stderr and left out; the exit code is then 1.
    """
    from service.features import jobs
    from service.features.errors import FeatureStoreError
    from service.features.load import Loader

    settings = _redis_settings(store, alias, feature_source, redis_url, redis_key_prefix)
    bundle = _open(settings)

    def refused(number: int, reason: str) -> None:
        typer.secho(f"line {number} {reason}", err=True, fg=typer.colors.YELLOW)

    try:
        writer = jobs.make_writer(settings, expire_s=expire_s)
        loader = Loader(bundle.schema, settings.redis_key_prefix, writer)
        pieces = jobs.file_pieces(sys.stdin.fileno())
        outcome = asyncio.run(jobs.run_stream(bundle, loader, pieces, on_refused=refused))
    except (FeatureStoreError, StartupError) as error:
        fail(str(error))
    typer.echo(f"{outcome.num_written} updates written, {outcome.num_refused} refused")
    raise typer.Exit(1 if outcome.num_refused else 0)


def _redis_settings(
    store: Path | None,
    alias: str | None,
    feature_source: str | None,
    redis_url: str | None,
    redis_key_prefix: str | None,
) -> Settings:
    """Settings, whose source is a single Redis unless they say it is a cluster."""
    given: dict[str, Any] = {
        "store": store,
        "alias": alias,
        "feature_source": feature_source,
        "redis_url": redis_url,
        "redis_key_prefix": redis_key_prefix,
    }
    settings = read_settings(**given)
    if settings.feature_source == "memory":
        settings = read_settings(**{**given, "feature_source": "redis"})
    return settings


def _open(settings: Settings) -> Bundle:
    try:
        return ModelStore(settings.store).open(settings.alias)
    except ContractError as error:
        fail(str(error))


class RateColumn(ProgressColumn):
    """Rows per second of this run."""

    def render(self, task: Task) -> Text:
        """The figure, once there is one."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} rows/s")


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
        console=console,
    )


__all__ = ["app"]
