"""Algorithm 2: new target clusters around the centres of the old ones, with hysteresis and freeze.

Reads the matrices of an update and the old clusters. Invariants: the result is a partition in which no
cluster is empty, cluster k is carried by a centre of old cluster k so that tower k keeps its meaning, and
there are at most D - K passes. One application per update: repeating it on fixed matrices may cycle.
"""

from dataclasses import dataclass

import numpy as np

from training.clustering.arrays import BoolArray, FloatArray, IntArray, snap
from training.clustering.errors import MatrixError, RulesError
from training.clustering.gain import Matrices, source_gain
from training.clustering.source_sets import SourceRules, most_cohesive, source_set


@dataclass(frozen=True, eq=False)
class Stickiness:
    """What holds a domain in its cluster (re-clustering flips tail domains between towers).

    Attributes:
        margin: A sticky domain moves only if the gain elsewhere beats the gain at home by more than this
            share of the largest absolute gain of that domain; 0 is the paper's algorithm.
        sticky: (D,) domains that the margin holds for.
        frozen: (D,) domains that stay whatever their gains.

    Raises:
        RulesError: a negative or not finite margin.
    """

    margin: float
    sticky: BoolArray
    frozen: BoolArray

    def __post_init__(self) -> None:
        if not (np.isfinite(self.margin) and self.margin >= 0):
            raise RulesError(f"hysteresis margin is {self.margin}; it must be a finite number from 0 up")


@dataclass(frozen=True, eq=False)
class Reclustering:
    """Result of Algorithm 2.

    Attributes:
        labels: (D,) new cluster of each domain.
        centres: (K,) domain that carried each cluster over.
        sources: K arrays of ids, S_k for the new T_k.
        num_passes: Passes over the waiting domains.
    """

    labels: IntArray
    centres: IntArray
    sources: tuple[IntArray, ...]
    num_passes: int


def cluster_members(labels: IntArray, num_clusters: int) -> list[IntArray]:
    """Ids of each cluster in ascending order.

    Raises:
        MatrixError: a label outside 0..K-1, or an empty cluster.
    """
    if labels.min(initial=0) < 0 or labels.max(initial=0) >= num_clusters:
        raise MatrixError(f"labels run from {labels.min()} to {labels.max()}; K is {num_clusters}")
    members = [np.flatnonzero(labels == k).astype(np.int64) for k in range(num_clusters)]
    for k, ids in enumerate(members):
        if len(ids) == 0:
            raise MatrixError(f"cluster {k} has no domain")
    return members


def all_source_sets(
    matrices: Matrices,
    labels: IntArray,
    num_clusters: int,
    *,
    rules: SourceRules,
    bonuses: FloatArray | None = None,
) -> tuple[IntArray, ...]:
    """Algorithm 1 for every cluster.

    Args:
        matrices: Of this update.
        labels: (D,) clusters.
        num_clusters: K.
        rules: Of Algorithm 1.
        bonuses: (K, D) rho_t P(u|k), or None.

    Returns:
        K arrays of ids.
    """
    return tuple(
        source_set(matrices, ids, rules=rules, bonus=None if bonuses is None else bonuses[k])
        for k, ids in enumerate(cluster_members(labels, num_clusters))
    )


def mutual_moves(gains: FloatArray) -> dict[int, int]:
    """Rows that move in one pass: a cluster's best row whose own best cluster is that cluster.

    Args:
        gains: (n, K) J(S_k -> d) of n >= 1 waiting domains.

    Returns:
        row -> cluster, at least one. The cell with the largest gain is always among them, which
        makes re-clustering end; it is put in first, so that progress does not hang on the argument.
    """
    tied = snap(gains)
    best_cluster = tied.argmax(axis=1)
    k = int(tied.max(axis=0).argmax())
    moves = {int(tied[:, k].argmax()): k}
    for k, row in enumerate(tied.argmax(axis=0)):
        if best_cluster[row] == k:
            moves.setdefault(int(row), k)
    return moves


def recluster(
    matrices: Matrices,
    labels: IntArray,
    num_clusters: int,
    *,
    rules: SourceRules,
    bonuses: FloatArray | None = None,
    stickiness: Stickiness | None = None,
) -> Reclustering:
    """Run Algorithm 2 once.

    S_k is computed anew only for clusters that the previous pass changed.

    Args:
        matrices: Of this update.
        labels: (D,) old clusters, none empty.
        num_clusters: K.
        rules: Of Algorithm 1.
        bonuses: (K, D) rho_t P(u|k), or None.
        stickiness: Hysteresis and freeze, or None for the paper's algorithm.

    Raises:
        MatrixError: a label outside 0..K-1, or an empty cluster.
    """
    members = cluster_members(labels, num_clusters)
    centres = np.array([most_cohesive(matrices, ids, 1, rules)[0] for ids in members], dtype=np.int64)
    placed = np.full(matrices.num_domains, -1, dtype=np.int64)
    if stickiness is not None:
        placed[stickiness.frozen] = labels[stickiness.frozen]
    placed[centres] = np.arange(num_clusters)
    sources: list[IntArray] = [centres[:0]] * num_clusters
    gains = np.zeros((matrices.num_domains, num_clusters))
    changed = set(range(num_clusters))
    num_passes = 0
    while True:
        for k in sorted(changed):
            bonus = None if bonuses is None else bonuses[k]
            sources[k] = source_set(matrices, np.flatnonzero(placed == k), rules=rules, bonus=bonus)
            gains[:, k] = source_gain(matrices, sources[k], rule=rules.interaction)
        waiting = np.flatnonzero(placed < 0)
        if len(waiting) == 0:
            return Reclustering(placed, centres, tuple(sources), num_passes)
        held = gains if stickiness is None else _with_home_margin(gains, labels, stickiness)
        moves = mutual_moves(held[waiting])
        for row, k in moves.items():
            placed[waiting[row]] = k
        changed = set(moves.values())
        num_passes += 1


def _with_home_margin(gains: FloatArray, labels: IntArray, stickiness: Stickiness) -> FloatArray:
    """Gains (D, K) with the margin added to each sticky domain's own cluster."""
    held = gains.copy()
    margin = stickiness.margin * np.abs(gains).max(axis=1) * stickiness.sticky
    held[np.arange(len(labels)), labels] += margin
    return held
