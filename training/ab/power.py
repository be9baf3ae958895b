"""How many units an experiment needs before it starts, and what a number of units can show.

Pure. Two-sided z-test of two click rates, with the variance of rows raised by the design effect of users
who see several rows: 1 + ((1 + cv^2) m - 1) icc for m rows per unit on average with coefficient of variation
cv (Eldridge, Ashby and Kerry, Int. J. Epidemiology 35 (2006) 1292; Kish 1965 for cv = 0). Invariant:
`detectable` is the inverse of `required`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.optimize import brentq  # type: ignore[import-untyped]
from scipy.stats import norm  # type: ignore[import-untyped]

from training.ab.errors import PlanValueError, require_at_least, require_between
from training.ab.sequential import half_width, mixture_variance


@dataclass(frozen=True)
class Traffic:
    """What a unit brings.

    Attributes:
        ctr: Click rate of the control arm.
        rows_per_unit: Mean rows of a unit over the experiment, at least 1.
        design_effect: Variance of the click rate over that of independent rows.
    """

    ctr: float
    rows_per_unit: float
    design_effect: float

    def __post_init__(self) -> None:
        require_between(self.ctr, 0, 1, name="ctr")
        require_at_least(self.rows_per_unit, 1, name="rows per unit")
        require_between(self.design_effect, 0, math.inf, name="design effect")


@dataclass(frozen=True)
class Test:
    """How the test is judged: error level (two-sided), power, share of units in the treatment arm."""

    alpha: float = 0.05
    power: float = 0.8
    treatment_share: float = 0.5

    def __post_init__(self) -> None:
        require_between(self.alpha, 0, 1, name="alpha")
        require_between(self.power, 0, 1, name="power")
        require_between(self.treatment_share, 0, 1, name="treatment share")

    @property
    def z_sum(self) -> float:
        """Planned effect in standard errors."""
        return float(norm.ppf(1 - self.alpha / 2) + norm.ppf(self.power))


@dataclass(frozen=True)
class Need:
    """What one relative lift needs.

    Attributes:
        lift: Relative change of the click rate.
        units: In both arms together.
        rows: In both arms together.
        always_valid_width_ratio: Width of the always-valid interval over the fixed one at that size.
    """

    lift: float
    units: int
    rows: int
    always_valid_width_ratio: float


def design_effect(*, rows_per_unit: float, rows_cv: float, icc: float) -> float:
    """Rise of variance by clustering.

    Args:
        rows_per_unit: Mean rows of a unit, at least 1.
        rows_cv: Standard deviation of rows per unit / mean, not negative.
        icc: Correlation of two rows of one unit, in [0, 1].
    """
    require_at_least(rows_per_unit, 1, name="rows per unit")
    require_at_least(rows_cv, 0, name="rows cv")
    if not 0 <= icc <= 1:
        raise PlanValueError(f"icc must lie in [0, 1], got {icc:g}")
    return 1 + ((1 + rows_cv**2) * rows_per_unit - 1) * icc


def variance_per_unit(traffic: Traffic, test: Test, lift: float) -> float:
    """Variance of the difference of click rates, times the number of units.

    Raises:
        PlanValueError: The lift is 0, or gives a click rate outside (0, 1).
    """
    treated = traffic.ctr * (1 + lift)
    if lift == 0 or not 0 < treated < 1:
        raise PlanValueError(
            f"lift must not be 0 and must keep the click rate between 0 and 1; {lift:g} on {traffic.ctr:g} "
            f"gives {treated:g}"
        )
    rows = traffic.ctr * (1 - traffic.ctr) / (1 - test.treatment_share)
    rows += treated * (1 - treated) / test.treatment_share
    return rows * traffic.design_effect / traffic.rows_per_unit


def required(traffic: Traffic, test: Test, lift: float) -> Need:
    """Units that show a relative lift with the planned power."""
    effect = traffic.ctr * lift
    per_unit = variance_per_unit(traffic, test, lift)
    units = math.ceil(per_unit * (test.z_sum / effect) ** 2)
    mixture = mixture_variance(effect, alpha=test.alpha, power=test.power)
    variance = per_unit / units
    fixed = float(norm.ppf(1 - test.alpha / 2)) * math.sqrt(variance)
    ratio = float(half_width(variance, mixture=mixture, alpha=test.alpha)) / fixed
    return Need(lift, units, math.ceil(units * traffic.rows_per_unit), ratio)


def detectable(traffic: Traffic, test: Test, units: int) -> float:
    """Smallest relative lift above 0 that so many units show with the planned power.

    Raises:
        PlanValueError: Even the largest lift that keeps the click rate below 1 cannot be shown.
    """
    require_at_least(units, 2, name="units")

    def missing(lift: float) -> float:
        error = math.sqrt(variance_per_unit(traffic, test, lift) / units)
        return test.z_sum * error - traffic.ctr * lift

    top = (1 / traffic.ctr - 1) * (1 - 1e-9)
    if missing(top) > 0:
        raise PlanValueError(f"{units} units cannot show any lift of a click rate of {traffic.ctr:g}")
    return float(brentq(missing, 1e-12, top, xtol=1e-12))
