"""Ranking metrics for one positive among candidates: HR@k, NDCG@k and MRR.

Pure functions; scores become ranks once, ranks become metrics. Ranks count from 0 = best.
Invariant: ties are counted against the positive (it comes after every candidate of equal score), so a
constant score earns the worst result, not the best, and a rank is always a whole number.
"""

import numpy as np
from numpy.typing import ArrayLike

from training.metrics.errors import MetricError
from training.metrics.inputs import FloatArray, IntArray, as_indices, require_at_least_one, require_same_rows


def ranks_of_positive(scores: ArrayLike, positive_index: ArrayLike) -> IntArray:
    """Rank the positive of each row among the row's N candidates.

    Args:
        scores: (B, N) any real numbers, higher is better; -inf leaves a candidate out of the ranking.
        positive_index: (B,) integer column of the positive, or one integer for all rows.

    Returns:
        (B,) int64 in [0, N): how many other candidates score at least as high as the positive.

    Raises:
        MetricError: scores not (B, N) or not numeric, NaN, no rows, different numbers of rows, or an index
            outside [0, N).
    """
    values = _as_score_table(scores)
    num_rows, num_candidates = values.shape
    index = np.asarray(positive_index)
    if index.ndim == 0:
        index = np.full(num_rows, index)
    columns = as_indices(index, size=num_candidates, name="positive_index")
    require_same_rows(scores=values, positive_index=columns)
    own = np.take_along_axis(values, columns[:, None], axis=1)
    at_least: IntArray = np.count_nonzero(values >= own, axis=1)
    return at_least - 1


def hit_rate_at_k(ranks: ArrayLike, k: int) -> float:
    """Compute HR@k: the share of rows whose positive is among the first k.

    Args:
        ranks: (B,) integers from 0.
        k: At least 1.

    Raises:
        MetricError: no ranks, a rank that is not an integer or below 0, k below 1.
    """
    checked = _as_ranks(ranks)
    require_at_least_one(k, name="k")
    return float((checked < k).mean())


def ndcg_at_k(ranks: ArrayLike, k: int) -> float:
    """Compute NDCG@k with a single positive: mean of 1 / log2(rank + 2), 0 from rank k on.

    The ideal DCG is 1, as the only positive would be first.

    Args:
        ranks: (B,) integers from 0.
        k: At least 1.

    Raises:
        MetricError: no ranks, a rank that is not an integer or below 0, k below 1.
    """
    checked = _as_ranks(ranks)
    require_at_least_one(k, name="k")
    return float(np.where(checked < k, 1.0 / np.log2(checked + 2), 0.0).mean())


def mrr(ranks: ArrayLike) -> float:
    """Compute the mean reciprocal rank, mean of 1 / (rank + 1), not cut at any k.

    Args:
        ranks: (B,) integers from 0.

    Raises:
        MetricError: no ranks, or a rank that is not an integer or below 0.
    """
    return float((1.0 / (_as_ranks(ranks) + 1)).mean())


def _as_score_table(scores: ArrayLike) -> FloatArray:
    table = np.asarray(scores)
    if table.ndim != 2:
        raise MetricError(f"scores must have shape (rows, candidates), got {table.shape}")
    if table.dtype.kind not in "fiub":
        raise MetricError(f"scores must be numeric, got dtype {table.dtype}")
    values = table.astype(np.float64)
    if np.isnan(values).any():
        row, column = np.argwhere(np.isnan(values))[0]
        raise MetricError(f"scores must not be NaN, got nan at row {row}, candidate {column}")
    return values


def _as_ranks(ranks: ArrayLike) -> IntArray:
    checked = as_indices(ranks, size=np.iinfo(np.int64).max, name="ranks")
    require_same_rows(ranks=checked)
    return checked
