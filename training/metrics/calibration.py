"""How far predicted click probabilities are from observed clicks.

Pure functions: calibration ratio, reliability curve over bins of equal mass, and the expected calibration
error (ECE) read off that curve. Invariant: rows with equal scores share a bin, so no result depends on the
order of the rows (a stable sort that cuts ties would rate a constant score by the order of its labels).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from training.metrics.inputs import (
    FloatArray,
    IntArray,
    as_labels,
    as_probabilities,
    require_at_least_one,
    require_same_rows,
)

DEFAULT_NUM_BINS = 15


@dataclass(frozen=True, eq=False)
class ReliabilityCurve:
    """Predicted against observed click rate in each of K non-empty bins, in increasing order of score."""

    mean_score: FloatArray
    """(K,) float64 mean predicted probability of the bin's rows."""
    mean_label: FloatArray
    """(K,) float64 share of the bin's rows with label 1."""
    rows: IntArray
    """(K,) int64, at least 1 each."""

    @property
    def ece(self) -> float:
        """Mean over rows of |mean_score - mean_label| of their bin, in [0, 1]."""
        return float(np.abs(self.mean_score - self.mean_label) @ self.rows / self.rows.sum())


def calibration_ratio(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Compute predicted clicks / observed clicks; above 1 the model promises too many.

    Args:
        labels: (B,) 0 or 1.
        probabilities: (B,) chance of a click, in [0, 1].

    Returns:
        The ratio, not negative; nan when no click was observed.

    Raises:
        MetricError: empty, of different lengths, labels not 0 or 1, probabilities NaN or outside [0, 1].
    """
    is_positive, chances = as_labels(labels), as_probabilities(probabilities)
    require_same_rows(labels=is_positive, probabilities=chances)
    observed = int(is_positive.sum())
    return float(chances.sum() / observed) if observed else float("nan")


def reliability_curve(
    labels: ArrayLike, probabilities: ArrayLike, *, num_bins: int = DEFAULT_NUM_BINS
) -> ReliabilityCurve:
    """Average scores and labels over bins that hold about B / num_bins rows each.

    Rows are ranked by score; all rows of one score go to the bin in which the middle of their ranks lies.
    Without ties bin sizes differ by at most one row; with ties, or fewer rows than bins, some bins may be
    empty and are left out.

    Args:
        labels: (B,) 0 or 1.
        probabilities: (B,) chance of a click, in [0, 1].
        num_bins: Bins to aim for, at least 1.

    Raises:
        MetricError: empty, of different lengths, labels not 0 or 1, probabilities NaN or outside [0, 1],
            num_bins below 1.
    """
    is_positive, chances = as_labels(labels), as_probabilities(probabilities)
    require_same_rows(labels=is_positive, probabilities=chances)
    require_at_least_one(num_bins, name="num_bins")
    _, run_of_row, run_rows = np.unique(chances, return_inverse=True, return_counts=True)
    # Twice the middle rank of a run is a whole number, so the bin is found without rounding.
    doubled_middle = 2 * np.cumsum(run_rows) - run_rows
    bin_of_row = (doubled_middle * num_bins // (2 * len(chances)))[run_of_row]
    rows = np.bincount(bin_of_row, minlength=num_bins)
    kept = rows > 0
    score_sums = np.bincount(bin_of_row, weights=chances, minlength=num_bins)[kept]
    label_sums = np.bincount(bin_of_row, weights=is_positive, minlength=num_bins)[kept]
    rows = rows[kept]
    return ReliabilityCurve(mean_score=score_sums / rows, mean_label=label_sums / rows, rows=rows)


def expected_calibration_error(
    labels: ArrayLike, probabilities: ArrayLike, *, num_bins: int = DEFAULT_NUM_BINS
) -> float:
    """Compute the ECE over bins of equal mass: `reliability_curve(...).ece`, in [0, 1].

    Source: Naeini et al., AAAI 2015, with bins of equal mass, not equal width (Nguyen and O'Connor,
    EMNLP 2015), because click probabilities crowd near 0.

    Args:
        labels: (B,) 0 or 1.
        probabilities: (B,) chance of a click, in [0, 1].
        num_bins: Bins to aim for, at least 1.

    Raises:
        MetricError: as `reliability_curve`.
    """
    return reliability_curve(labels, probabilities, num_bins=num_bins).ece
