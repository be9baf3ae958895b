"""Log loss (binary cross-entropy, nats per row) from probabilities or logits.

Pure functions; natural logarithm. Invariant: the result is finite and not negative for every valid input,
because probabilities are clipped away from 0 and 1 and logits never pass through a probability.
"""

import numpy as np
from numpy.typing import ArrayLike

from training.metrics.inputs import (
    BoolArray,
    FloatArray,
    as_labels,
    as_logits,
    as_probabilities,
    as_weights,
    require_same_rows,
)

PROBABILITY_FLOOR = 1e-7
"""Probabilities are clipped to [floor, 1 - floor]; about the step of float32 just below 1."""


def logloss(labels: ArrayLike, probabilities: ArrayLike, *, weights: ArrayLike | None = None) -> float:
    """Compute the mean of -log p(label), p clipped to [1e-7, 1 - 1e-7].

    Args:
        labels: (B,) 0 or 1.
        probabilities: (B,) chance of a click, in [0, 1].
        weights: (B,) not negative, not all 0; None weighs rows equally.

    Returns:
        Nats per row, in [0, 16.12].

    Raises:
        MetricError: empty, of different lengths, labels not 0 or 1, probabilities NaN or outside [0, 1],
            unusable weights.
    """
    is_positive, chances = as_labels(labels), as_probabilities(probabilities)
    require_same_rows(labels=is_positive, probabilities=chances)
    return _weighted_mean(row_losses(is_positive, chances), weights)


def logloss_from_logits(labels: ArrayLike, logits: ArrayLike, *, weights: ArrayLike | None = None) -> float:
    """Compute the mean of log(1 + exp(-z)) for clicks and log(1 + exp(z)) for the rest, unclipped.

    Args:
        labels: (B,) 0 or 1.
        logits: (B,) finite log-odds of a click; any size, nothing overflows.
        weights: (B,) not negative, not all 0; None weighs rows equally.

    Returns:
        Nats per row, not negative.

    Raises:
        MetricError: empty, of different lengths, labels not 0 or 1, logits not finite, unusable weights.
    """
    is_positive, log_odds = as_labels(labels), as_logits(logits)
    require_same_rows(labels=is_positive, logits=log_odds)
    return _weighted_mean(np.logaddexp(0.0, np.where(is_positive, -log_odds, log_odds)), weights)


def row_losses(labels: BoolArray, probabilities: FloatArray) -> FloatArray:
    """Give the log loss (B,) float64 of each row, in nats.

    Args:
        labels: (B,) bool, checked.
        probabilities: (B,) float64 in [0, 1], checked; clipped here.
    """
    clipped = np.clip(probabilities, PROBABILITY_FLOOR, 1.0 - PROBABILITY_FLOOR)
    return -np.log(np.where(labels, clipped, 1.0 - clipped))


def _weighted_mean(losses: FloatArray, weights: ArrayLike | None) -> float:
    if weights is None:
        return float(losses.mean())
    mass = as_weights(weights)
    require_same_rows(labels=losses, weights=mass)
    return float(np.average(losses, weights=mass))
