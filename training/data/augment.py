"""Popularity-based counterfactual augmentation: which train rows are copied into which small domains.

A click on an unpopular item shows interest rather than conformity, and interest carries over to other
domains; so such clicks of large domains are copied into small ones, with only the domain changed.
Pure over columns of the train rows; what comes out are row numbers and domains, never rows. Invariant: a plan
is a function of those columns, the rules and the seed; every source is a click on a cold item in a large
domain, every target a small domain.

Source: AREAD, arXiv 2412.11905, popularity-based counterfactual augmenter, with the constants of its
published code. We differ: statistics and sizes are those of train rows, the code's of all rows.

Letters: n train rows, I items, D domains, S small ones, A augmented rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from training.data.columns import Floats, Ints
from training.data.errors import AugmentError

LEAST_GAP = 100.0
"""Least r_d, in rows, so that the largest of the small domains gets copies too."""
QUANTILE = 0.3
"""Of r over small domains: the temperature of the weights."""
_STREAM = 0xA06


@dataclass(frozen=True)
class AugmentRules:
    """What is copied, and how much of it.

    Attributes:
        ratio: Augmented rows per train row; 0 makes none.
        cold_exposures: An item is cold with at most this many train rows.
        cold_popularity: An item is cold with a popularity below this; give one of the two.
        small_share: A domain with at most this share of the train rows is small.
        large_share: A domain with more than this share is large.

    Raises:
        AugmentError: A number out of range, or not exactly one rule of coldness.
    """

    ratio: float = 0.1
    cold_exposures: int | None = 4
    cold_popularity: float | None = None
    small_share: float = 0.02
    large_share: float = 0.03

    def __post_init__(self) -> None:
        if (self.cold_exposures is None) == (self.cold_popularity is None):
            raise AugmentError(
                f"cold_exposures is {self.cold_exposures} and cold_popularity is {self.cold_popularity}; "
                "give one of the two"
            )
        if self.cold_exposures is not None and self.cold_exposures < 1:
            raise AugmentError(f"cold_exposures is {self.cold_exposures}; allowed: 1 and more")
        for name in ("ratio", "small_share", "large_share", "cold_popularity"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise AugmentError(f"{name} is {value}; allowed: 0 to 1")
        if self.small_share > self.large_share:
            raise AugmentError(
                f"small_share is {self.small_share} and large_share {self.large_share}; a domain cannot be "
                "small and large, so small_share must not be above large_share"
            )


@dataclass(frozen=True, eq=False)
class ItemStatistics:
    """Of I items over train rows.

    Attributes:
        exposures: (I,) int64 rows; clicks: (I,) int64 rows with label 1.
    """

    exposures: Ints
    clicks: Ints

    @property
    def popularity(self) -> Floats:
        """(I,) float64 (c + 1) / (n + 2): a smoothed click rate, not a volume."""
        return np.asarray((self.clicks + 1) / (self.exposures + 2))

    def cold(self, rules: AugmentRules) -> NDArray[np.bool_]:
        """(I,) which items have train rows and are cold."""
        if rules.cold_popularity is not None:
            found = self.popularity < rules.cold_popularity
        else:
            found = self.exposures <= (rules.cold_exposures or 0)
        return np.asarray(found & (self.exposures > 0))


@dataclass(frozen=True, eq=False)
class AugmentPlan:
    """A augmented rows, and what they were chosen from.

    Attributes:
        sources: (A,) int64 train rows, by position; rows may be drawn more than once.
        domains: (A,) int32 the domain of each copy.
        small, large: Domain indices.
        cold_items: Items that are cold.
        pool_rows: Train rows that could be drawn.
        note: Why there are no rows, where there are none.
    """

    sources: Ints
    domains: NDArray[np.int32]
    small: tuple[int, ...] = ()
    large: tuple[int, ...] = ()
    cold_items: int = 0
    pool_rows: int = 0
    note: str = ""


def item_statistics(item: Ints, label: NDArray[np.float32]) -> ItemStatistics:
    """Count (n,) item slots and 0/1 labels of train rows; rows of unknown items, -1, are left out."""
    known = item >= 0
    size = int(item.max(initial=-1)) + 1
    exposures = np.bincount(item[known], minlength=size)
    clicks = np.bincount(item[known & (label > 0)], minlength=size)
    return ItemStatistics(exposures.astype(np.int64), clicks.astype(np.int64))


def pool_weights(popularity: Floats) -> Floats:
    """Chance of each row of the pool, (p,) summing to 1, from the popularity (p,) of its item: as 1 / pop."""
    weights = 1.0 / popularity
    return np.asarray(weights / weights.sum())


def target_weights(small_rows: Ints, num_augmented: int) -> Floats:
    """Chance of each small domain to get a copy.

    r_d = (sum of small rows + A) / S - rows of d, at least 100; weight exp(r_d / q), q the 30 % quantile of r
    (linear between ranks); normalised.

    Args:
        small_rows: (S,) train rows of each small domain.
        num_augmented: A.

    Returns:
        (S,) float64, sum 1.
    """
    level = (small_rows.sum() + num_augmented) / len(small_rows)
    gap = np.maximum(level - small_rows, LEAST_GAP)
    # The largest is taken off first: the exponentials of a wide spread are out of range.
    weights = np.exp((gap - gap.max()) / np.quantile(gap, QUANTILE))
    return np.asarray(weights / weights.sum())


def plan_augmentation(
    *,
    domain: NDArray[np.int32],
    item: Ints,
    label: NDArray[np.float32],
    num_domains: int,
    rules: AugmentRules,
    seed: int,
) -> AugmentPlan:
    """Choose A = int(ratio * n) copies.

    Domains without train rows are neither small nor large. With ratio 0 or without a small domain there is
    nothing to do: the plan is empty and says why.

    Args:
        domain: (n,) domain index of each train row; D, unknown, is no domain.
        item: (n,) item slot.
        label: (n,) 0 or 1.
        num_domains: D.
        rules: Thresholds and ratio.
        seed: Of the draw.

    Raises:
        AugmentError: Small domains, but no row to copy.
    """
    rows = np.bincount(domain, minlength=num_domains)[:num_domains].astype(np.int64)
    share = rows / max(1, len(domain))
    small = np.flatnonzero((rows > 0) & (share <= rules.small_share))
    large = np.flatnonzero(share > rules.large_share)
    items = item_statistics(item, label)
    cold = items.cold(rules)
    usable = (label > 0) & np.isin(domain, large) & (item >= 0)
    usable[usable] = cold[item[usable]]
    pool = np.flatnonzero(usable).astype(np.int64)
    size = int(rules.ratio * len(domain))
    nothing = AugmentPlan(
        sources=np.zeros(0, np.int64),
        domains=np.zeros(0, np.int32),
        small=tuple(small.tolist()),
        large=tuple(large.tolist()),
        cold_items=int(cold.sum()),
        pool_rows=len(pool),
    )
    if size == 0:
        return replace(nothing, note=f"ratio {rules.ratio} of {len(domain)} rows is no row")
    if not len(small):
        least = share[rows > 0].min()
        note = f"no domain has at most {rules.small_share} of the train rows; the smallest has {least:.4f}"
        return replace(nothing, note=note)
    if not len(pool):
        raise AugmentError(
            f"no train row to copy: {len(large)} domains have more than {rules.large_share} of the rows "
            f"(large_share), {nothing.cold_items} of {int((items.exposures > 0).sum())} items are cold, and "
            "no row of the two is a click; raise cold_exposures or cold_popularity, or lower large_share"
        )
    rng = np.random.default_rng([seed, _STREAM])
    chosen = rng.choice(pool, size=size, p=pool_weights(items.popularity[item[pool]]))
    targets = rng.choice(small, size=size, p=target_weights(rows[small], size))
    return replace(nothing, sources=chosen, domains=targets.astype(np.int32))


def weight_factors(
    domain: NDArray[np.int32],
    label: NDArray[np.float32],
    weight: NDArray[np.float32],
    plan: AugmentPlan,
    num_domains: int,
) -> Floats:
    """Factor on the weight of every click, real or copied, that keeps each domain's weighted click rate.

    f_d = C_d / (C_d + weight of the copies), C_d the weight of the domain's real clicks: clicks weigh as much
    as before, non-clicks are untouched, so rate and total weight of the domain stay. A domain without real
    clicks has factor 0: its copies do not count.

    Args:
        domain: (n,) int32 of train rows.
        label: (n,) 0 or 1.
        weight: (n,) not negative.
        plan: Copies, which carry the weight of their source.
        num_domains: D.

    Returns:
        (D,) float64 in [0, 1].
    """
    clicked = label > 0
    real = np.bincount(domain[clicked], weights=weight[clicked], minlength=num_domains)[:num_domains]
    copied = np.bincount(plan.domains, weights=weight[plan.sources], minlength=num_domains)[:num_domains]
    both = real + copied
    return np.asarray(np.where(copied > 0, real / np.where(both > 0, both, 1.0), 1.0))
