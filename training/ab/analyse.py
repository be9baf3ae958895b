"""The reading of one experiment: sample ratio, click rates, lifts, sequential results, calibration.

Reads joined rows; gives plain values that the report and the JSON file show. With several treatments each
comparison gets alpha / number of treatments (Bonferroni). Invariant: nothing here chooses when to stop; the
always-valid results may be read at any look, the fixed-horizon ones only at the planned end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from training.ab.calibration import GroupCalibration, calibration_by_group
from training.ab.compare import Comparison, arm_rate, compare
from training.ab.errors import AbDataError
from training.ab.rate import Rate
from training.ab.rows import read_experiment
from training.ab.sequential import mixture_variance
from training.ab.srm import SampleRatio, sample_ratio

CONTROL = "control"


@dataclass(frozen=True)
class Arm:
    """What one arm saw."""

    name: str
    units: int
    rows: int
    clicks: int
    ctr: float
    rows_per_unit: float
    design_effect: float


@dataclass(frozen=True)
class Analysis:
    """All of it.

    Attributes:
        alpha: Error level over all comparisons together.
        planned_lift: Relative lift the always-valid results are tuned for.
        crossed_units: Units seen in several arms and left out.
        last_ms: Time of the last row, ms since 1970 UTC.
    """

    experiment: str
    control: str
    alpha: float
    power: float
    planned_lift: float
    crossed_units: int
    last_ms: int
    sample_ratio: SampleRatio
    arms: tuple[Arm, ...]
    comparisons: tuple[Comparison, ...]
    calibration: tuple[GroupCalibration, ...]


def analyse(
    data: Path,
    *,
    experiment: str | None = None,
    control: str = CONTROL,
    shares: Mapping[str, float] | None = None,
    alpha: float = 0.05,
    power: float = 0.8,
    planned_lift: float = 0.02,
    looks: int = 20,
) -> Analysis:
    """Read an experiment.

    Args:
        data: Folder of `ctr-train data join`.
        experiment: Its name; None when the rows hold only one.
        control: The arm that others are compared with.
        shares: Share of units by arm in the routing config; equal when None.
        alpha: Error level, two-sided.
        power: Planned power.
        planned_lift: Relative lift that the experiment was planned for, chosen before the start.
        looks: Equal parts of time after which the results are read.

    Raises:
        AbDataError: The rows are not those of this experiment, or an arm has too little to compare.
    """
    read = read_experiment(data, experiment, looks=looks)
    if control not in read.arms:
        raise AbDataError(f"control arm '{control}' has no rows; the arms are {sorted(read.arms)}")
    rates = {arm: arm_rate(sums) for arm, sums in read.arms.items()}
    for arm, rate in rates.items():
        if rate.num_units < 2:
            raise AbDataError(f"arm '{arm}' has {rate.num_units} unit; an interval needs at least 2")
    base = rates[control]
    if not base.top:
        raise AbDataError(f"control arm '{control}' has no click in {int(base.bottom)} rows; nothing to lift")
    treatments = [arm for arm in read.arms if arm != control]
    each = alpha / len(treatments)
    mixture = mixture_variance(base.value * planned_lift, alpha=each, power=power)
    return Analysis(
        experiment=read.experiment,
        control=control,
        alpha=alpha,
        power=power,
        planned_lift=planned_lift,
        crossed_units=read.crossed,
        last_ms=int(read.looks_ms[-1]),
        sample_ratio=sample_ratio(read.units, shares or dict.fromkeys(read.units, 1.0)),
        arms=tuple(_arm(arm, rates[arm]) for arm in (control, *treatments)),
        comparisons=tuple(
            compare(
                arm,
                read.arms[arm],
                read.arms[control],
                looks_ms=read.looks_ms,
                alpha=each,
                mixture=mixture,
            )
            for arm in treatments
        ),
        calibration=tuple(calibration_by_group(read.rows, alpha=alpha)),
    )


def _arm(name: str, rate: Rate) -> Arm:
    return Arm(
        name,
        rate.num_units,
        int(rate.bottom),
        int(rate.top),
        rate.value,
        rate.bottom / rate.num_units,
        rate.design_effect,
    )
