"""Rows of one experiment, added up per unit.

Reads the parquet files of `ctr-train data join` (or any with the columns `COLUMNS`) lazily, so memory grows
with units and not with rows. Invariant: a unit that was seen in several arms is in none of the sums; it is
counted in `crossed`, because its clicks belong to no arm.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from training.ab.errors import AbDataError, require_at_least

COLUMNS = ("time_ms", "unit", "domain", "experiment", "arm", "score", "label")

BY_HASH = "hash"
"""Reason of assignments that count: not overrides, the holdout or a kill switch."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class UnitSums:
    """Sums per unit and look, or per unit alone.

    Attributes:
        unit: (n,) int64 code of the unit.
        look: (n,) int64 part of the experiment's time, 0 .. looks - 1.
        rows: (n,) float64.
        clicks: (n,) float64.
        scores: (n,) float64 sum of scores.
    """

    unit: Ints
    look: Ints
    rows: Floats
    clicks: Floats
    scores: Floats

    def per_unit(self, values: Floats) -> Floats:
        """(U,) sums of (n,) `values` by unit."""
        sums = np.bincount(self.unit, weights=values, minlength=int(self.unit.max(initial=-1)) + 1)
        return sums.astype(np.float64, copy=False)


@dataclass(frozen=True)
class ExperimentRows:
    """An experiment's rows by arm.

    Attributes:
        experiment: Its name.
        arms: Sums by arm, in order of name.
        units: Units by arm, those in several arms left out.
        crossed: Units seen in several arms.
        looks_ms: (looks,) int64 end of each look, ms since 1970 UTC; the last is the time of the last row.
        rows: Lazy rows of the experiment, crossed units left out.
    """

    experiment: str
    arms: dict[str, UnitSums]
    units: dict[str, int]
    crossed: int
    looks_ms: Ints
    rows: pl.LazyFrame


def scan(data: Path) -> pl.LazyFrame:
    """Lazy rows of a folder's parquet files, or of one file.

    Raises:
        AbDataError: No parquet there, or columns are missing.
    """
    files = sorted(data.glob("*.parquet")) if data.is_dir() else [data] if data.is_file() else []
    if not files:
        raise AbDataError(f"{data}: no parquet file there; `ctr-train data join` makes one")
    frame = pl.scan_parquet(files)
    missing = [name for name in COLUMNS if name not in frame.collect_schema().names()]
    if missing:
        raise AbDataError(f"{data}: columns {missing} are missing; an experiment needs {list(COLUMNS)}")
    return frame


def read_experiment(data: Path, experiment: str | None, *, looks: int) -> ExperimentRows:
    """Add up the rows of one experiment.

    Args:
        data: Folder of parquet files.
        experiment: Its name; None when the rows hold only one.
        looks: Equal parts of the time from the first to the last row.

    Raises:
        AbDataError: Not this experiment, fewer than two arms, rows without unit or label.
    """
    require_at_least(looks, 1, name="looks")
    frame = scan(data)
    name = _experiment(frame, experiment, data)
    rows = frame.filter(pl.col("experiment") == name)
    if "reason" in frame.collect_schema().names():
        rows = rows.filter(pl.col("reason") == BY_HASH)
    span = rows.select(
        first=pl.col("time_ms").min(),
        last=pl.col("time_ms").max(),
        bad=(pl.col("unit").is_null() | pl.col("arm").is_null() | pl.col("label").is_null()).sum(),
    ).collect()
    first, last, bad = span.row(0)
    if bad:
        raise AbDataError(f"{data}: {bad} rows of experiment '{name}' have no unit, arm or label")
    per_unit = rows.group_by("unit").agg(arms=pl.col("arm").n_unique())
    crossed = per_unit.filter(pl.col("arms") > 1).select("unit")
    rows = rows.join(crossed, on="unit", how="anti")
    width = max(1, -(-(last - first + 1) // looks))
    sums = (
        rows.with_columns(look=(pl.col("time_ms") - first) // width)
        .group_by("arm", "unit", "look")
        .agg(rows=pl.len(), clicks=pl.col("label").sum(), scores=pl.col("score").cast(pl.Float64).sum())
        .sort("arm", "unit", "look")
        .collect(engine="streaming")
    )
    arms = {str(key[0]): _sums(part) for key, part in sums.group_by("arm", maintain_order=True)}
    if len(arms) < 2:
        raise AbDataError(f"{data}: experiment '{name}' has arms {sorted(arms)}; at least two are needed")
    ends = np.minimum(first + width * np.arange(1, looks + 1, dtype=np.int64), last)
    return ExperimentRows(
        experiment=name,
        arms=arms,
        units={arm: int(part.unit.max(initial=-1)) + 1 for arm, part in arms.items()},
        crossed=crossed.select(pl.len()).collect().item(),
        looks_ms=ends,
        rows=rows,
    )


def _experiment(frame: pl.LazyFrame, wanted: str | None, data: Path) -> str:
    names: list[str] = (
        frame.select(pl.col("experiment").drop_nulls().unique()).collect()["experiment"].sort().to_list()
    )
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted is None or wanted not in names:
        asked = "none was named" if wanted is None else f"'{wanted}' is not among them"
        raise AbDataError(f"{data}: the rows hold experiments {names}; {asked}")
    return wanted


def _sums(part: pl.DataFrame) -> UnitSums:
    return UnitSums(
        unit=part["unit"].rle_id().to_numpy().astype(np.int64),
        look=part["look"].to_numpy().astype(np.int64),
        rows=part["rows"].to_numpy().astype(np.float64),
        clicks=part["clicks"].to_numpy().astype(np.float64),
        scores=part["scores"].to_numpy().astype(np.float64),
    )
