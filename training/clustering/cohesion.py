"""Cohesion of a set of domains and the interaction coefficient lambda.

Reads MC (D, D), symmetric with a zero diagonal. Invariant: lambda is in [0, 1] and never NaN. A high c_S
means LESS cohesive. Lambda reacts only to how far v lies from S compared with the members of S among
themselves.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from training.clustering.arrays import FloatArray, IntArray

InteractionRule = Literal["paper", "code"]
"""`paper` is the product's; `code` is the authors' snapshot, kept to compare."""


def interaction(
    size: int, total: ArrayLike, sums: FloatArray, *, rule: InteractionRule = "paper"
) -> FloatArray:
    """Interaction coefficient lambda(v|S) = min(1, |S| s_v / (2 tot)).

    Conventions the paper omits: |S| = 1 gives 0; tot = 0 gives 0.5 where s_v = 0, else 1.

    Args:
        size: |S|, at least 1.
        total: tot(S), a scalar or anything that broadcasts against `sums`.
        sums: s_v(S), any shape.
        rule: `paper`, or `code` for clip((|S| - 1) s_v / (2 (tot - s_v)), 0, 1).

    Returns:
        Lambda in the shape of the broadcast.
    """
    whole = np.asarray(total, dtype=np.float64)
    if size == 1:
        return np.zeros(np.broadcast_shapes(whole.shape, sums.shape))
    if rule == "code":
        rest = whole - sums
        share = np.divide(0.5 * (size - 1) * sums, rest, out=np.zeros(rest.shape), where=rest != 0)
        return np.clip(share, 0.0, 1.0)
    positive = whole > 0
    if positive.all():
        return np.minimum((size / 2) * sums / whole, 1.0)
    ratio = np.divide(
        (size / 2) * sums, whole, out=np.ones(np.broadcast_shapes(whole.shape, sums.shape)), where=positive
    )
    degenerate = np.where(sums > 0, 1.0, 0.5)
    return np.where(positive, np.minimum(ratio, 1.0), degenerate)


@dataclass(frozen=True, eq=False)
class Cohesion:
    """Running sums of a set S, from which everything about it follows.

    Attributes:
        size: |S|.
        total: tot(S), the sum of MC over ordered pairs of S.
        sums: (D,) s_v(S), the sum of MC from S to each domain v, in S or not.
    """

    size: int
    total: float
    sums: FloatArray

    @property
    def coefficient(self) -> float:
        """c_S = tot / |S|^2; higher is less cohesive."""
        return self.total / self.size**2

    def add(self, MC: FloatArray, u: int) -> "Cohesion":
        """S with domain `u`, which must be outside it: O(D)."""
        return Cohesion(self.size + 1, self.total + 2 * float(self.sums[u]), self.sums + MC[u])

    def interactions(self, *, rule: InteractionRule = "paper") -> FloatArray:
        """(D,) lambda(v|S) of every domain."""
        return interaction(self.size, self.total, self.sums, rule=rule)


def cohesion(MC: FloatArray, members: IntArray) -> Cohesion:
    """Sums of the set `members` (n,), n >= 1, of distinct ids."""
    sums = MC[members].sum(axis=0)
    return Cohesion(size=len(members), total=float(sums[members].sum()), sums=sums)


def prior_preference(MC: FloatArray, shares: FloatArray, first_sources: IntArray) -> FloatArray:
    """P(u|k) = (1 - 2 lambda(u|S_k^0)) sqrt(w_u).

    Args:
        MC: (D, D) of this update.
        shares: (D,) w, share of training rows.
        first_sources: (n,) ids of S_k^0, the first source set of the cluster.

    Returns:
        (D,) in [-1, 1].
    """
    preference: FloatArray = (1 - 2 * cohesion(MC, first_sources).interactions()) * np.sqrt(shares)
    return preference
