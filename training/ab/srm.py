"""Sample-ratio check: do the arms hold the share of units that the routing config gave them?

Pure. Pearson's chi-square test of the unit counts. A mismatch means that assignment, logging or a filter
treats arms differently, and then no lift can be trusted (Fabijan et al., KDD 2019). Invariant: the p-value
depends on counts and shares only, not on the order of the arms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from scipy.stats import chi2  # type: ignore[import-untyped]

from training.ab.errors import AbDataError

ALARM = 0.001
"""p-value below which the ratio is called wrong: low, because it is looked at often."""


@dataclass(frozen=True)
class SampleRatio:
    """Result of the check.

    Attributes:
        units: Units by arm.
        expected: Units by arm that the shares promise.
        statistic: Chi-square with arms - 1 degrees of freedom.
        p_value: Chance of a deviation at least this large.
        mismatch: Whether the p-value is below `ALARM`.
    """

    units: dict[str, int]
    expected: dict[str, float]
    statistic: float
    p_value: float
    mismatch: bool


def sample_ratio(units: Mapping[str, int], shares: Mapping[str, float]) -> SampleRatio:
    """Check counts of units by arm against shares by arm (any positive numbers; only ratios count).

    Raises:
        AbDataError: Fewer than two arms, arms that differ, a share that is not positive, no units.
    """
    if len(units) < 2:
        raise AbDataError(f"a sample ratio needs at least two arms, got {sorted(units)}")
    if set(units) != set(shares):
        raise AbDataError(f"shares are given for {sorted(shares)}, but the rows have arms {sorted(units)}")
    for arm, share in shares.items():
        if not share > 0:
            raise AbDataError(f"share of arm '{arm}' must be above 0, got {share:g}")
    total, whole = sum(units.values()), sum(shares.values())
    if not total:
        raise AbDataError("a sample ratio needs units, got none")
    expected = {arm: total * shares[arm] / whole for arm in units}
    statistic = sum((units[arm] - expected[arm]) ** 2 / expected[arm] for arm in units)
    p_value = float(chi2.sf(statistic, len(units) - 1))
    return SampleRatio(dict(units), expected, statistic, p_value, p_value < ALARM)
