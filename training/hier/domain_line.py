"""Calibration of a domain that starts without a click: a line from a prior, refitted as labels come.

p = sigmoid(scale * logit + bias). Invariant: the scale is positive at every stage, so calibration never
reorders items, and fewer labels than a stage asks for leave what the stage before gave.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.engine.platt import Lines, Rows, fit_lines, sigmoid
from training.hier.errors import OnboardError

BIAS_ROWS = 200
LINE_ROWS, LINE_CLICKS = 2000, 50
PRIOR_ROWS = 20.0
"""Rows at the prior click rate that are counted beside the labels, so that no bias is infinite."""
LINE_STRENGTH = 1.0
MIN_SCALE = 1e-3
BISECTIONS = 80
REACH = 60.0

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class DomainLine:
    """The line, and what it was made from: `prior`, `bias` or `line`."""

    scale: float
    bias: float
    stage: str


def line_from_prior(logits: FloatArray, *, scale: float, rate: float) -> DomainLine:
    """The line of a slope whose mean probability over a sample is a click rate.

    Args:
        logits: (n,) of users and items as requests would bring them together; at least one.
        scale: Median slope of the source domains.
        rate: Click rate that is expected, inside (0, 1).

    Raises:
        OnboardError: The rate is not inside (0, 1).
    """
    if not 0.0 < rate < 1.0:
        raise OnboardError(f"the prior click rate is {rate:g}; allowed is what lies between 0 and 1")
    return DomainLine(scale, _bias_for(scale * logits, rate), "prior")


def _bias_for(scaled: FloatArray, rate: float) -> float:
    low, high = -float(scaled.max()) - REACH, -float(scaled.min()) + REACH
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        if float(sigmoid(scaled + middle).mean()) < rate:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def refitted_line(prior: DomainLine, logits: FloatArray, labels: FloatArray) -> DomainLine:
    """The line after n labelled rows: the bias from 200 rows on, the slope too from 2,000 rows and 50 clicks.

    Args:
        prior: What to start from and, weakly, to stay near.
        logits: (n,) under the domain's head.
        labels: (n,) 0 or 1.
    """
    num_rows, clicks = len(labels), float(labels.sum())
    if num_rows < BIAS_ROWS:
        return prior
    if num_rows >= LINE_ROWS and clicks >= LINE_CLICKS:
        centre = Lines(np.array([prior.scale]), np.array([prior.bias]))
        rows = Rows(logits, labels, np.zeros(num_rows, dtype=np.int64))
        found = fit_lines(rows, centre=centre, strength=LINE_STRENGTH, min_slope=MIN_SCALE, start=centre)
        return DomainLine(float(found.slope[0]), float(found.bias[0]), "line")
    expected = float(sigmoid(prior.scale * logits + prior.bias).mean())
    rate = (clicks + PRIOR_ROWS * expected) / (num_rows + PRIOR_ROWS)
    return DomainLine(prior.scale, _bias_for(prior.scale * logits, rate), "bias")
