"""Training tables from exposures and feedback: one row per candidate, joined by request id and item.

Reads segments; writes `rows.parquet`, `dataset.yaml` and `join.json` into a new folder. The rules:

- An exposure that was recorded twice under one request id counts once, the earliest.
- An outcome's time is the one it names, but not later than its receipt (clocks differ) and not earlier than
  the exposure. Outcomes after the attribution window are late and left out.
- Of several outcomes of one item any click makes a click; the value is that of the latest that has one.
- An item without any outcome is a row without a click, or with `unreported="drop"` no row.
- Requests whose window was still open when the last record was written are left out: their label is not
  known yet.

Invariant: every row is one (request id, item) of one exposure, with label 0 or 1.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from training.data.errors import DescriptionError, TableError
from training.data.event_files import (
    CONTEXT,
    context_types,
    exposure_files,
    feedback_files,
    write_outcomes,
    write_requests,
)
from training.data.join_description import join_description
from training.data.source import DESCRIPTION_FILE
from training.engine.files import write_atomically, write_text

ROWS_FILE = "rows.parquet"
SUMMARY_FILE = "join.json"
WORK = ".work"
_UNIT_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}

Unreported = Literal["no_click", "drop"]


@dataclass(frozen=True)
class JoinSummary:
    """What was joined.

    Attributes:
        requests: Exposures read.
        repeated_requests: Of those, under a request id that had an earlier one.
        open_requests: Of those, with a window that was not over.
        rows: Written.
        clicks: Rows with label 1.
        outcomes: Items of feedback read.
        unmatched_outcomes: Without an exposure of that request id and item.
        late_outcomes: After the window.
        torn_lines: Unfinished last lines of open segments, left out.
        window_ms: Attribution window.
        until_ms: Time of the last record; windows that end later are open.
    """

    requests: int
    repeated_requests: int
    open_requests: int
    rows: int
    clicks: int
    outcomes: int
    unmatched_outcomes: int
    late_outcomes: int
    torn_lines: int
    window_ms: int
    until_ms: int


def parse_window(text: str) -> int:
    """`30m` as ms; units are s, m, h, d.

    Raises:
        DescriptionError: Anything else.
    """
    match = re.fullmatch(r"([1-9][0-9]*)([smhd])", text)
    if match is None:
        raise DescriptionError(f"window: {text!r}; allowed: a whole number and a unit, e.g. 45s, 30m, 2h, 1d")
    return int(match[1]) * _UNIT_MS[match[2]]


def join(
    exposures: Path, feedback: Path, out: Path, *, window_ms: int, unreported: Unreported = "no_click"
) -> JoinSummary:
    """Join the segments of two folders.

    Args:
        exposures: Folder of exposure segments.
        feedback: Folder of feedback segments.
        out: Folder to fill; must not hold joined rows yet.
        window_ms: Attribution window after the exposure.
        unreported: What an item without any outcome is.

    Raises:
        TableError: No segments, a line that cannot be read, `out` is taken, no window is over yet.
    """
    if (out / ROWS_FILE).exists():
        raise TableError(f"{out}: holds joined rows already; give a new folder")
    work = out / WORK
    shutil.rmtree(work, ignore_errors=True)
    try:
        shown, told = exposure_files(exposures), feedback_files(feedback)
        context = context_types(shown)
        requests = write_requests(shown, context, work / "requests")
        outcomes = write_outcomes(told, work / "outcomes")
        if not requests:
            raise TableError(f"{exposures}: the exposure files are empty")
        summary = _join_parts(
            work,
            out,
            window_ms=window_ms,
            unreported=unreported,
            read=(requests, outcomes, shown.torn_lines + told.torn_lines),
        )
    finally:
        shutil.rmtree(work, ignore_errors=True)
    write_text(out / DESCRIPTION_FILE, join_description(out.name, context))
    write_text(out / SUMMARY_FILE, json.dumps(asdict(summary), indent=1) + "\n")
    return summary


def _join_parts(
    work: Path, out: Path, *, window_ms: int, unreported: Unreported, read: tuple[int, int, int]
) -> JoinSummary:
    requests = pl.scan_parquet(work / "requests" / "*.parquet")
    outcomes = pl.scan_parquet(work / "outcomes" / "*.parquet")
    until_ms = _last_ms(requests, outcomes)
    first = requests.group_by("request_id").agg(
        pl.col("request").sort_by("time_ms", "request").first(), pl.col("time_ms").min()
    )
    kept = requests.join(first.select("request"), on="request", how="semi", maintain_order="left")
    closed = kept.filter(pl.col("time_ms") + window_ms <= until_ms)
    delayed = outcomes.join(
        first.select("request_id", shown_ms="time_ms"), on="request_id", how="inner"
    ).with_columns(delay=_delay())
    in_time = delayed.filter(pl.col("delay") <= window_ms)
    rows = _candidates(closed).join(
        _per_item(in_time), on=("request_id", "item"), how="left", maintain_order="left"
    )
    if unreported == "drop":
        rows = rows.filter(pl.col("click").is_not_null())
    rows = rows.with_columns(label=pl.col("click").fill_null(0).cast(pl.Int8)).drop("request", "click")
    write_atomically(out / ROWS_FILE, lambda part: rows.sink_parquet(part, row_group_size=131_072))
    counts = pl.scan_parquet(out / ROWS_FILE).select(rows=pl.len(), clicks=pl.col("label").sum()).collect()
    if not counts["rows"].item():
        (out / ROWS_FILE).unlink()
        raise TableError(
            f"no rows: no exposure has an attribution window of {window_ms} ms that was over at the last "
            f"record, {until_ms} ms" + (", and an outcome in it" if unreported == "drop" else "")
        )
    num_kept, num_closed = _count(kept), _count(closed)
    return JoinSummary(
        requests=read[0],
        repeated_requests=read[0] - num_kept,
        open_requests=num_kept - num_closed,
        rows=counts["rows"].item(),
        clicks=int(counts["clicks"].item()),
        outcomes=read[1],
        unmatched_outcomes=read[1] - _matched(_candidates(kept), outcomes),
        late_outcomes=_matched(_candidates(kept), delayed.filter(pl.col("delay") > window_ms)),
        torn_lines=read[2],
        window_ms=window_ms,
        until_ms=until_ms,
    )


def _last_ms(requests: pl.LazyFrame, outcomes: pl.LazyFrame) -> int:
    shown = requests.select(pl.col("time_ms").max()).collect().item()
    told = outcomes.select(pl.col("received_ms").max()).collect().item()
    return int(max(value for value in (shown, told) if value is not None))


def _delay() -> pl.Expr:
    """Ms from the exposure to the outcome, not negative."""
    happened = pl.min_horizontal(pl.coalesce("time_ms", "received_ms"), pl.col("received_ms"))
    return pl.max_horizontal(happened - pl.col("shown_ms"), pl.lit(0))


def _per_item(outcomes: pl.LazyFrame) -> pl.LazyFrame:
    """One row per request id and item."""
    with_value = pl.col("value").is_not_null()
    return outcomes.group_by("request_id", "item").agg(
        click=pl.col("click").max(),
        value=pl.col("value").filter(with_value).sort_by(pl.col("delay").filter(with_value)).last(),
        click_delay_ms=pl.col("delay").filter(pl.col("click") == 1).min(),
    )


def _candidates(requests: pl.LazyFrame) -> pl.LazyFrame:
    """One row per candidate."""
    return requests.explode("item", "score", "position")


def _matched(candidates: pl.LazyFrame, outcomes: pl.LazyFrame) -> int:
    """Outcomes of items that were candidates."""
    told = outcomes.group_by("request_id", "item").len("told")
    met = candidates.select("request_id", "item").join(told, on=("request_id", "item"), how="inner")
    return int(met.select(pl.col("told").sum()).collect(engine="streaming").item())


def _count(frame: pl.LazyFrame) -> int:
    return int(frame.select(pl.len()).collect(engine="streaming").item())


__all__ = ["CONTEXT", "ROWS_FILE", "SUMMARY_FILE", "JoinSummary", "Unreported", "join", "parse_window"]
