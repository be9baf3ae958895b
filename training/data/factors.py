"""Low-rank factors of recorded histories, and their dot products with the candidate.

Two forms. Without `sums`, both sides take singular vectors of one user x item matrix. With `sums`, items
take singular vectors of length 1, and each user the sum of the vectors of the items in a history over the
root of their number: an item-item similarity of low rank, one per history, and possibly one where each item
counts by how much more it was chosen than a Rasch model expects.

Letters: U users, I items, E distinct (user, item) pairs, W width.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from service.contract.schema import DotPair, Entity
from training.data.columns import Floats, Ints
from training.data.events import HistoryInputs, entity_vector
from training.data.made import Made
from training.data.rasch import RaschFit
from training.data.table import FactorsSpec, FactorSum


def make_factors(inputs: HistoryInputs, spec: FactorsSpec, fits: Mapping[str, RaschFit]) -> Made:
    """Vectors of users and items, with one dot product per user vector."""
    num_users, num_items = len(inputs.users), len(inputs.items)
    pairs = np.concatenate([inputs.events[name].pairs(num_items) for name in spec.lists])
    left, right = singular_vectors(
        pairs // max(num_items, 1), pairs % max(num_items, 1), (num_users, num_items), spec.width
    )
    if spec.sums:
        right = unit_length(right)
        users = {f"{spec.name}_{s.name}": _user_sum(inputs, s, right, fits) for s in spec.sums}
    else:
        users = {f"{spec.name}_user": left}
    text = f"factors of {', '.join(spec.lists)}"
    made = Made()
    for name, vectors in users.items():
        made.features.append(entity_vector(name, Entity.USER, vectors, inputs.users.train_rows, text))
    item = f"{spec.name}_item"
    made.features.append(entity_vector(item, Entity.ITEM, right, inputs.items.train_rows, text))
    for name in users:
        dot = f"{name}.dot" if spec.sums else f"{spec.name}.dot"
        made.pairs.append(DotPair(name=dot, left=name, right=item))
    return made


def singular_vectors(user: Ints, item: Ints, shape: tuple[int, int], width: int) -> tuple[Floats, Floats]:
    """Singular vectors of the degree-normalised matrix, each side times the root of the singular values.

    Args:
        user: (E,) rows of the marks; one that stands twice counts twice.
        item: (E,) their columns.
        shape: U, I.
        width: W; missing ranks are 0.

    Returns:
        (U, W) and (I, W).
    """
    # Loaded here: they take 60 MB, which a data set without factors need not pay.
    from scipy.sparse import csr_matrix  # type: ignore[import-untyped]
    from sklearn.utils.extmath import randomized_svd

    rows, columns = np.bincount(user, minlength=shape[0]), np.bincount(item, minlength=shape[1])
    marks = 1.0 / np.sqrt(rows[user] * columns[item])
    found = min(width, max(1, min(shape) - 1))
    left, right = np.zeros((shape[0], width)), np.zeros((shape[1], width))
    if len(user):
        u, sizes, v = randomized_svd(csr_matrix((marks, (user, item)), shape=shape), found, random_state=0)
        left[:, :found], right[:, :found] = u * np.sqrt(sizes), v.T * np.sqrt(sizes)
    return left, right


def unit_length(vectors: Floats) -> Floats:
    """Rows divided by their length; a row of zeros stays."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(length > 0, length, 1.0))


def sum_of_items(user: Ints, item: Ints, weights: Floats, vectors: Floats, num_users: int) -> Floats:
    """Weighted sum of each user's item vectors over the root of their number.

    Args:
        user: (E,) slots.
        item: (E,) slots.
        weights: (E,) weight of each pair.
        vectors: (I, W).
        num_users: U.

    Returns:
        (U, W); zeros without items.
    """
    from scipy.sparse import csr_matrix

    counts = np.bincount(user, minlength=num_users)
    matrix = csr_matrix((weights / np.sqrt(counts[user]), (user, item)), shape=(num_users, len(vectors)))
    return np.asarray(matrix @ vectors)


def _user_sum(
    inputs: HistoryInputs, spec: FactorSum, vectors: Floats, fits: Mapping[str, RaschFit]
) -> Floats:
    num_users, num_items = len(inputs.users), len(inputs.items)
    if spec.residuals is not None:
        fit = fits[spec.residuals]
        return sum_of_items(fit.user, fit.item, fit.residual, vectors, num_users)
    pairs = inputs.events[str(spec.over)].pairs(num_items)
    user, item = pairs // max(num_items, 1), pairs % max(num_items, 1)
    return sum_of_items(user, item, np.ones(len(pairs)), vectors, num_users)
