"""95 % confidence interval of one AUC.

Reads labels and scores of independent rows; writes nothing. DeLong's interval wherever it exists;
where its variance is zero or undefined (perfect order, all scores equal, one row of a class) it would claim
certainty, so Newcombe's score interval takes its place and the result says so. Invariant:
0 <= low <= auc <= high <= 1, or all three nan; the width is never 0.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from training.metrics.auc import TieRuns, tie_runs
from training.metrics.inputs import as_labels, as_scores, require_same_rows

Z_95 = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""

_BISECTIONS = 60
"""Halvings of [0, 1] until float64 cannot tell the ends apart."""


@dataclass(frozen=True)
class AucInterval:
    """An AUC and its 95 % confidence interval; all three numbers nan when a class is missing."""

    auc: float
    low: float
    high: float
    method: Literal["delong", "newcombe", "undefined"]


def auc_interval(labels: ArrayLike, scores: ArrayLike) -> AucInterval:
    """Compute the AUC and its 95 % interval, rows taken as independent.

    Source: DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988) 837, in the O(B log B) form of
    Sun and Xu, IEEE Signal Processing Letters 21 (2014) 1389; auc +- 1.96 standard errors, cut to [0, 1].
    Where that variance does not exist: Newcombe, Statistics in Medicine 25 (2006) 559, method 5.

    Args:
        labels: (B,) 0 or 1.
        scores: (B,) any real numbers; only their order matters.

    Raises:
        MetricError: empty, of different lengths, labels not 0 or 1, NaN scores.
    """
    is_positive, values = as_labels(labels), as_scores(scores)
    require_same_rows(labels=is_positive, scores=values)
    num_positives = int(is_positive.sum())
    num_negatives = len(is_positive) - num_positives
    if num_positives == 0 or num_negatives == 0:
        nan = float("nan")
        return AucInterval(auc=nan, low=nan, high=nan, method="undefined")
    area, variance = _delong(tie_runs(is_positive, values, np.ones(len(values))))
    if variance > 0:
        half_width = Z_95 * variance**0.5
        low, high = max(0.0, area - half_width), min(1.0, area + half_width)
        return AucInterval(auc=area, low=low, high=high, method="delong")
    low = _newcombe_low(area, num_positives=num_positives, num_negatives=num_negatives)
    # The variance is the same at theta and 1 - theta, so the upper bound mirrors the lower one.
    high = 1.0 - _newcombe_low(1.0 - area, num_positives=num_positives, num_negatives=num_negatives)
    return AucInterval(auc=area, low=low, high=high, method="newcombe")


def _delong(runs: TieRuns) -> tuple[float, float]:
    """Give the AUC and DeLong's variance of it; variance 0 where a class has one row."""
    num_positives, num_negatives = runs.positives.sum(), runs.negatives.sum()
    below = np.cumsum(runs.negatives) - 0.5 * runs.negatives
    above = num_positives - np.cumsum(runs.positives) + 0.5 * runs.positives
    area = runs.positives @ below / num_positives / num_negatives
    if num_positives < 2 or num_negatives < 2:
        return float(area), 0.0
    # Structural components: the share of the other class that one row outranks, or is outranked by.
    of_positives = runs.positives @ (below / num_negatives - area) ** 2 / (num_positives - 1)
    of_negatives = runs.negatives @ (above / num_positives - area) ** 2 / (num_negatives - 1)
    return float(area), float(of_positives / num_positives + of_negatives / num_negatives)


def _newcombe_low(area: float, *, num_positives: int, num_negatives: int) -> float:
    """Solve area - theta = 1.96 * standard error(theta) for theta <= area.

    The standard error is Hanley and McNeil's (Radiology 143 (1982) 29) at theta, with both class sizes
    replaced by their mean in the two covariance terms.
    """
    extra = (num_positives + num_negatives) / 2 - 1
    low, high = 0.0, area
    for _ in range(_BISECTIONS):
        theta = (low + high) / 2
        spread = 1 + extra * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        variance = theta * (1 - theta) * spread / (num_positives * num_negatives)
        if area - theta > Z_95 * variance**0.5:
            low = theta
        else:
            high = theta
    return low
