"""A click rate and its variance when the rows of one unit (a user) belong together.

Pure. The rate is a ratio of two sums over units, clicks / rows; units are independent, their rows are not.
Source of the variance: the delta method for ratio metrics (Deng, Knoblich and Lu, KDD 2018,
arXiv 1803.06336, section 2.2). Invariant: with one row per unit it is the sample variance of a share.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rate:
    """A ratio of sums over units.

    Attributes:
        value: sum(top) / sum(bottom); nan without rows.
        variance: Of `value`; nan with fewer than two units.
        num_units: Units with a bottom above 0.
        top: Sum of the numerators (clicks).
        bottom: Sum of the denominators (rows).
    """

    value: float
    variance: float
    num_units: int
    top: float
    bottom: float

    @property
    def design_effect(self) -> float:
        """Variance over that of as many independent rows; 1 when units do not matter."""
        plain = self.value * (1 - self.value) / self.bottom if self.bottom else float("nan")
        return self.variance / plain if plain > 0 else float("nan")


def rate_of(top: Floats, bottom: Floats) -> Rate:
    """The ratio of (U,) numerators and (U,) denominators, one entry per unit; empty units do not count."""
    values, variances, units = rates_of(top[None], bottom[None])
    return Rate(float(values[0]), float(variances[0]), int(units[0]), float(top.sum()), float(bottom.sum()))


def rates_of(top: Floats, bottom: Floats) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """The same for many samples at once.

    Args:
        top: (T, U) numerators, one row per sample.
        bottom: (T, U) denominators; 0 where a unit is not in the sample (its numerator is 0 too).

    Returns:
        (T,) ratios, (T,) variances, (T,) number of units.
    """
    units = (bottom > 0).sum(axis=1)
    total = bottom.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = top.sum(axis=1) / total
        residual = top - value[:, None] * bottom
        correction = np.where(units > 1, units / np.maximum(units - 1, 1), np.nan)
        variance = correction * np.einsum("tu,tu->t", residual, residual) / total**2
    return value, variance, units
