"""Algorithm 1: the source set S_k that trains a given cluster T_k.

Reads the matrices of an update and T_k. Invariant: S holds its seeds, so it is never empty; it need not
hold all of T_k. Sums s_v and tot are kept while S grows, so one round scores all candidates in one (D x
|T|) array.
"""

from dataclasses import dataclass

import numpy as np

from training.clustering.arrays import TIE, FloatArray, IntArray, snap
from training.clustering.cohesion import Cohesion, InteractionRule, cohesion, interaction
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


class _Candidates:
    """Domains outside S and what their scores need; built for one T, shrinks as S grows.

    Attributes:
        ids: (n,) domains; one that entered S stays as a dead row until enough rows are dead to be worth a
            copy.
        known: (n,) the part of the score that lambda does not touch; -inf for a dead row.
        contrast: (n, |T|) w_v (MH - MI).
        distance: (n, |T|) MC.
        moment: (n,) row sums of contrast * distance.
        reach: (n,) largest distance of the row.
    """

    def __init__(
        self, matrices: Matrices, targets: IntArray, seeds: IntArray, bonus: FloatArray | None
    ) -> None:
        weights = target_weights(matrices.shares, targets)
        self.targets = targets
        self.ids = np.setdiff1d(np.arange(matrices.num_domains), seeds)
        isolated = matrices.mi[np.ix_(self.ids, targets)]
        self.known = isolated @ weights + (0.0 if bonus is None else bonus[self.ids])
        self.contrast = (matrices.mh[np.ix_(self.ids, targets)] - isolated) * weights
        self.distance = matrices.mc[np.ix_(self.ids, targets)]
        self.moment = (self.contrast * self.distance).sum(axis=1)
        self.reach = self.distance.max(axis=1, initial=0.0)
        self.num_left = len(self.ids)
        spread = np.abs(self.contrast).sum(axis=1).max(initial=0.0)
        self.tie = TIE * float(np.abs(self.known).max(initial=0.0) + spread)

    def scores(self, grown: Cohesion, rule: InteractionRule) -> FloatArray:
        """(n,) J(u -> T | S + {u}) plus bonus.

        Where no lambda can reach 1, the score is linear in the sums of S: one matrix-vector product.
        """
        totals = grown.total + 2 * grown.sums[self.ids]
        sums = grown.sums[self.targets]
        if rule == "paper" and totals.min() > 0:
            scale = (grown.size + 1) / 2 / totals
            if (scale * (self.reach + sums.max())).max() <= 1:
                linear: FloatArray = self.known + scale * (self.moment + self.contrast @ sums)
                return linear
        blend = interaction(grown.size + 1, totals[:, None], self.distance + sums, rule=rule)
        scores: FloatArray = self.known + np.einsum("ut,ut->u", blend, self.contrast)
        return scores

    def take(self, row: int) -> int:
        """Domain of a row, which is dead from now on."""
        taken = int(self.ids[row])
        self.known[row] = -np.inf
        self.num_left -= 1
        if self.num_left < _COMPACT_BELOW * len(self.ids):
            alive = self.known > -np.inf
            for name in ("ids", "known", "contrast", "distance", "moment", "reach"):
                setattr(self, name, getattr(self, name)[alive])
        return taken


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
    candidates = _Candidates(matrices, targets, seeds, bonus)
    while candidates.num_left > 0:
        scores = candidates.scores(grown, rules.interaction)
        highest = scores.max()
        if highest < rules.min_gain:
            break
        chosen.append(candidates.take(int((scores >= highest - candidates.tie).argmax())))
        grown = grown.add(matrices.mc, chosen[-1])
    return np.asarray(chosen, dtype=np.int64)
