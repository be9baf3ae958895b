"""Algorithm 1: the source set S_k that trains a given cluster T_k (spec A6).

Reads the matrices of an update and T_k. Invariant: S holds its seeds, so it is never empty; it need not
hold all of T_k. Sums s_v and tot are kept while S grows, so one round scores all candidates in one (D x
|T|) array.
"""

from dataclasses import dataclass

import numpy as np

from training.clustering.arrays import TIE, FloatArray, IntArray, snap
from training.clustering.cohesion import InteractionRule, cohesion, interaction
from training.clustering.errors import RulesError
from training.clustering.gain import Matrices, target_weights

_COMPACT_BELOW = 0.75
"""Candidate arrays are copied smaller when this share of their rows is still in play."""


@dataclass(frozen=True)
class SourceRules:
    """How Algorithm 1 chooses.

    Attributes:
        num_seeds: N, most cohesive members of T that S starts with.
        min_gain: Smallest score that still adds a domain; the paper's is 0, added on equality.
        interaction: Form of lambda.

    Raises:
        RulesError: `num_seeds` below 1 or `min_gain` not finite.
    """

    num_seeds: int = 2
    min_gain: float = 0.0
    interaction: InteractionRule = "paper"

    def __post_init__(self) -> None:
        if self.num_seeds < 1:
            raise RulesError(f"num_seeds is {self.num_seeds}; it must be at least 1")
        if not np.isfinite(self.min_gain):
            raise RulesError(f"min_gain is {self.min_gain}; it must be a finite number")


def most_cohesive(matrices: Matrices, members: IntArray, count: int, rules: SourceRules) -> IntArray:
    """The `count` members of a set with the smallest lambda given that set, ties by lowest id.

    Args:
        matrices: Of this update.
        members: (n,) distinct ids.
        count: How many at most.
        rules: Form of lambda.

    Returns:
        (min(count, n),) ids, most cohesive first.
    """
    ordered = np.sort(members)
    blend = cohesion(matrices.mc, ordered).interactions(rule=rules.interaction)[ordered]
    chosen: IntArray = ordered[np.argsort(snap(blend), kind="stable")[:count]]
    return chosen


def source_set(
    matrices: Matrices, targets: IntArray, *, rules: SourceRules, bonus: FloatArray | None = None
) -> IntArray:
    """S = F(T): grow from the seeds while the best candidate's gain is at least `min_gain`.

    Args:
        matrices: Of this update.
        targets: (|T|,) ids of T, at least one.
        rules: Seeds, stop and form of lambda.
        bonus: (D,) rho_t P(u|k) added to each candidate's score; None at t = 0.

    Returns:
        (|S|,) ids in the order in which they entered.

    Raises:
        RulesError: T is empty.
    """
    if len(targets) == 0:
        raise RulesError("T is empty; a source set needs at least one target domain")
    seeds = most_cohesive(matrices, targets, rules.num_seeds, rules)
    grown = cohesion(matrices.mc, seeds)
    chosen = [int(u) for u in seeds]
    weights = target_weights(matrices.shares, targets)
    left = np.setdiff1d(np.arange(matrices.num_domains), seeds)
    known = (matrices.mi[:, targets] @ weights)[left]
    if bonus is not None:
        known = known + bonus[left]
    contrast = ((matrices.mh[:, targets] - matrices.mi[:, targets]) * weights)[left]
    distance = matrices.mc[:, targets][left]
    tie = TIE * float(np.abs(known).max(initial=0.0) + np.abs(contrast).sum(axis=1).max(initial=0.0))
    num_left = len(left)
    while num_left > 0:
        blend = interaction(
            grown.size + 1,
            (grown.total + 2 * grown.sums[left])[:, None],
            distance + grown.sums[targets],
            rule=rules.interaction,
        )
        scores = known + np.einsum("ut,ut->u", blend, contrast)
        highest = scores.max()
        if highest < rules.min_gain:
            break
        best = int((scores >= highest - tie).argmax())
        chosen.append(int(left[best]))
        grown = grown.add(matrices.mc, chosen[-1])
        # A domain that entered stays as a dead row until enough rows are dead to be worth a copy.
        known[best] = -np.inf
        num_left -= 1
        if num_left < _COMPACT_BELOW * len(left):
            alive = known > -np.inf
            left, known, contrast, distance = left[alive], known[alive], contrast[alive], distance[alive]
    return np.asarray(chosen, dtype=np.int64)
