"""Formulas of HIER (arXiv 2405.17132) that training and the scoring graph share.

Letters: E rows of the entity table (row 0 pads, row 1 is the unknown entity), B users or items, L entities of
each, d width, M intents, K exemplars. Invariant: the inner product of `user_factors` and `item_factors` is
the score y = h . x + a (Z * S) q', exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from service.contract.schema import FIRST_ID, UNKNOWN_ID

SMALLEST = 1e-12


def weighted_mean(table: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """Mean of table rows, (B, d); 0 where all weights are 0.

    Args:
        table: (E, d).
        ids: (B, L) integers.
        weights: (B, L) float32, 0 or more.
    """
    total = weights.sum(dim=1, keepdim=True)
    share = weights / torch.where(total > 0, total, torch.ones_like(total))
    vectors = table.index_select(0, ids.reshape(-1)).reshape(ids.shape[0], ids.shape[1], table.shape[1])
    return torch.matmul(share.unsqueeze(1), vectors).squeeze(1)


def unit_length(vectors: Tensor, *, wanted: bool) -> Tensor:
    """Rows (B, d) over their length where that is wanted, else as they are; zero rows stay zero."""
    if not wanted:
        return vectors
    return vectors / vectors.square().sum(dim=1, keepdim=True).clamp_min(SMALLEST).sqrt()


def user_vectors(hops: list[Tensor], ids: Tensor, weights: Tensor, *, normalise: bool) -> Tensor:
    """h_u = sum over hops l of the weighted mean of the entities' vectors of hop l - 1, (B, d).

    Args:
        hops: Entity tables (E, d) of hops 0 to the last but one.
        ids: (B, L) entities that the user's clicks touched.
        weights: (B, L) float32; entities below the first known one do not count.
        normalise: Whether each hop's mean is brought to length 1.
    """
    known = weights * (ids >= FIRST_ID).to(weights.dtype)
    total = unit_length(weighted_mean(hops[0], ids, known), wanted=normalise)
    for table in hops[1:]:
        total = total + unit_length(weighted_mean(table, ids, known), wanted=normalise)
    return total


def item_vectors(table: Tensor, ids: Tensor) -> Tensor:
    """x_v, the mean of the vectors of the item's known entities; the unknown entity's where it has none.

    Args:
        table: (E, d) sum of the entities' hops.
        ids: (B, L) entities; padding and unknown ones do not count.
    """
    known = (ids >= FIRST_ID).to(table.dtype)
    none = (known.sum(dim=1, keepdim=True) == 0).to(table.dtype)
    return weighted_mean(table, ids, known) + none * table[UNKNOWN_ID]


def shares(vectors: Tensor, centres: Tensor, *, temperature: float) -> Tensor:
    """Softmax over centres (C, d) of the inner products with vectors (B, d): (B, C), rows sum to 1."""
    return functional.softmax(vectors @ centres.T / temperature, dim=1)


def user_factors(users: Tensor, intents: Tensor, paths: Tensor, *, temperature: float) -> Tensor:
    """U = [h_u ; a_u (Z * S)], (B, d + K).

    Args:
        users: (B, d).
        intents: (M, d).
        paths: (M, K), Z * S.
        temperature: Of the intents' softmax.
    """
    return torch.cat([users, shares(users, intents, temperature=temperature) @ paths], dim=1)


def item_factors(items: Tensor, exemplars: Tensor, *, temperature: float) -> Tensor:
    """V = [x_v ; q_v], (B, d + K), of items (B, d) and exemplars (K, d)."""
    return torch.cat([items, shares(items, exemplars, temperature=temperature)], dim=1)
