"""Simulated experiments: how often a result is called significant, once at the end or at any look.

Users have click rates drawn from a beta distribution, enter over the first half of the experiment and come
back; each look sees all rows so far. With lift 0 both arms are the same (A/A) and the shares are
false-positive rates; with a lift they are powers. Pure, seeded. Source of the beta: mean ctr and intra-unit
correlation icc give a = ctr (1 - icc) / icc, b = (1 - ctr) (1 - icc) / icc.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm  # type: ignore[import-untyped]

from training.ab.errors import require_at_least, require_between
from training.ab.rate import rates_of
from training.ab.sequential import MIN_CLICKS, mixture_variance, p_value

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

CHUNK = 50
"""Experiments drawn together: about 8 MB per array at 10,000 units."""


@dataclass(frozen=True)
class World:
    """What is simulated; counts are per experiment.

    Attributes:
        ctr: Click rate of the control arm.
        lift: Relative change in the treatment arm; 0 for A/A tests.
        icc: Correlation of two rows of one unit, in (0, 1).
        units_per_arm: Units of each arm.
        rows_per_unit: Mean rows of a unit over the whole experiment.
        looks: Times at which the results are looked at, evenly spaced.
    """

    ctr: float = 0.05
    lift: float = 0.0
    icc: float = 0.05
    units_per_arm: int = 1000
    rows_per_unit: float = 20.0
    looks: int = 20

    def __post_init__(self) -> None:
        require_between(self.ctr, 0, 1, name="ctr")
        require_between(self.ctr * (1 + self.lift), 0, 1, name="ctr of the treatment arm")
        require_between(self.icc, 0, 1, name="icc")
        require_at_least(self.units_per_arm, 2, name="units per arm")
        require_between(self.rows_per_unit, 0, math.inf, name="rows per unit")
        require_at_least(self.looks, 1, name="looks")


@dataclass(frozen=True)
class Share:
    """Share of experiments that were called significant, with its 95 % Wilson interval."""

    significant: int
    experiments: int
    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Simulated:
    """Shares of significant experiments under three ways of reading.

    Attributes:
        fixed_at_end: Fixed-horizon test, read once, at the last look.
        fixed_peeking: Fixed-horizon test, stopped at the first look below alpha: what not to do.
        always_valid_peeking: Always-valid p-value, stopped at the first look below alpha.
        always_valid_at_end: Always-valid p-value, read once, at the last look.
    """

    fixed_at_end: Share
    fixed_peeking: Share
    always_valid_peeking: Share
    always_valid_at_end: Share


def simulate(
    world: World,
    *,
    experiments: int = 1000,
    alpha: float = 0.05,
    power: float = 0.8,
    planned_lift: float = 0.1,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Simulated:
    """Run experiments and count significant ones.

    Args:
        world: What is simulated.
        experiments: How many, at least 1.
        alpha: Error level of every test, two-sided.
        power: Planned power, for the mixture.
        planned_lift: Relative lift the experiment was planned for, for the mixture.
        seed: Of every draw.
        progress: Told of (experiments done, in all).
    """
    require_at_least(experiments, 1, name="experiments")
    mixture = mixture_variance(world.ctr * planned_lift, alpha=alpha, power=power)
    rng = np.random.default_rng(seed)
    fixed, always = [], []
    for start in range(0, experiments, CHUNK):
        count = min(CHUNK, experiments - start)
        differences, variances = _differences(world, count, rng)
        usable = np.isfinite(variances) & (variances > 0)
        safe = np.where(usable, variances, 1.0)
        z = np.where(usable, np.abs(differences) / np.sqrt(safe), 0.0)
        fixed.append(z > norm.ppf(1 - alpha / 2))
        always.append(usable & (p_value(differences, safe, mixture=mixture) < alpha))
        progress(start + count, experiments)
    return _counted(np.concatenate(fixed), np.concatenate(always))


def wilson(significant: int, experiments: int) -> Share:
    """A share with its 95 % interval (Wilson, JASA 22 (1927) 209)."""
    z = float(norm.ppf(0.975))
    share, n = significant / experiments, experiments
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return Share(significant, experiments, share, max(0.0, middle - half), min(1.0, middle + half))


def _differences(world: World, count: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """(count, looks) differences of click rates and their variances; nan where a look does not count."""
    arms = [_arm(world, world.ctr * (1 + lift), count, rng) for lift in (0.0, world.lift)]
    (control, control_variance), (treated, treated_variance) = arms
    difference, variance = treated - control, treated_variance + control_variance
    return np.where(np.isfinite(difference), difference, 0.0), variance


def _arm(world: World, ctr: float, count: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """(count, looks) click rates of one arm and their variances."""
    shape = (count, world.units_per_arm)
    strength = (1 - world.icc) / world.icc
    chance = rng.beta(ctr * strength, (1 - ctr) * strength, shape)
    entry = rng.integers(0, max(1, world.looks // 2), shape)
    rows, clicks = np.zeros(shape), np.zeros(shape)
    value, variance = np.empty((count, world.looks)), np.empty((count, world.looks))
    for look in range(world.looks):
        mean = world.rows_per_unit / (world.looks - entry) * (entry <= look)
        new = rng.poisson(mean)
        rows += new
        clicks += rng.binomial(new, chance)
        value[:, look], variance[:, look], _ = rates_of(clicks, rows)
        variance[clicks.sum(axis=1) < MIN_CLICKS, look] = np.nan
    return value, variance


def _counted(fixed: Bools, always: Bools) -> Simulated:
    """Shares from (experiments, looks) decisions."""

    def share(decisions: Bools) -> Share:
        return wilson(int(decisions.sum()), len(decisions))

    any_fixed: Bools = np.logical_or.reduce(fixed, axis=1)
    any_always: Bools = np.logical_or.reduce(always, axis=1)
    return Simulated(
        fixed_at_end=share(fixed[:, -1]),
        fixed_peeking=share(any_fixed),
        always_valid_peeking=share(any_always),
        always_valid_at_end=share(always[:, -1]),
    )
