"""Treatments: the random sets of domains whose joint step the causal distance is read from.

Invariant: no set is empty or has a domain twice; sets depend on the seed alone.

Rule: R = max(50, D) sets, sizes uniform on {2, .., min(D - 1, 16)}, without replacement. Small
sets, because the mean over a large one is nearly the same for all. The authors' code draws sizes 5..D-1
with replacement.
"""

from typing import Literal

import numpy as np

from training.clustering.arrays import BoolArray, FloatArray
from training.clustering.errors import RulesError

TreatmentDraw = Literal["uniform", "sqrt_share"]

MIN_COUNT = 50
MIN_SIZE = 2
MAX_SIZE = 16


def default_count(num_domains: int) -> int:
    """R = max(50, D)."""
    return max(MIN_COUNT, num_domains)


def sample_treatments(
    rng: np.random.Generator,
    shares: FloatArray,
    *,
    count: int,
    min_size: int = MIN_SIZE,
    max_size: int | None = MAX_SIZE,
    draw: TreatmentDraw = "uniform",
) -> BoolArray:
    """Draw R sets of domains.

    Args:
        rng: Source of randomness.
        shares: (D,) w, training rows per domain; read by `sqrt_share` only.
        count: R.
        min_size: Smallest set; lowered to D - 1 where there are fewer domains.
        max_size: Largest set, never above D - 1; None for D - 1.
        draw: `uniform` over domains, or in proportion to the square root of `shares`.

    Returns:
        (R, D) membership.

    Raises:
        RulesError: `count` below 1, or `min_size` below 1 or above `max_size`.
    """
    num_domains = len(shares)
    if count < 1:
        raise RulesError(f"number of treatments is {count}; it must be at least 1")
    if min_size < 1 or (max_size is not None and max_size < min_size):
        raise RulesError(f"treatment sizes {min_size} to {max_size}; they must be from 1 up, smallest first")
    high = max(1, num_domains - 1 if max_size is None else min(num_domains - 1, max_size))
    low = min(min_size, high)
    odds = None
    if draw == "sqrt_share":
        root = np.sqrt(shares)
        # A domain without rows keeps a trace of chance, so that large sets can be filled.
        root = np.maximum(root, 1e-6 * max(float(root.max()), 1e-300))
        odds = root / root.sum()
    members = np.zeros((count, num_domains), dtype=bool)
    for row, size in zip(members, rng.integers(low, high + 1, size=count), strict=True):
        row[rng.choice(num_domains, size=int(size), replace=False, p=odds)] = True
    return members
