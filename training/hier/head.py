"""The head of a domain: a logistic regression that starts as the zero-shot score and moves as clicks come.

HIER (arXiv 2405.17132) fine-tunes by domain with the graph frozen; the linear head and its pull are ours.
Its inputs, by column: the score, its two parts, the item's log popularity in the domain, 1, four rates by
counts (`training.hier.rates`), and h_u * x_v entry by entry. Invariant: without rows the head is the one it
starts from, bit for bit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from training.engine.platt import sigmoid
from training.hier.factors import Factors
from training.hier.ragged import IntArray
from training.models.hier import HEAD_COLUMNS, zero_shot_head

DEFAULT_STRENGTH = 100.0
NAMED_SHARE = 0.1
"""Share of the pull on the few named columns, which hold most of what a domain can teach."""
MAX_STEPS = 50
MAX_HALVINGS = 20
TOLERANCE = 1e-8

FloatArray = NDArray[np.float64]


def head_inputs(factors: Factors, users: IntArray, items: IntArray, counted: FloatArray) -> FloatArray:
    """(n, 9 + d) float64 inputs of the head.

    Args:
        factors: U and V.
        users: (n,), -1 where not known.
        items: (n,).
        counted: (n, 5) of `training.hier.rates`.
    """
    left = factors.user_rows(users).astype(np.float64)
    right = factors.items[items].astype(np.float64)
    products = left[:, : factors.width] * right[:, : factors.width]
    inner = products.sum(axis=1)
    path = (left[:, factors.width :] * right[:, factors.width :]).sum(axis=1)
    popularity, rates = counted[:, 0], counted[:, 1:]
    ones = np.ones(len(users))
    return np.column_stack([inner + path, inner, path, popularity, ones, rates, products])


def fit_head(
    inputs: FloatArray,
    labels: NDArray[np.float32],
    *,
    scale: float,
    bias: float,
    strength: float = DEFAULT_STRENGTH,
    start: FloatArray | None = None,
) -> FloatArray:
    """Minimise sum of log loss of sigmoid(scale * inputs . w + bias) + strength / 2 * |r (w - w0)|^2.

    w0 is the start and r the root mean square of each column, so that the pull does not depend on
    the units of a column; on the named columns it is a tenth. With n rows the pull weighs strength / n of a
    row.

    Args:
        inputs: (n, 9 + d) of `head_inputs`.
        labels: (n,) 0 or 1.
        scale: Of the domain's line.
        bias: Of the domain's line.
        strength: Above 0, about in rows' worth of evidence.
        start: (9 + d,) head without rows; None for the score as it is.

    Returns:
        (9 + d,) weights.
    """
    first = np.asarray(zero_shot_head(inputs.shape[1] - len(HEAD_COLUMNS))) if start is None else start
    if not len(labels):
        return first
    size = np.sqrt(np.mean(inputs**2, axis=0))
    pull = strength * np.where(size > 0, size, 1.0) ** 2
    pull[: len(HEAD_COLUMNS)] *= NAMED_SHARE
    return fit_logistic(scale * inputs, labels.astype(np.float64), start=first, pull=pull, bias=bias)


def fit_logistic(
    rows: FloatArray,
    labels: FloatArray,
    *,
    start: FloatArray,
    pull: FloatArray,
    bias: float = 0.0,
    weights: FloatArray | None = None,
) -> FloatArray:
    """Minimise sum of weights * log loss of sigmoid(rows . w + bias) + 1 / 2 * sum of pull * (w - start)^2.

    Args:
        rows: (n, m).
        labels: (n,) 0 or 1.
        start: (m,).
        pull: (m,), above 0.
        bias: Added to every logit.
        weights: (n,) of the rows; None for 1 each.

    Returns:
        (m,) w, by Newton's method with halved steps.
    """
    share = np.ones(len(rows)) if weights is None else weights

    def loss(w: FloatArray) -> float:
        logits = rows @ w + bias
        own = share * (np.logaddexp(0.0, logits) - labels * logits)
        return float(own.sum() + 0.5 * (pull * (w - start) ** 2).sum())

    found, value = start, loss(start)
    for _ in range(MAX_STEPS):
        chance = sigmoid(rows @ found + bias)
        slope = rows.T @ (share * (chance - labels)) + pull * (found - start)
        curve = (rows * (share * chance * (1 - chance))[:, None]).T @ rows + np.diag(pull)
        step = np.linalg.solve(curve, slope)
        if float(slope @ step) < TOLERANCE:
            break
        for halving in range(MAX_HALVINGS):
            trial = found - 0.5**halving * step
            if (reached := loss(trial)) <= value:
                found, value = trial, reached
                break
        else:
            break
    return found
