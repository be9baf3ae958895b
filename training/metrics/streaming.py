"""Log loss, calibration ratio and ECE as sums: batch -> sums, sums -> values.

Sums are one float64 table, a row per score bin and the columns of `SUM_COLUMNS`. Tables of several batches,
windows or workers combine by `+` (or one all-reduce). Invariant: the values of added tables equal the values
of the rows put together. AUC is not here: it has no sums of fixed size.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from training.metrics.calibration import DEFAULT_NUM_BINS
from training.metrics.errors import MetricError
from training.metrics.inputs import (
    FloatArray,
    as_labels,
    as_probabilities,
    require_at_least_one,
    require_same_rows,
)
from training.metrics.loss import row_losses

SUM_COLUMNS = ("rows", "positives", "predicted", "loss")


@dataclass(frozen=True)
class StreamedMetrics:
    """Metrics of all rows behind a table of sums."""

    rows: int
    positives: int
    logloss: float
    """Nats per row."""
    calibration_ratio: float
    """Predicted clicks / observed clicks; nan when none was observed."""
    ece: float
    """Over the fixed bins of the table; differs from the equal-mass ECE as far as the edges do."""


def equal_mass_edges(probabilities: ArrayLike, *, num_bins: int = DEFAULT_NUM_BINS) -> FloatArray:
    """Choose inner bin edges from a first sample, for every later batch and worker to share.

    Args:
        probabilities: (B,) chance of a click, in [0, 1].
        num_bins: Bins to aim for, at least 1; ties give fewer.

    Returns:
        (K - 1,) float64, strictly increasing: the quantiles at 1/num_bins, 2/num_bins, ...

    Raises:
        MetricError: empty, probabilities NaN or outside [0, 1], num_bins below 1.
    """
    chances = as_probabilities(probabilities)
    require_same_rows(probabilities=chances)
    require_at_least_one(num_bins, name="num_bins")
    return np.unique(np.quantile(chances, np.arange(1, num_bins) / num_bins))


def batch_sums(labels: ArrayLike, probabilities: ArrayLike, *, edges: FloatArray) -> FloatArray:
    """Sum one batch into the table.

    Args:
        labels: (B,) 0 or 1.
        probabilities: (B,) chance of a click, in [0, 1].
        edges: (K - 1,) float64 inner edges, strictly increasing; a score on an edge belongs to the upper bin.

    Returns:
        (K, 4) float64, columns as `SUM_COLUMNS`. A worker without rows adds `np.zeros((K, 4))`.

    Raises:
        MetricError: empty, of different lengths, labels not 0 or 1, probabilities NaN or outside [0, 1],
            edges not increasing.
    """
    is_positive, chances = as_labels(labels), as_probabilities(probabilities)
    require_same_rows(labels=is_positive, probabilities=chances)
    if not (np.diff(edges) > 0).all():
        raise MetricError(f"edges must be strictly increasing, got {edges.tolist()}")
    bins = np.digitize(chances, edges)
    columns = (np.ones(len(chances)), is_positive, chances, row_losses(is_positive, chances))
    return np.stack(
        [np.bincount(bins, weights=column, minlength=len(edges) + 1) for column in columns], axis=1
    )


def values_of_sums(sums: FloatArray) -> StreamedMetrics:
    """Turn a table of sums, of one batch or of many added up, into metrics.

    Args:
        sums: (K, 4) float64, columns as `SUM_COLUMNS`.

    Raises:
        MetricError: the table holds no rows.
    """
    rows, positives, predicted, loss = sums.sum(axis=0)
    if rows == 0:
        raise MetricError("sums hold no rows; a metric needs at least one")
    _, bin_positives, bin_predicted, _ = sums.T
    return StreamedMetrics(
        rows=round(rows),
        positives=round(positives),
        logloss=float(loss / rows),
        calibration_ratio=float(predicted / positives) if positives else float("nan"),
        ece=float(np.abs(bin_predicted - bin_positives).sum() / rows),
    )
