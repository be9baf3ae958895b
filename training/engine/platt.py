"""Penalised logistic regression of clicks on one logit, for all domains at once.

eta = slope_d * z + bias_d over rows of domain d, z the standardised logit. Pure numpy, float64; every sum
over a domain's rows is one `bincount`, every Newton step solves D systems of 2 x 2 in closed form.
Invariant: the returned lines minimise their penalised loss under slope >= min_slope, which keeps the order of
scores inside a domain.
"""

from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]

_MAX_STEPS = 60
_MAX_HALVINGS = 30
_TOLERANCE = 1e-10


class Lines(NamedTuple):
    """One line per domain on the standardised logit: (D,) float64 each."""

    slope: FloatArray
    bias: FloatArray


class Rows(NamedTuple):
    """The rows to fit, grouped by domain.

    Shapes: n rows, D domains. logit (n,) float64 standardised; label (n,) float64 0 or 1; group (n,) int64 in
    [0, D).
    """

    logit: FloatArray
    label: FloatArray
    group: IntArray


def sigmoid(logits: FloatArray) -> FloatArray:
    """1 / (1 + exp(-x)) without overflow; same shape."""
    half: FloatArray = 0.5 * (1.0 + np.tanh(0.5 * logits))
    return half


def row_losses(rows: Rows, lines: Lines) -> FloatArray:
    """Log loss (n,) in nats of each row under its domain's line."""
    eta = lines.slope[rows.group] * rows.logit + lines.bias[rows.group]
    return np.logaddexp(0.0, eta) - rows.label * eta


def fit_lines(rows: Rows, *, centre: Lines, strength: float, min_slope: float, start: Lines) -> Lines:
    """Minimise, for each domain, sum of log loss + strength / 2 * |(slope, bias) - centre|^2.

    Newton with step halving; domains are independent, so each has its own step. A domain whose slope ends
    below `min_slope` is solved again with the slope held there: the problem is convex, so that is its
    constrained minimum.

    Args:
        rows: What to fit.
        centre: (D,) where the penalty pulls to.
        strength: Above 0; a domain without rows lands on its centre.
        min_slope: Smallest slope allowed.
        start: (D,) where the search begins.
    """
    free = _newton(
        rows, centre=centre, strength=strength, start=start, hold_slope=np.zeros(0, dtype=np.bool_)
    )
    low = free.slope < min_slope
    if not low.any():
        return free
    held = Lines(np.where(low, min_slope, free.slope), free.bias)
    return _newton(rows, centre=centre, strength=strength, start=held, hold_slope=low)


def _newton(
    rows: Rows, *, centre: Lines, strength: float, start: Lines, hold_slope: NDArray[np.bool_]
) -> Lines:
    slope, bias = start.slope.copy(), start.bias.copy()
    held = hold_slope if hold_slope.size else np.zeros(len(slope), dtype=np.bool_)
    loss = _objective(rows, Lines(slope, bias), centre, strength)
    for _ in range(_MAX_STEPS):
        step_slope, step_bias, decrement = _direction(rows, Lines(slope, bias), centre, strength, held)
        if decrement.max(initial=0.0) < _TOLERANCE:
            break
        size = np.ones(len(slope))
        for _ in range(_MAX_HALVINGS):
            trial = Lines(slope - size * step_slope, bias - size * step_bias)
            trial_loss = _objective(rows, trial, centre, strength)
            # The slack covers rounding of the sum, of the order of 1e-16 per unit of loss.
            worse = trial_loss > loss + 1e-12 * (1.0 + np.abs(loss))
            if not worse.any():
                break
            size = np.where(worse, 0.5 * size, size)
        slope, bias, loss = trial.slope, trial.bias, trial_loss
    return Lines(slope, bias)


def _objective(rows: Rows, lines: Lines, centre: Lines, strength: float) -> FloatArray:
    """Penalised loss (D,) of each domain."""
    data = np.bincount(rows.group, weights=row_losses(rows, lines), minlength=len(lines.slope))
    pull = (lines.slope - centre.slope) ** 2 + (lines.bias - centre.bias) ** 2
    total: FloatArray = data + 0.5 * strength * pull
    return total


def _direction(
    rows: Rows, lines: Lines, centre: Lines, strength: float, held: NDArray[np.bool_]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Newton step in slope and bias, and its decrement (twice the expected gain), (D,) each."""
    num = len(lines.slope)
    chance = sigmoid(lines.slope[rows.group] * rows.logit + lines.bias[rows.group])
    curve = chance * (1.0 - chance)
    residual = chance - rows.label

    def total(values: FloatArray) -> FloatArray:
        return np.bincount(rows.group, weights=values, minlength=num).astype(np.float64, copy=False)

    grad_slope = total(residual * rows.logit) + strength * (lines.slope - centre.slope)
    grad_bias = total(residual) + strength * (lines.bias - centre.bias)
    curved = curve * rows.logit
    h_ss = total(curved * rows.logit) + strength
    h_sb = np.where(held, 0.0, total(curved))
    h_bb = total(curve) + strength
    grad_slope = np.where(held, 0.0, grad_slope)
    determinant = h_ss * h_bb - h_sb**2
    step_slope = (h_bb * grad_slope - h_sb * grad_bias) / determinant
    step_bias = (h_ss * grad_bias - h_sb * grad_slope) / determinant
    decrement: FloatArray = grad_slope * step_slope + grad_bias * step_bias
    return step_slope, step_bias, decrement
