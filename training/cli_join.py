"""`ctr-train data join`: from the service's exposure and feedback files to a raw data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from training.cli_print import out_console

UNREPORTED = ("no_click", "drop")


def join_command(
    exposures: Annotated[Path, typer.Option(help="Folder of exposure files (CTR_EXPOSURE_DIR).")],
    feedback: Annotated[Path, typer.Option(help="Folder of feedback files (CTR_FEEDBACK_DIR).")],
    out: Annotated[Path, typer.Option(help="New folder for rows.parquet and dataset.yaml.")],
    window: Annotated[str, typer.Option(help="Attribution window: a click after it does not count.")] = "30m",
    unreported: Annotated[
        str, typer.Option(help="An item without feedback is: no_click, or drop (no row).")
    ] = "no_click",
) -> None:
    """Join what was scored with what came of it, by request id and item."""
    from training.data.join import join, parse_window

    if unreported not in UNREPORTED:
        raise typer.BadParameter(
            f"{unreported!r} is not one of {', '.join(UNREPORTED)}", param_hint="--unreported"
        )
    summary = join(
        exposures,
        feedback,
        out,
        window_ms=parse_window(window),
        unreported="drop" if unreported == "drop" else "no_click",
    )
    out_console.print(
        f"{out}: {summary.rows:,} rows, {summary.clicks:,} clicks of {summary.requests:,} requests "
        f"({summary.repeated_requests:,} repeated, {summary.open_requests:,} with an open window); "
        f"{summary.outcomes:,} outcomes ({summary.unmatched_outcomes:,} unmatched, "
        f"{summary.late_outcomes:,} late)",
        highlight=False,
        soft_wrap=True,
    )
