"""U and V: what a pre-trained network says of all users and items, ready for inner products.

Invariant: a score is the inner product of a user's and an item's row and of nothing else; users without any
entity have the mean of the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from training.hier.bags import UserBags
from training.hier.ragged import IntArray, Ragged
from training.models.hier_net import HierNet

CHUNK = 8192

FloatBlock = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Factors:
    """Vectors of U users and V items.

    Attributes:
        users: (U, d + K) float32, rows of users without an entity hold the mean.
        items: (V, d + K) float32.
        mean_user: (d + K,) float32 mean over the users that have an entity; 0 where none has.
        width: d.
    """

    users: FloatBlock
    items: FloatBlock
    mean_user: FloatBlock
    width: int

    def user_rows(self, users: IntArray) -> FloatBlock:
        """(n, d + K) rows of users, the mean's for -1."""
        return np.where((users < 0)[:, None], self.mean_user, self.users[np.maximum(users, 0)])

    def score(self, users: IntArray, items: IntArray) -> FloatBlock:
        """(n,) float32 logits of users (n,) and items (n,)."""
        parts = [
            np.einsum("nd,nd->n", self.user_rows(users[i : i + CHUNK]), self.items[items[i : i + CHUNK]])
            for i in range(0, len(users), CHUNK)
        ]
        return np.concatenate([np.zeros(0, dtype=np.float32), *parts])


@torch.no_grad()
def compute_factors(net: HierNet, bags: UserBags, item_sets: Ragged) -> Factors:
    """U and V of all users and items, of a network in evaluation mode."""
    layers, paths = net.entity_layers(), net.paths()
    width = layers.hops[0].shape[1]
    users = [
        net.user_factors(net.users(layers, torch.from_numpy(ids), torch.from_numpy(weights)), paths).numpy()
        for ids, weights in (bags.take(rows) for rows in _chunks(len(bags)))
    ]
    items = [
        net.item_factors(net.items(layers, torch.from_numpy(item_sets.take(rows)[0]))).numpy()
        for rows in _chunks(len(item_sets))
    ]
    empty = np.zeros((0, width + net.exemplars.shape[0]), dtype=np.float32)
    every = np.concatenate([empty, *users])
    cold = bags.is_cold
    mean = every[~cold].mean(axis=0) if (~cold).any() else np.zeros(every.shape[1], dtype=np.float32)
    every[cold] = mean
    return Factors(every, np.concatenate([empty, *items]), mean, width)


def _chunks(size: int) -> list[IntArray]:
    return [np.arange(i, min(i + CHUNK, size), dtype=np.int64) for i in range(0, size, CHUNK)]
