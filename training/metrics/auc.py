"""Exact ROC AUC, pooled and per group, and GAUC.

Pure functions over arrays of labels and scores. All of them count pairs the same way: sort, cut the
sorted rows into runs of equal score, and let each positive beat the negatives of every lower run and
half of those in its own. Invariant: an AUC depends only on the order of the scores, so it does not change
under a permutation of the rows or a strictly increasing transform; it is nan where one class is missing.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from training.metrics.errors import MetricError
from training.metrics.inputs import (
    BoolArray,
    FloatArray,
    IdArray,
    IntArray,
    as_ids,
    as_labels,
    as_scores,
    as_weights,
    require_same_rows,
)

UserWeighting: TypeAlias = Literal["impressions", "clicks", "uniform"]


@dataclass(frozen=True, eq=False)
class GroupedAuc:
    """AUC of each of G groups, in increasing order of group id."""

    groups: IdArray
    """(G,) distinct group ids, dtype as given."""
    auc: FloatArray
    """(G,) float64 in [0, 1]; nan for a group with one class only."""
    rows: IntArray
    """(G,) int64 rows of the group, at least 1."""
    positives: IntArray
    """(G,) int64 rows of the group with label 1."""


@dataclass(frozen=True, eq=False)
class TieRuns:
    """Label mass of each of T runs of equal score, in increasing order of score."""

    positives: FloatArray
    """(T,) float64 weight of the run's rows with label 1."""
    negatives: FloatArray
    """(T,) float64 weight of the run's rows with label 0."""


def auc(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Compute the ROC AUC: the chance that a positive outranks a negative, ties counting 1/2.

    Args:
        labels: (B,) 0 or 1.
        scores: (B,) any real numbers; only their order matters.
        weights: (B,) not negative; a pair counts by the product of its weights. None weighs rows equally.

    Returns:
        AUC in [0, 1]; nan when one class is missing or carries no weight.

    Raises:
        MetricError: empty, of different lengths, labels not 0 or 1, NaN scores, unusable weights.
    """
    is_positive, values = as_labels(labels), as_scores(scores)
    require_same_rows(labels=is_positive, scores=values)
    mass = np.ones(len(values)) if weights is None else as_weights(weights)
    require_same_rows(labels=is_positive, weights=mass)
    runs = tie_runs(is_positive, values, mass)
    return float(_auc_of_runs(runs, first_runs=np.zeros(1, dtype=np.int64))[0])


def grouped_auc(labels: ArrayLike, scores: ArrayLike, groups: ArrayLike) -> GroupedAuc:
    """Compute the AUC within each group, by one sort and no loop over groups.

    Args:
        labels: (B,) 0 or 1.
        scores: (B,) any real numbers; compared only within a group.
        groups: (B,) integer or string group ids, in any order.

    Returns:
        AUC, rows and positives of each distinct group.

    Raises:
        MetricError: empty, of different lengths, labels not 0 or 1, NaN scores, groups not ids.
    """
    is_positive, values, ids = as_labels(labels), as_scores(scores), as_ids(groups, name="groups")
    require_same_rows(labels=is_positive, scores=values, groups=ids)
    order = np.lexsort((values, ids))
    is_positive, values, ids = is_positive[order], values[order], ids[order]
    new_group = _starts(ids)
    new_run = new_group | _starts(values)
    first_rows = np.flatnonzero(new_group)
    runs = _runs_of_sorted(is_positive, np.ones(len(values)), np.flatnonzero(new_run))
    first_runs = (np.cumsum(new_run) - 1)[first_rows]
    return GroupedAuc(
        groups=ids[first_rows],
        auc=_auc_of_runs(runs, first_runs=first_runs),
        rows=np.diff(np.append(first_rows, len(values))),
        positives=np.add.reduceat(is_positive.astype(np.int64), first_rows),
    )


def gauc(
    labels: ArrayLike, scores: ArrayLike, users: ArrayLike, *, weighting: UserWeighting = "impressions"
) -> float:
    """Compute GAUC: the mean of per-user AUC, users with one class only left out.

    Source: Zhu et al., "Optimized Cost per Click in Taobao Display Advertising", KDD 2017, which weighs a
    user by impressions or clicks; "uniform" is ours, the plain mean over users.

    Args:
        labels: (B,) 0 or 1.
        scores: (B,) any real numbers; compared only within a user.
        users: (B,) integer or string user ids, in any order.
        weighting: What a user's AUC counts by: rows, rows with label 1, or 1.

    Returns:
        GAUC in [0, 1]; nan when no user has both classes.

    Raises:
        MetricError: as `grouped_auc`, with users for groups; or an unknown weighting.
    """
    is_positive, user_ids = as_labels(labels), as_ids(users, name="users")
    require_same_rows(labels=is_positive, users=user_ids)
    per_user = grouped_auc(is_positive, scores, user_ids)
    if weighting == "impressions":
        weights = per_user.rows
    elif weighting == "clicks":
        weights = per_user.positives
    elif weighting == "uniform":
        weights = np.ones_like(per_user.rows)
    else:
        raise MetricError(f"weighting must be 'impressions', 'clicks' or 'uniform', got {weighting!r}")
    return weighted_mean_auc(per_user.auc, weights)


def weighted_mean_auc(values: FloatArray, weights: IntArray) -> float:
    """Average AUC values over the groups where they are defined.

    Args:
        values: (G,) float64 AUC, nan where undefined; those groups drop out with their weight.
        weights: (G,) int64, not negative.

    Returns:
        sum(weight * AUC) / sum(weight) over defined groups; nan when their weights sum to 0.
    """
    defined = ~np.isnan(values)
    total = weights[defined].sum()
    return float(values[defined] @ weights[defined] / total) if total > 0 else float("nan")


def tie_runs(labels: BoolArray, scores: FloatArray, weights: FloatArray) -> TieRuns:
    """Cut rows into runs of equal score.

    Args:
        labels: (B,) bool, checked; B at least 1.
        scores: (B,) float64 without NaN.
        weights: (B,) float64, not negative.
    """
    order = np.argsort(scores)
    return _runs_of_sorted(labels[order], weights[order], np.flatnonzero(_starts(scores[order])))


def _runs_of_sorted(labels: BoolArray, weights: FloatArray, first_rows: IntArray) -> TieRuns:
    positives = np.add.reduceat(np.where(labels, weights, 0.0), first_rows)
    negatives = np.add.reduceat(np.where(labels, 0.0, weights), first_rows)
    return TieRuns(positives=positives, negatives=negatives)


def _auc_of_runs(runs: TieRuns, *, first_runs: IntArray) -> FloatArray:
    """Give the AUC (G,) of each group of consecutive runs; first_runs (G,) is where each begins."""
    below = np.cumsum(runs.negatives) - runs.negatives
    below -= np.repeat(below[first_runs], np.diff(np.append(first_runs, len(below))))
    wins = np.add.reduceat(runs.positives * (below + 0.5 * runs.negatives), first_runs)
    positives = np.add.reduceat(runs.positives, first_runs)
    negatives = np.add.reduceat(runs.negatives, first_runs)
    defined = (positives > 0) & (negatives > 0)
    values = np.full(len(first_runs), np.nan)
    # Unequal weights round: without the clip a perfect order can come out as 1 + 2e-16.
    values[defined] = np.clip(wins[defined] / positives[defined] / negatives[defined], 0.0, 1.0)
    return values


def _starts(ordered: IdArray) -> BoolArray:
    """Mark (B,) the first row of each run of equal values in an ordered array; B at least 1."""
    # Comparison, not a difference: inf - inf is NaN, and strings have no difference.
    return np.concatenate(([True], ordered[1:] != ordered[:-1]))
