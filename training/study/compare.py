"""Means over seeds, and differences paired by seed.

Pure functions of numbers. Source: Student's paired t, the difference of the two runs of a seed being one
draw. Invariant: a difference is variant minus reference over the seeds that both have, and its interval
speaks of training noise alone: every seed is judged on the same test rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats  # type: ignore[import-untyped]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """A paired difference over n seeds.

    Attributes:
        mean: Mean of variant minus reference.
        low, high: Ends of its 95 % interval; None with one seed.
        p: Two-sided p value of "the mean is 0"; None with one seed.
        won, lost: Seeds on which the variant is strictly better, strictly worse.
        n: Seeds.
        values: (n,) differences in the order of the seeds.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    won: int
    lost: int
    n: int
    values: tuple[float, ...]

    @property
    def verdict(self) -> int:
        """Direction of the mean: +1 or -1 where the interval leaves 0 out, else 0."""
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return 0
        return 1 if self.mean > 0 else -1

    def to_json_dict(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self) | {"values": list(self.values)}


def spread(values: Sequence[float | None]) -> dict[str, Any] | None:
    """Mean, sample standard deviation (None with one value) and values; None where a value is undefined."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    sd = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return {"mean": float(np.mean(known)), "sd": sd, "values": known}


def paired(
    variant: Mapping[int, float | None], reference: Mapping[int, float | None], *, lower_is_better: bool
) -> Difference | None:
    """Compare by seed.

    Args:
        variant: Value by seed; None where it is undefined.
        reference: The same of what it is compared with.
        lower_is_better: Which sign counts as won.

    Returns:
        The difference over the seeds where both are defined; None where there is no such seed.
    """
    pairs = [(variant[seed], reference[seed]) for seed in variant if seed in reference]
    differences = np.array([a - b for a, b in pairs if a is not None and b is not None], dtype=np.float64)
    n = len(differences)
    if n == 0:
        return None
    gains = -differences if lower_is_better else differences
    mean = float(differences.mean())
    low, high, p = _student(differences) if n > 1 else (None, None, None)
    return Difference(
        mean=mean,
        low=low,
        high=high,
        p=p,
        won=int((gains > 0).sum()),
        lost=int((gains < 0).sum()),
        n=n,
        values=tuple(differences.tolist()),
    )


def _student(differences: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float, float]:
    """(low, high, p) of the mean of n >= 2 differences (n,)."""
    n = len(differences)
    mean, error = float(differences.mean()), float(differences.std(ddof=1)) / math.sqrt(n)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
    if error == 0:  # the same difference on every seed: t is infinite, or 0 / 0
        return mean, mean, 1.0 if mean == 0 else 0.0
    p = float(2 * stats.t.sf(abs(mean) / error, n - 1))
    return mean - half, mean + half, p
