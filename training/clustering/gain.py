"""Gain J: what training on some domains does for others, blending isolated and joint affinity.

Reads the three matrices of an update. Invariant: every J is finite, because the matrices are checked once.
"""

from dataclasses import dataclass

import numpy as np

from training.clustering.arrays import FloatArray, IntArray, as_finite
from training.clustering.cohesion import InteractionRule, cohesion
from training.clustering.errors import MatrixError


@dataclass(frozen=True, eq=False)
class Matrices:
    """What one update knows, checked.

    Attributes:
        mi: (D, D) isolated affinity, rows sources, columns targets; positive is helpful.
        mh: (D, D) affinity within a set, same orientation.
        mc: (D, D) causal distance.
        shares: (D,) w, training rows per domain; only ratios matter for J, P wants them to sum to 1.

    Raises:
        MatrixError: shapes that do not match, entries not finite, negative distances or shares.
    """

    mi: FloatArray
    mh: FloatArray
    mc: FloatArray
    shares: FloatArray

    def __post_init__(self) -> None:
        num_domains = len(self.shares)
        as_finite("shares", self.shares, (None,))
        for name in ("mi", "mh", "mc"):
            as_finite(name, getattr(self, name), (num_domains, num_domains))
        if (self.shares < 0).any() or (self.mc < 0).any():
            raise MatrixError("shares and mc must not be negative")

    @property
    def num_domains(self) -> int:
        """D."""
        return len(self.shares)


def target_weights(shares: FloatArray, targets: IntArray) -> FloatArray:
    """(|T|,) weights of the targets, sum 1; equal where all shares are 0."""
    chosen = shares[targets]
    total = chosen.sum()
    return chosen / total if total > 0 else np.full(len(targets), 1 / len(targets))


def pair_gains(matrices: Matrices, sources: IntArray, *, rule: InteractionRule = "paper") -> FloatArray:
    """J(u -> v|S) = (1 - lambda(v|S)) MI[u, v] + lambda(v|S) MH[u, v].

    Args:
        matrices: Of this update.
        sources: (n,) ids of S.
        rule: Form of lambda.

    Returns:
        (D, D), rows u, columns v.
    """
    blend = cohesion(matrices.mc, sources).interactions(rule=rule)
    return (1 - blend) * matrices.mi + blend * matrices.mh


def source_gain(matrices: Matrices, sources: IntArray, *, rule: InteractionRule = "paper") -> FloatArray:
    """J(S -> v) = sum over u in S of J(u -> v|S), self term included: (D,)."""
    blend = cohesion(matrices.mc, sources).interactions(rule=rule)
    isolated = matrices.mi[sources].sum(axis=0)
    joint = matrices.mh[sources].sum(axis=0)
    gain: FloatArray = (1 - blend) * isolated + blend * joint
    return gain
