"""What a lookahead costs against the training between two updates, and which mode that allows.

Pure arithmetic. Unit: one multiply-add counted as 2 operations; one row through a ranker of P numbers is
2 P, forward and backward together 6 P; two measured factors turn operations into time relative to training.
Reading rows and validation are not counted on either side.

Letters: D domains, n different sets of a plan, P dense parameters, I embedded width, B and E all train and
evaluation rows of one lookahead.
"""

import math
from dataclasses import dataclass
from typing import Literal

from training.clustering.errors import RulesError

LookaheadMode = Literal["auto", "exact", "first_order", "literal"]
MeasuringMode = Literal["exact", "first_order", "literal"]

FORWARD_FACTOR = 0.5
"""Time per operation of a row under vmap against one in training, which also pays dropout, small batched
products backward and both optimisers. Measured by `lookahead_bench` on one core: 0.45."""

GRADIENT_FACTOR = 1.5
"""The same of a domain's gradient: small batches. Measured: 1.2 to 1.6."""

RECLUSTER_FACTOR = 1_500.0
"""Kernel and re-clustering, in operations of training per D^3. Measured at D = 300: 2.8 s, where training
does 14 billion operations a second."""


@dataclass(frozen=True)
class LookaheadSize:
    """What the estimate reads.

    Attributes:
        num_domains: D.
        num_sets: n.
        train_rows: B.
        eval_rows: E.
        num_dense: P.
        width: I.
        interval_rows: Rows trained on between two updates.
    """

    num_domains: int
    num_sets: int
    train_rows: int
    eval_rows: int
    num_dense: int
    width: int
    interval_rows: int


@dataclass(frozen=True)
class CostEstimate:
    """Estimated operations, and the choice made of them.

    Attributes:
        mode: What was chosen.
        reason: Why, for the log.
        exact: Operations of mode exact.
        first_order: Operations of mode first_order.
        interval: Operations of the training between two updates.
    """

    mode: MeasuringMode
    reason: str
    exact: float
    first_order: float
    interval: float

    def interval_rows_for(self, size: LookaheadSize, max_share: float) -> int:
        """Rows to train on between updates for the chosen mode to cost `max_share` of it; not for literal."""
        cost = self.exact if self.mode == "exact" else self.first_order
        return math.ceil(cost / (max_share * 6.0 * size.num_dense))

    @property
    def exact_share(self) -> float:
        """Of the training between two updates."""
        return self.exact / self.interval

    @property
    def first_order_share(self) -> float:
        """Of the training between two updates."""
        return self.first_order / self.interval


def estimate_cost(size: LookaheadSize, *, mode: LookaheadMode, max_share: float) -> CostEstimate:
    """Estimate both modes and choose.

    `auto` takes exact where its share is at most `max_share`, else first_order; where that is too dear as
    well, the reason says so, and fewer rows or a longer interval is the remedy.

    Args:
        size: Of the lookahead and the interval.
        mode: What was asked for; anything but `auto` is taken as it is.
        max_share: Share of the training between two updates that a lookahead may cost.

    Raises:
        RulesError: no rows between updates, or a share that is not positive.
    """
    if size.interval_rows < 1 or not max_share > 0:
        raise RulesError(
            f"{size.interval_rows} rows between updates and a share of {max_share}; both must be above 0"
        )
    D, P, width = size.num_domains, size.num_dense, size.width
    gradients = GRADIENT_FACTOR * 6.0 * P * size.train_rows
    per_row = FORWARD_FACTOR * 2.0 * P + 2.0 * D * width
    lookups = 4.0 * D * width * size.eval_rows
    common = gradients + RECLUSTER_FACTOR * D**3
    exact = common + size.num_sets * (per_row * size.eval_rows + 2.0 * D * P) + lookups
    first_order = common + GRADIENT_FACTOR * 6.0 * P * size.eval_rows + 2.0 * D * D * P
    interval = 6.0 * P * size.interval_rows
    shares = f"exact {exact / interval:.1%}, first_order {first_order / interval:.1%} of an interval"
    if mode != "auto":
        return CostEstimate(mode, f"{mode} as set; {shares}", exact, first_order, interval)
    if exact <= max_share * interval:
        return CostEstimate(
            "exact", f"{shares}: exact is within {max_share:.1%}", exact, first_order, interval
        )
    fits = "within" if first_order <= max_share * interval else "still above"
    reason = f"{shares}: first_order, which is {fits} {max_share:.1%}"
    return CostEstimate("first_order", reason, exact, first_order, interval)
