"""`ctr-serve replay`: exposures scored again with a bundle, and how far the scores are apart."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from service.cli_settings import fail, option, read_settings
from service.contract.errors import ContractError
from service.contract.files import write_atomic
from service.errors import StartupError
from service.settings import Settings

if TYPE_CHECKING:
    from service.replay import ReplayResult

PROGRESS_EVERY = 64
FEATURES = ("any", "same")
FORMATS = (".csv", ".json")


def replay(
    exposures: Annotated[Path, typer.Argument(help="Folder of exposure files, or one of them.")],
    store: Annotated[Path | None, option("store")] = None,
    bundle: Annotated[
        str | None,
        typer.Option("--bundle", "--alias", help="Alias, id or beginning of an id of what is to score."),
    ] = None,
    feature_source: Annotated[str | None, option("feature_source")] = None,
    redis_url: Annotated[str | None, option("redis_url")] = None,
    unknown_domain: Annotated[str | None, option("unknown_domain")] = None,
    max_items: Annotated[int | None, option("max_items")] = None,
    tolerance: Annotated[
        float | None, typer.Option(min=0, help="Largest difference of a score before the exit code is 1.")
    ] = None,
    features: Annotated[
        str, typer.Option(help="`any`, or `same`: only requests whose encoded rows are those of then.")
    ] = "any",
    out: Annotated[Path | None, typer.Option(help="Write the figures to this .csv or .json file.")] = None,
) -> None:
    """Score logged requests again with a bundle and compare.

    A record has ids and context; features are read anew. Exit code 1: a score differs by more than the
    tolerance, or nothing could be replayed.
    """
    if out is not None and out.suffix not in FORMATS:
        fail(f"--out must end in {' or '.join(FORMATS)}, got {out.name}")
    if features not in FEATURES:
        fail(f"--features must be {' or '.join(FEATURES)}, got '{features}'")
    settings = read_settings(
        store=store,
        alias=bundle,
        feature_source=feature_source,
        redis_url=redis_url,
        unknown_domain=unknown_domain,
        max_items=max_items,
    )
    try:
        result, scored_by = _run(settings, exposures, same_features_only=features == "same")
        if out is not None:
            write_atomic(out, _written(result, scored_by, out.suffix))
    except (ContractError, StartupError, OSError) as error:
        fail(str(error))
    console = Console()
    console.print(_shown(result, scored_by))
    for reason, count in sorted(result.left_out.items()):
        console.print(f"not replayed: {count} {reason} ({_why(reason)})")
    if not result.requests:
        fail("no record could be replayed")
    if tolerance is not None and not result.max_difference <= tolerance:
        fail(f"scores differ by up to {result.max_difference:.3g}, more than {tolerance:g}")


def _run(settings: Settings, exposures: Path, *, same_features_only: bool) -> tuple[ReplayResult, str]:
    """Replay all files; returns the result and the id of the bundle."""
    from service.app import load_bundle
    from service.features.opening import FeatureSources
    from service.replay import Replay, exposure_files
    from service.scoring.runner import Runner
    from service.scoring.scorer import Scorer
    from service.telemetry.metrics import Metrics

    paths = exposure_files(exposures)
    features = FeatureSources(settings, Metrics().features)
    runner = Runner(inline_max_ms=math.inf, num_threads=1)
    try:
        loaded = load_bundle(settings, features)
        scorer = Scorer(loaded, runner, max_items=settings.max_items)
        again = Replay(scorer, max_items=settings.max_items, same_features_only=same_features_only)
        asyncio.run(_replay_all(again.line, paths, features.close))
    finally:
        runner.close()
    return again.result, loaded.bundle_id


async def _replay_all(take: Callable[[bytes], Any], paths: list[Path], close: Callable[[], None]) -> None:
    from service.replay import lines_of

    total = sum(path.stat().st_size for path in paths)
    columns = (TextColumn("replay"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=Console(stderr=True)) as progress:
            bar, done = progress.add_task("replay", total=total), 0
            for number, line in enumerate(lines_of(paths), start=1):
                await take(line)
                done += len(line)
                if number % PROGRESS_EVERY == 0:
                    progress.update(bar, completed=done)
            progress.update(bar, completed=total)
    finally:
        close()


def _why(reason: str) -> str:
    from service.replay import REASONS

    return REASONS[reason]


def _shown(result: ReplayResult, scored_by: str) -> Table:
    table = Table(
        title=f"{result.requests} requests replayed with bundle {scored_by[:12]}",
        caption=f"largest difference {result.max_difference:.3g}",
    )
    for column in ("domain", "arm", "requests", "same features", "mean |diff|", "max |diff|", "rank corr."):
        table.add_column(column)
    for row in result.rows():
        correlation = row["mean_rank_correlation"]
        table.add_row(
            row["domain"],
            row["arm"],
            str(row["requests"]),
            str(row["same_features"]),
            f"{row['mean_abs_difference']:.3g}",
            f"{row['max_abs_difference']:.3g}",
            "-" if correlation is None else f"{correlation:.4f}",
        )
    return table


def _written(result: ReplayResult, scored_by: str, suffix: str) -> bytes:
    rows = result.rows()
    if suffix == ".json":
        whole = {
            "bundle": scored_by,
            "requests": result.requests,
            "max_abs_difference": result.max_difference,
            "left_out": dict(sorted(result.left_out.items())),
            "groups": rows,
        }
        return json.dumps(whole, indent=1).encode()
    text = io.StringIO(newline="")
    names = list(rows[0]) if rows else ["domain", "arm"]
    writer = csv.DictWriter(text, names)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


__all__ = ["replay"]
