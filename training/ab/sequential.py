"""Intervals and p-values that stay valid however often one looks.

Pure. The mixture sequential probability ratio test with a normal mixture over the effect (Robbins, Ann.
Math. Statist. 41 (1970) 1397; Johari, Pekelis and Walsh, arXiv 1512.04922), applied to an estimate that is
asymptotically normal, which makes it the asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha,
Kennedy and Ramdas (arXiv 2103.06476, theorem 2.2): with n units, V = sigma^2 / n and mixture variance
sigma^2 rho^2, both formulas are the same. Invariant: the interval excludes an effect exactly when the
p-value against it is below alpha.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm  # type: ignore[import-untyped]

from training.ab.errors import require_between

Floats = NDArray[np.float64]

MIN_CLICKS = 20
"""Clicks that each arm must have before a look counts: below, the normal approximation says nothing."""


def tightest_ratio(alpha: float) -> float:
    """Mixture variance / variance of the estimate at the moment where the interval shall be tightest.

    Approximate minimiser of the width, arXiv 2103.06476, appendix on the choice of rho:
    -2 log(alpha) + log(1 - 2 log(alpha)).
    """
    require_between(alpha, 0, 1, name="alpha")
    return -2 * math.log(alpha) + math.log(1 - 2 * math.log(alpha))


def mixture_variance(planned_effect: float, *, alpha: float, power: float) -> float:
    """Variance of the normal mixture for an experiment that was planned for an effect.

    The interval is tightest when the estimate has the variance at which a fixed-horizon test has the planned
    power: (effect / (z(1 - alpha/2) + z(power)))^2. It must be chosen before the start.

    Args:
        planned_effect: Absolute difference of click rates, not 0.
        alpha: Error level, two-sided.
        power: Planned power.
    """
    require_between(alpha, 0, 1, name="alpha")
    require_between(power, 0, 1, name="power")
    require_between(abs(planned_effect), 0, math.inf, name="planned effect")
    planned_error = abs(planned_effect) / float(norm.ppf(1 - alpha / 2) + norm.ppf(power))
    return tightest_ratio(alpha) * planned_error**2


def half_width(variance: ArrayLike, *, mixture: ArrayLike, alpha: float) -> Floats:
    """Half the width of the always-valid interval around an estimate of that variance; shapes broadcast."""
    v, m = np.asarray(variance, dtype=np.float64), np.asarray(mixture, dtype=np.float64)
    return np.asarray(np.sqrt(2 * v * (v + m) / m * np.log(np.sqrt((v + m) / v) / alpha)))


def p_value(estimate: ArrayLike, variance: ArrayLike, *, mixture: ArrayLike) -> Floats:
    """1 / likelihood ratio of the mixture against no effect, at most 1; over looks the smallest counts."""
    d, v = np.asarray(estimate, dtype=np.float64), np.asarray(variance, dtype=np.float64)
    m = np.asarray(mixture, dtype=np.float64)
    log_ratio = 0.5 * np.log(v / (v + m)) + m * d**2 / (2 * v * (v + m))
    return np.asarray(np.exp(-np.maximum(log_ratio, 0.0)))
