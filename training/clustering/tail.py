"""Domains with too few rows: left out of the matrices, attached to a cluster afterwards.

Invariant: every domain left out gets exactly one cluster, and its rows never move a matrix entry.
"""

import numpy as np

from training.clustering.arrays import FloatArray, IntArray, as_finite, first_max
from training.clustering.errors import RulesError

MIN_TRAIN_ROWS = 500
MIN_EVAL_ROWS = 100


def eligible_domains(
    train_rows: IntArray,
    eval_rows: IntArray,
    *,
    min_train_rows: int = MIN_TRAIN_ROWS,
    min_eval_rows: int = MIN_EVAL_ROWS,
) -> IntArray:
    """Ids of the domains with enough rows to be measured.

    Args:
        train_rows: (D,) rows for steps.
        eval_rows: (D,) rows for losses.
        min_train_rows: Fewest rows for steps.
        min_eval_rows: Fewest rows for losses.

    Returns:
        (n,) ascending ids.

    Raises:
        RulesError: no domain has enough.
    """
    ids = np.flatnonzero((train_rows >= min_train_rows) & (eval_rows >= min_eval_rows))
    if len(ids) == 0:
        raise RulesError(
            f"no domain has {min_train_rows} training and {min_eval_rows} evaluation rows; lower the minimum"
        )
    return ids.astype(np.int64)


def attach(
    gain_towards: FloatArray | None, sources: tuple[IntArray, ...], *, default_cluster: int, num_left_out: int
) -> IntArray:
    """Cluster of each left-out domain: best mean gain over S_k towards it, ties by lowest cluster.

    Args:
        gain_towards: (n, m) MI rows of the n measured domains towards the m left out; None where it was not
            measured.
        sources: K arrays of measured ids, S_k.
        default_cluster: Cluster of all of them where nothing was measured.
        num_left_out: m.

    Returns:
        (m,) clusters.

    Raises:
        MatrixError: `gain_towards` has another shape or is not finite.
        RulesError: `default_cluster` is not one of the K clusters.
    """
    if not 0 <= default_cluster < len(sources):
        raise RulesError(f"default cluster {default_cluster}; there are {len(sources)} clusters")
    if gain_towards is None:
        return np.full(num_left_out, default_cluster, dtype=np.int64)
    gains = as_finite("gain_towards", gain_towards, (None, num_left_out))
    means = np.stack([gains[ids].mean(axis=0) for ids in sources])
    return np.array([first_max(column) for column in means.T], dtype=np.int64)
