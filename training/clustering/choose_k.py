"""How many clusters: a scan over K with its evidence.

Reads MT (and MI, MH) of one lookahead at t = 0; gives one line per K and the choice. Invariant: the choice
is one of the K scanned, never below 3 unless D is.

Rule. A K is stable where K-means finds nearly the same clusters from other treatments: mean adjusted Rand
index between the clusters of MT and those of MT with its rows drawn anew (bootstrap). Among the K whose
stability is within `tolerance` of the best, those whose silhouette on MC is within `tolerance` of the best of
them; of these the lowest K, because every cluster costs a tower and divides the rows. The paper gives no rule
and tests 2 to 5 only; 2 is left out, because depcon cannot see two groups. The gain per
source is evidence for the reader and takes no part: a sum of J favours large S_k.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import (  # type: ignore[import-untyped,unused-ignore]
    adjusted_rand_score,
    silhouette_score,
)

from training.clustering.arrays import FloatArray, IntArray
from training.clustering.causal import CausalDistance, DistanceKind, causal_distance
from training.clustering.errors import DistanceFallbackWarning, RulesError, TreatmentError
from training.clustering.gain import Matrices, source_gain
from training.clustering.kmeans_start import kmeans_clusters, require_clusters
from training.clustering.recluster import all_source_sets
from training.clustering.rules import MIN_CLUSTERS, default_num_clusters
from training.clustering.source_sets import SourceRules


@dataclass(frozen=True)
class KEvidence:
    """What speaks for one K.

    Attributes:
        num_clusters: K.
        stability: Mean adjusted Rand index over the bootstrap, at most 1.
        silhouette: Mean silhouette on MC, in [-1, 1]; nan where K = 1 or K = D.
        mean_gain: Row-weighted mean of J(S_k -> v) / |S_k| over the domains v of T_k.
        smallest: Domains of the smallest cluster.
    """

    num_clusters: int
    stability: float
    silhouette: float
    mean_gain: float
    smallest: int


@dataclass(frozen=True)
class KChoice:
    """The chosen K and the evidence per K scanned, ascending."""

    num_clusters: int
    evidence: tuple[KEvidence, ...]


def default_scan(num_domains: int) -> tuple[int, ...]:
    """K to scan: 3 up to twice the default rule of thumb, 12 values at most, by ratio, below D."""
    low = min(MIN_CLUSTERS, num_domains)
    high = max(low, min(num_domains - 1, max(8, 2 * default_num_clusters(num_domains))))
    return tuple(sorted({int(k) for k in np.geomspace(low, high, 12).round()}))


def choose_num_clusters(
    matrices: Matrices,
    treatments: FloatArray,
    *,
    scan: Sequence[int] | None = None,
    distance: DistanceKind = "depcon",
    rules: SourceRules | None = None,
    num_bootstraps: int = 10,
    tolerance: float = 0.05,
    seed: int = 0,
) -> KChoice:
    """Scan K.

    Args:
        matrices: MI, MH, MC and shares of one update; MC from `treatments` by `distance`.
        treatments: MT (R, D).
        scan: K to try; `default_scan` if None.
        distance: Causal distance; falls back to `signed` as an update does.
        rules: Of Algorithm 1.
        num_bootstraps: Redraws of the treatments.
        tolerance: How far below the best a K may be in stability, and then in silhouette.
        seed: Of bootstrap and K-means.

    Raises:
        RulesError: nothing to scan, a K that D domains cannot have, or no bootstrap.
    """
    num_domains = matrices.num_domains
    tried = default_scan(num_domains) if scan is None else tuple(sorted(set(scan)))
    if not tried or num_bootstraps < 1:
        raise RulesError(f"scan {list(tried)} with {num_bootstraps} bootstraps; each needs at least one")
    for k in tried:
        require_clusters(k, num_domains)
    redrawn = _bootstrap_distances(treatments, distance, num_bootstraps, seed)
    evidence = tuple(_evidence(matrices, redrawn, k, rules=rules or SourceRules(), seed=seed) for k in tried)
    stability = np.array([line.stability for line in evidence])
    stable = np.flatnonzero(stability >= stability.max() - tolerance)
    shape = np.nan_to_num(np.array([evidence[i].silhouette for i in stable]), nan=-1.0)
    good = stable[shape >= shape.max() - tolerance]
    return KChoice(num_clusters=evidence[int(good[0])].num_clusters, evidence=evidence)


def _bootstrap_distances(
    treatments: FloatArray, kind: DistanceKind, count: int, seed: int
) -> list[CausalDistance]:
    """MC of `count` redraws of the treatments; a redraw that tells nothing apart is left out."""
    rng = np.random.default_rng([seed, 1])
    made = []
    for _ in range(count):
        rows = rng.integers(len(treatments), size=len(treatments))
        with warnings.catch_warnings():
            # The caller heard it when MC was made; a redraw adds nothing.
            warnings.simplefilter("ignore", DistanceFallbackWarning)
            try:
                made.append(causal_distance(treatments[rows], kind=kind))
            except TreatmentError:
                continue
    return made


def _evidence(
    matrices: Matrices, redrawn: list[CausalDistance], num_clusters: int, *, rules: SourceRules, seed: int
) -> KEvidence:
    labels = kmeans_clusters(matrices.mc, num_clusters, seed=seed)
    found = [kmeans_clusters(other.mc, num_clusters, seed=seed, num_starts=3) for other in redrawn]
    agreement = [float(adjusted_rand_score(labels, other)) for other in found]
    scored = 1 < num_clusters < matrices.num_domains
    return KEvidence(
        num_clusters=num_clusters,
        stability=float(np.mean(agreement)) if agreement else 0.0,
        silhouette=float(silhouette_score(matrices.mc, labels, metric="precomputed"))
        if scored
        else float("nan"),
        mean_gain=_mean_gain(matrices, labels, num_clusters, rules),
        smallest=int(np.bincount(labels).min()),
    )


def _mean_gain(matrices: Matrices, labels: IntArray, num_clusters: int, rules: SourceRules) -> float:
    sources = all_source_sets(matrices, labels, num_clusters, rules=rules)
    per_source = np.stack([source_gain(matrices, ids, rule=rules.interaction) / len(ids) for ids in sources])
    own = per_source[labels, np.arange(len(labels))]
    weights = matrices.shares if matrices.shares.sum() > 0 else np.ones(len(labels))
    return float(np.average(own, weights=weights))
