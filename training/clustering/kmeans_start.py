"""The first clusters: K-means on the rows of MC.

Reads MC; gives a label per domain. Invariant: exactly K non-empty clusters, numbered by their lowest domain
id.
"""

import warnings

import numpy as np

from training.clustering.arrays import FloatArray, IntArray, first_max
from training.clustering.errors import RulesError


def require_clusters(num_clusters: int, num_domains: int) -> None:
    """Refuse a K that cannot partition D domains.

    Raises:
        RulesError: K below 1 or above D.
    """
    if not 1 <= num_clusters <= num_domains:
        raise RulesError(
            f"K is {num_clusters}; with {num_domains} domains it must be from 1 to {num_domains}"
        )


def kmeans_clusters(MC: FloatArray, num_clusters: int, *, seed: int = 0, num_starts: int = 10) -> IntArray:
    """K-means on the rows of MC as points: k-means++, fixed seed, best of `num_starts`.

    Args:
        MC: (D, D).
        num_clusters: K.
        seed: Of the starts.
        num_starts: Restarts; the paper's code passes 10.

    Returns:
        (D,) labels 0..K-1, all in use, numbered in order of the lowest domain id.

    Raises:
        RulesError: K below 1 or above D.
    """
    # Imported here: it costs two seconds, and every export and report reaches this file.
    from sklearn.cluster import KMeans  # type: ignore[import-untyped,unused-ignore]
    from sklearn.exceptions import ConvergenceWarning  # type: ignore[import-untyped,unused-ignore]

    require_clusters(num_clusters, len(MC))
    model = KMeans(num_clusters, init="k-means++", n_init=num_starts, random_state=seed)
    with warnings.catch_warnings():
        # Fewer distinct rows than K: `fill_empty` below is the answer to it.
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels = model.fit_predict(MC)
    return numbered_by_first(fill_empty(MC, labels.astype(np.int64), num_clusters))


def fill_empty(points: FloatArray, labels: IntArray, num_clusters: int) -> IntArray:
    """Move into each empty cluster the row farthest from its centroid, ties by lowest id.

    A row that is alone in its cluster stays. Centroids are taken anew after each move.

    Args:
        points: (D, n) rows that were clustered.
        labels: (D,) in 0..K-1.
        num_clusters: K, at most D.

    Returns:
        (D,) labels with no cluster empty.
    """
    filled = labels.copy()
    for k in range(num_clusters):
        if (filled == k).any():
            continue
        counts = np.bincount(filled, minlength=num_clusters)
        centroids = np.zeros((num_clusters, points.shape[1]))
        np.add.at(centroids, filled, points)
        centroids /= np.maximum(counts, 1)[:, None]
        away = np.linalg.norm(points - centroids[filled], axis=1)
        shared = np.flatnonzero(counts[filled] > 1)
        filled[shared[first_max(away[shared])]] = k
    return filled


def numbered_by_first(labels: IntArray) -> IntArray:
    """Renumber (D,) labels so that clusters appear in order of their lowest domain id."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    numbered: IntArray = rank[inverse]
    return numbered
