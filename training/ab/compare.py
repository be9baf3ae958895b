"""One treatment arm against the control: lift, fixed-horizon and always-valid intervals, look by look.

Pure. Works on sums per unit, so every interval is clustered by unit. The relative lift's interval is the
delta method on the logarithm of the ratio of two rates, which keeps it above -100 %. Invariant: the look
that comes last is the whole experiment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm  # type: ignore[import-untyped]

from training.ab.rate import Rate, rate_of
from training.ab.rows import UnitSums
from training.ab.sequential import MIN_CLICKS, half_width, p_value


@dataclass(frozen=True)
class Look:
    """The difference as it stood at one moment.

    Attributes:
        time_ms: End of the look, ms since 1970 UTC.
        difference: Treatment - control click rate.
        low, high: Fixed-horizon interval: right only where this moment was chosen before the start.
        always_low, always_high: Interval that is right at every look at once.
        always_p: Smallest always-valid p-value of this and earlier looks.
    """

    time_ms: int
    difference: float
    low: float
    high: float
    always_low: float
    always_high: float
    always_p: float


@dataclass(frozen=True)
class Comparison:
    """A treatment arm against the control.

    Attributes:
        arm: The treatment.
        difference: Treatment - control click rate, with its fixed-horizon interval and p-value.
        lift: Relative change, with its fixed-horizon interval; None without clicks.
        looks: Every look with at least `MIN_CLICKS` clicks in both arms; empty when there is none.
    """

    arm: str
    difference: float
    low: float
    high: float
    p_value: float
    lift: float | None
    lift_low: float | None
    lift_high: float | None
    looks: tuple[Look, ...]


def arm_rate(sums: UnitSums) -> Rate:
    """Click rate of an arm over the whole experiment."""
    return rate_of(sums.per_unit(sums.clicks), sums.per_unit(sums.rows))


def compare(
    arm: str,
    treatment: UnitSums,
    control: UnitSums,
    *,
    looks_ms: np.ndarray[tuple[int], np.dtype[np.int64]],
    alpha: float,
    mixture: float,
) -> Comparison:
    """Compare two arms.

    Args:
        arm: Name of the treatment.
        treatment: Its sums per unit and look.
        control: Those of the control.
        looks_ms: (looks,) end of each look.
        alpha: Error level of this comparison, two-sided.
        mixture: Variance of the mixture of the always-valid test.
    """
    treated, base = arm_rate(treatment), arm_rate(control)
    difference = treated.value - base.value
    error = math.sqrt(treated.variance + base.variance)
    z = float(norm.ppf(1 - alpha / 2))
    chance = 2 * float(norm.sf(abs(difference) / error)) if error > 0 else math.nan
    lift = _lift(treated, base, z)
    return Comparison(
        arm,
        difference,
        difference - z * error,
        difference + z * error,
        chance,
        *lift,
        _looks(treatment, control, looks_ms, z, alpha, mixture),
    )


def _lift(treated: Rate, base: Rate, z: float) -> tuple[float | None, float | None, float | None]:
    if not (treated.top > 0 and base.top > 0):
        return None, None, None
    ratio = treated.value / base.value
    error = math.sqrt(treated.variance / treated.value**2 + base.variance / base.value**2)
    return ratio - 1, ratio * math.exp(-z * error) - 1, ratio * math.exp(z * error) - 1


def _looks(
    treatment: UnitSums,
    control: UnitSums,
    looks_ms: np.ndarray[tuple[int], np.dtype[np.int64]],
    z: float,
    alpha: float,
    mixture: float,
) -> tuple[Look, ...]:
    looks, smallest = [], 1.0
    for number, end_ms in enumerate(looks_ms.tolist()):
        base, treated = _rate_until(control, number), _rate_until(treatment, number)
        variance = treated.variance + base.variance
        if min(base.top, treated.top) < MIN_CLICKS or not variance > 0:
            continue
        difference = treated.value - base.value
        half, always = z * math.sqrt(variance), float(half_width(variance, mixture=mixture, alpha=alpha))
        smallest = min(smallest, float(p_value(difference, variance, mixture=mixture)))
        looks.append(
            Look(
                end_ms,
                difference,
                difference - half,
                difference + half,
                difference - always,
                difference + always,
                smallest,
            )
        )
    return tuple(looks)


def _rate_until(sums: UnitSums, look: int) -> Rate:
    seen = sums.look <= look
    return rate_of(
        sums.per_unit(np.where(seen, sums.clicks, 0.0)), sums.per_unit(np.where(seen, sums.rows, 0.0))
    )
