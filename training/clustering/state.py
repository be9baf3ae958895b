"""The state of CDC between updates, and one update.

    state = start(shares, rules)
    plan = state.plan()                        # what the lookahead must step on
    state = update(state, plan, delivered)     # delivered by the lookahead: losses or a gradient Gram matrix

Invariants: states are values, never changed; T is a partition with no empty cluster; no S_k is empty. A
plan depends on the seed and the number of attempts alone, so a run that goes on from a saved state
(`archive.py`) is exact.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from training.clustering.affinity import (
    LookaheadGram,
    LookaheadLosses,
    LookaheadPlan,
    affinities,
    loss_floor,
    smoothed,
)
from training.clustering.arrays import FloatArray, IntArray, as_finite
from training.clustering.causal import DistanceKind, causal_distance
from training.clustering.cohesion import prior_preference
from training.clustering.errors import MatrixError, StateError, TreatmentError
from training.clustering.gain import Matrices
from training.clustering.kmeans_start import kmeans_clusters, require_clusters
from training.clustering.recluster import Stickiness, all_source_sets, cluster_members, recluster
from training.clustering.rules import CdcRules
from training.clustering.source_sets import most_cohesive
from training.clustering.treatments import default_count, sample_treatments


@dataclass(frozen=True)
class UpdateRecord:
    """What one update did, for the log and the report.

    Attributes:
        t: Updates done before it.
        skipped: Why nothing changed, or "".
        moved: Ids that changed cluster, ascending; empty at t = 0.
        churn_ratio: Share of domains that moved.
        churn_rows_ratio: Share of training rows that moved with them.
        distance: Distance that was used.
        fell_back: Whether `signed` stood in.
        clipped_ratio: Share of off-diagonal kappa clipped.
        num_dropped: Treatments that told nothing apart.
        prior: rho_t.
        num_passes: Passes of Algorithm 2; 0 at t = 0.
        cluster_sizes: |T_k| per cluster.
        source_sizes: |S_k| per cluster.
    """

    t: int
    skipped: str = ""
    moved: tuple[int, ...] = ()
    churn_ratio: float = 0.0
    churn_rows_ratio: float = 0.0
    distance: DistanceKind | None = None
    fell_back: bool = False
    clipped_ratio: float = 0.0
    num_dropped: int = 0
    prior: float = 0.0
    num_passes: int = 0
    cluster_sizes: tuple[int, ...] = ()
    source_sizes: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Clusters:
    """Result of the latest update.

    Attributes:
        labels: (D,) cluster of each domain: T.
        sources: K arrays of ids: S_k.
        first_sources: K arrays of ids: S_k^0, from t = 0.
        centres: (K,) most cohesive domain of each new T_k, by this update's MC.
        last_moved: (D,) t of the update in which the domain last changed cluster, -1 for never.
        mi: (D, D) smoothed.
        mh: (D, D) smoothed.
        mt: (R, D) of this update.
        mc: (D, D) of this update.
    """

    labels: IntArray
    sources: tuple[IntArray, ...]
    first_sources: tuple[IntArray, ...]
    centres: IntArray
    last_moved: IntArray
    mi: FloatArray
    mh: FloatArray
    mt: FloatArray
    mc: FloatArray


@dataclass(frozen=True, eq=False)
class CdcState:
    """Everything an update starts from.

    Attributes:
        rules: Settings.
        shares: (D,) w, share of training rows, sum 1.
        t: Updates done; a skipped one does not count.
        clusters: None before the first update.
        history: One record per attempt.
    """

    rules: CdcRules
    shares: FloatArray
    t: int = 0
    clusters: Clusters | None = None
    history: tuple[UpdateRecord, ...] = ()

    @property
    def num_domains(self) -> int:
        """D."""
        return len(self.shares)

    def require_clusters(self) -> Clusters:
        """Clusters, once there are any.

        Raises:
            StateError: before the first update.
        """
        if self.clusters is None:
            raise StateError("there are no clusters yet; the first update makes them")
        return self.clusters

    def plan(self) -> LookaheadPlan:
        """What the next lookahead steps on: M_u, and fresh treatments."""
        rules = self.rules
        companions = np.ones((self.num_domains, self.num_domains), dtype=bool)
        if self.clusters is not None:
            companions = np.eye(self.num_domains, dtype=bool)
            for u, k in enumerate(self.clusters.labels):
                companions[u, self.clusters.sources[k]] = True
        treatments = sample_treatments(
            np.random.default_rng([rules.seed, len(self.history)]),
            self.shares,
            count=rules.num_treatments or default_count(self.num_domains),
            min_size=rules.min_treatment_size,
            max_size=rules.max_treatment_size,
            draw=rules.treatment_draw,
        )
        return LookaheadPlan(companions=companions, treatments=treatments)


def start(train_rows: ArrayLike, rules: CdcRules) -> CdcState:
    """State before the first update.

    Args:
        train_rows: (D,) training rows per domain, or their shares.
        rules: Settings.

    Raises:
        MatrixError: not (D,), negative or not finite, or all 0.
        RulesError: more clusters than domains.
    """
    rows = as_finite("train_rows", train_rows, (None,))
    if (rows < 0).any() or rows.sum() <= 0:
        raise MatrixError(f"train_rows {rows.tolist()}; they must not be negative nor all 0")
    require_clusters(rules.num_clusters, len(rows))
    return CdcState(rules=rules, shares=rows / rows.sum())


def update(state: CdcState, plan: LookaheadPlan, delivered: LookaheadLosses | LookaheadGram) -> CdcState:
    """One update of T and S: K-means at t = 0, Algorithm 2 later.

    Where fewer than two treatments tell domains apart, everything stays and the record says so.

    Args:
        state: Before.
        plan: What the lookahead stepped on; `state.plan()`.
        delivered: What the lookahead measured.

    Raises:
        MatrixError: measurements that do not fit the plan or are not finite.
    """
    rules = state.rules
    floor = loss_floor(np.asarray(delivered.base, dtype=np.float64), state.shares, rules.floor_ratio)
    measured = affinities(delivered, plan, floor=floor, mh_scale=rules.mh_scale)
    try:
        distance = causal_distance(measured.mt, kind=rules.distance, fallback=rules.fallback)
    except TreatmentError as error:
        return replace(state, history=(*state.history, UpdateRecord(t=state.t, skipped=str(error))))
    old = state.clusters
    matrices = Matrices(
        mi=smoothed(old.mi if old else None, measured.mi, rules.history_weight),
        mh=smoothed(old.mh if old else None, measured.mh, rules.history_weight),
        mc=distance.mc,
        shares=state.shares,
    )
    labels, sources, record = _first(state, matrices) if old is None else _later(state, old, matrices)
    last_moved = old.last_moved.copy() if old else np.full(state.num_domains, -1, dtype=np.int64)
    last_moved[list(record.moved)] = state.t
    made = Clusters(
        labels=labels,
        sources=sources,
        first_sources=old.first_sources if old else sources,
        centres=_centres(rules, labels, matrices),
        last_moved=last_moved,
        mi=matrices.mi,
        mh=matrices.mh,
        mt=measured.mt,
        mc=matrices.mc,
    )
    record = replace(
        record,
        distance=distance.kind,
        fell_back=distance.fell_back,
        clipped_ratio=distance.clipped_ratio,
        num_dropped=distance.num_dropped,
        cluster_sizes=tuple(np.bincount(labels, minlength=rules.num_clusters).tolist()),
        source_sizes=tuple(len(ids) for ids in sources),
    )
    return replace(state, t=state.t + 1, clusters=made, history=(*state.history, record))


def _first(state: CdcState, matrices: Matrices) -> tuple[IntArray, tuple[IntArray, ...], UpdateRecord]:
    """Labels, source sets and record at t = 0."""
    rules = state.rules
    labels = kmeans_clusters(matrices.mc, rules.num_clusters, seed=rules.seed)
    sources = all_source_sets(matrices, labels, rules.num_clusters, rules=rules.source)
    return labels, sources, UpdateRecord(t=state.t)


def _later(
    state: CdcState, old: Clusters, matrices: Matrices
) -> tuple[IntArray, tuple[IntArray, ...], UpdateRecord]:
    """Labels, source sets and record at t >= 1."""
    rules = state.rules
    prior = rules.prior_at(state.t)
    preferences = [prior_preference(matrices.mc, state.shares, ids) for ids in old.first_sources]
    made = recluster(
        matrices,
        old.labels,
        rules.num_clusters,
        rules=rules.source,
        bonuses=prior * np.stack(preferences),
        stickiness=_stickiness(state, old),
    )
    moved = np.flatnonzero(made.labels != old.labels)
    record = UpdateRecord(
        t=state.t,
        moved=tuple(moved.tolist()),
        churn_ratio=len(moved) / state.num_domains,
        churn_rows_ratio=float(state.shares[moved].sum()),
        prior=prior,
        num_passes=made.num_passes,
    )
    return made.labels, made.sources, record


def _centres(rules: CdcRules, labels: IntArray, matrices: Matrices) -> IntArray:
    members = cluster_members(labels, rules.num_clusters)
    return np.array([most_cohesive(matrices, ids, 1, rules.source)[0] for ids in members], dtype=np.int64)


def _stickiness(state: CdcState, old: Clusters) -> Stickiness | None:
    rules = state.rules
    if rules.hysteresis == 0 and rules.freeze_updates == 0:
        return None
    tail = state.shares <= rules.tail_share
    moved_lately = (old.last_moved >= 0) & (state.t - old.last_moved <= rules.freeze_updates)
    return Stickiness(margin=rules.hysteresis, sticky=tail, frozen=tail & moved_lately)
