"""Calibration per arm and domain: what the scores promised against what was clicked.

Reads the lazy rows of an experiment. The ratio is sum of scores / clicks; its interval is clustered by unit:
delta method on its logarithm, with unit i's influence s_i / S - c_i / C. Invariant: groups come in order of
arm, all domains first, then domains in order of rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import norm  # type: ignore[import-untyped]

from training.metrics.calibration import expected_calibration_error

ALL = "all domains"

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class GroupCalibration:
    """Calibration of one arm in one domain.

    Attributes:
        ratio: Promised / observed clicks with its interval; None without clicks (interval: or with one unit).
        ece: Expected calibration error over 15 bins of equal mass.
    """

    arm: str
    domain: str
    rows: int
    clicks: int
    mean_score: float
    ctr: float
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    ece: float


def calibration_by_group(rows: pl.LazyFrame, *, alpha: float) -> list[GroupCalibration]:
    """Calibration of every arm, over all domains and in each one.

    Args:
        rows: With the columns arm, domain, unit, score, label.
        alpha: 1 - coverage of the intervals of the ratios.
    """
    sums = (
        rows.group_by("arm", "domain", "unit")
        .agg(scores=pl.col("score").cast(pl.Float64).sum(), clicks=pl.col("label").cast(pl.Float64).sum())
        .sort("arm", "domain", "unit")
        .collect(engine="streaming")
    )
    groups = []
    for (arm,), units in sums.group_by("arm", maintain_order=True):
        # One arm's rows at a time, without their units: 9 bytes each.
        part = (
            rows.filter(pl.col("arm") == arm)
            .select(pl.col("domain").cast(pl.Categorical), pl.col("score").cast(pl.Float32), "label")
            .collect(engine="streaming")
        )
        groups.append(_group(str(arm), ALL, part, units, alpha))
        names = units["domain"].unique(maintain_order=True).to_list()
        by_domain = [
            _group(str(arm), name, part.filter(domain=name), units.filter(domain=name), alpha)
            for name in names
        ]
        groups += sorted(by_domain, key=lambda group: -group.rows)
    return groups


def _group(arm: str, domain: str, part: pl.DataFrame, units: pl.DataFrame, alpha: float) -> GroupCalibration:
    scores, labels = part["score"].to_numpy(), part["label"].to_numpy()
    sums = units.group_by("unit").agg(pl.col("scores").sum(), pl.col("clicks").sum()).sort("unit")
    ratio, low, high = ratio_interval(sums["scores"].to_numpy(), sums["clicks"].to_numpy(), alpha=alpha)
    return GroupCalibration(
        arm=arm,
        domain=domain,
        rows=len(part),
        clicks=int(labels.sum()),
        mean_score=float(scores.mean(dtype=np.float64)),
        ctr=float(labels.mean()),
        ratio=ratio,
        ratio_low=low,
        ratio_high=high,
        ece=expected_calibration_error(labels, scores),
    )


def ratio_interval(
    scores: Floats, clicks: Floats, *, alpha: float
) -> tuple[float | None, float | None, float | None]:
    """Sum of (U,) scores / sum of (U,) clicks per unit, with its interval."""
    promised, observed = float(scores.sum()), float(clicks.sum())
    if not observed:
        return None, None, None
    ratio, num_units = promised / observed, len(scores)
    if num_units < 2 or not promised:
        return ratio, None, None
    influence = scores / promised - clicks / observed
    error = math.sqrt(float(np.sum(influence**2)) * num_units / (num_units - 1))
    step = math.exp(float(norm.ppf(1 - alpha / 2)) * error)
    return ratio, ratio / step, ratio * step
