"""The head of a domain: a logistic regression that starts as the zero-shot score and moves as clicks come.

HIER (arXiv 2405.17132) fine-tunes by domain with the graph frozen; the linear head and its pull are ours.
Its inputs, by column: the score, its two parts, the item's log popularity in the domain, 1, and h_u * x_v
entry by entry. Invariant: without rows the head is the zero-shot one, bit for bit.
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


def head_inputs(factors: Factors, users: IntArray, items: IntArray, popularity: FloatArray) -> FloatArray:
    """(n, 5 + d) float64 inputs of the head for users (n,), items (n,) and log popularities (n,)."""
    left = factors.user_rows(users).astype(np.float64)
    right = factors.items[items].astype(np.float64)
    products = left[:, : factors.width] * right[:, : factors.width]
    inner = products.sum(axis=1)
    path = (left[:, factors.width :] * right[:, factors.width :]).sum(axis=1)
    return np.column_stack([inner + path, inner, path, popularity, np.ones(len(users)), products])


def popularity_before(items: IntArray, labels: NDArray[np.float32]) -> FloatArray:
    """(n,) log(1 + clicks) of each row's item in the rows before it, which are in time order."""
    order = np.argsort(items, kind="stable")
    clicks = labels[order].astype(np.float64)
    before = np.cumsum(clicks) - clicks
    sorted_items = items[order]
    first = (
        np.concatenate([[True], sorted_items[1:] != sorted_items[:-1]]) if len(items) else np.zeros(0, bool)
    )
    base = np.maximum.accumulate(np.where(first, before, 0.0)) if len(items) else before
    result = np.empty(len(items))
    result[order] = np.log1p(before - base)
    return result


def fit_head(
    inputs: FloatArray,
    labels: NDArray[np.float32],
    *,
    scale: float,
    bias: float,
    strength: float = DEFAULT_STRENGTH,
) -> FloatArray:
    """Minimise sum of log loss of sigmoid(scale * inputs . w + bias) + strength / 2 * |r (w - w0)|^2.

    w0 is the zero-shot head and r the root mean square of each column, so that the pull does not depend on
    the units of a column; on the named columns it is a tenth. With n rows the pull weighs strength / n of a
    row.

    Args:
        inputs: (n, 5 + d) of `head_inputs`.
        labels: (n,) 0 or 1.
        scale: Of the domain's line.
        bias: Of the domain's line.
        strength: Above 0, about in rows' worth of evidence.

    Returns:
        (5 + d,) weights.
    """
    start = np.asarray(zero_shot_head(inputs.shape[1] - len(HEAD_COLUMNS)))
    if not len(labels):
        return start
    size = np.sqrt(np.mean(inputs**2, axis=0))
    pull = strength * np.where(size > 0, size, 1.0) ** 2
    pull[: len(HEAD_COLUMNS)] *= NAMED_SHARE
    rows, wanted = scale * inputs, labels.astype(np.float64)

    def loss(weights: FloatArray) -> float:
        logits = rows @ weights + bias
        own = np.logaddexp(0.0, logits) - wanted * logits
        return float(own.sum() + 0.5 * (pull * (weights - start) ** 2).sum())

    weights, value = start, loss(start)
    for _ in range(MAX_STEPS):
        chance = sigmoid(rows @ weights + bias)
        slope = rows.T @ (chance - wanted) + pull * (weights - start)
        curve = (rows * (chance * (1 - chance))[:, None]).T @ rows + np.diag(pull)
        step = np.linalg.solve(curve, slope)
        if float(slope @ step) < TOLERANCE:
            break
        for halving in range(MAX_HALVINGS):
            trial = weights - 0.5**halving * step
            if (found := loss(trial)) <= value:
                weights, value = trial, found
                break
        else:
            break
    return weights
