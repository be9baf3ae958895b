"""The network of HIER (arXiv 2405.17132) in pre-training: entity graph, intents, exemplars, decision paths.

The paper's text on these parts was summaries only; the aggregator is KGIN's (Wang et al., WWW 2021), without
its user intents. Users and items have no rows of their own: both are means of entities, so new ones have
vectors. Letters as in `hier_parts`; n edges, R relations. Invariant: nothing here reads a domain.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from training.models.hier_parts import (
    item_factors,
    item_vectors,
    shares,
    unit_length,
    user_factors,
    user_vectors,
)
from training.models.hier_paths import PathGates

START_SCALE = 0.1


class EntityLayers(NamedTuple):
    """Vectors of all entities.

    Attributes:
        hops: Tables (E, d), hop 0 first.
    """

    hops: list[Tensor]

    @property
    def total(self) -> Tensor:
        """Sum over hops, (E, d): what items are made of."""
        return torch.stack(self.hops).sum(dim=0)


class HierNet(nn.Module):
    """Scores of users and items given as sets of entities.

    Args:
        head, relation, tail: (n,) int64 edges: `head` gathers from `tail` through `relation`.
        num_entities: E.
        num_relations: R.
        width: d.
        num_intents: M.
        num_exemplars: K.
        num_hops: Hops over the graph.
        normalise: Whether each hop's output is brought to length 1.
        intent_temperature, exemplar_temperature: Of the two softmaxes.
    """

    def __init__(
        self,
        *,
        head: Tensor,
        relation: Tensor,
        tail: Tensor,
        num_entities: int,
        num_relations: int,
        width: int,
        num_intents: int,
        num_exemplars: int,
        num_hops: int = 2,
        normalise: bool = True,
        intent_temperature: float = 1.0,
        exemplar_temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.num_hops, self.normalise = num_hops, normalise
        self.intent_temperature, self.exemplar_temperature = intent_temperature, exemplar_temperature
        self.register_buffer("head", head, persistent=False)
        self.register_buffer("relation", relation, persistent=False)
        self.register_buffer("tail", tail, persistent=False)
        degree = torch.bincount(head, minlength=num_entities).clamp_min(1).to(torch.float32)
        self.register_buffer("degree", degree.unsqueeze(1), persistent=False)
        self.entities = nn.Parameter(START_SCALE * torch.randn(num_entities, width))
        self.relations = nn.Parameter(1.0 + START_SCALE * torch.randn(num_relations, width))
        self.intents = nn.Parameter(torch.randn(num_intents, width) / width**0.5)
        self.exemplars = nn.Parameter(torch.randn(num_exemplars, width) / width**0.5)
        self.mixing = nn.Parameter(torch.eye(width) + START_SCALE * torch.randn(width, width) / width**0.5)
        self.gates = PathGates(num_intents=num_intents, num_exemplars=num_exemplars)

    def entity_layers(self) -> EntityLayers:
        """h^l = mean over edges (r, e') of w_r * h_e'^(l-1), for l from 1; entities without edges get 0."""
        head, relation = self.get_buffer("head"), self.get_buffer("relation")
        tail, degree = self.get_buffer("tail"), self.get_buffer("degree")
        hops: list[Tensor] = [self.entities]
        weights = self.relations.index_select(0, relation)
        for _ in range(self.num_hops):
            messages = weights * hops[-1].index_select(0, tail)
            mean = torch.zeros_like(self.entities).index_add(0, head, messages) / degree
            hops.append(unit_length(mean, wanted=self.normalise))
        return EntityLayers(hops)

    def users(self, layers: EntityLayers, ids: Tensor, weights: Tensor) -> Tensor:
        """h_u of (B, L) entities and float32 weights: (B, d)."""
        return user_vectors(layers.hops[:-1], ids, weights, normalise=self.normalise)

    def items(self, layers: EntityLayers, ids: Tensor) -> Tensor:
        """x_v of (B, L) entities: (B, d)."""
        return item_vectors(layers.total, ids)

    def intent_view(self, users: Tensor) -> Tensor:
        """u_int = a_u P, (B, d)."""
        return shares(users, self.intents, temperature=self.intent_temperature) @ self.intents

    def exemplar_view(self, items: Tensor) -> Tensor:
        """x_ex = q_v C, (B, d)."""
        return shares(items, self.exemplars, temperature=self.exemplar_temperature) @ self.exemplars

    def paths(self) -> Tensor:
        """Z * S with S = P W C', (M, K); a new draw of Z at each call in training."""
        gates: Tensor = self.gates()
        return gates * (self.intents @ self.mixing @ self.exemplars.T)

    def user_factors(self, users: Tensor, paths: Tensor) -> Tensor:
        """U of users (B, d) and paths (M, K): (B, d + K)."""
        return user_factors(users, self.intents, paths, temperature=self.intent_temperature)

    def item_factors(self, items: Tensor) -> Tensor:
        """V of items (B, d): (B, d + K)."""
        return item_factors(items, self.exemplars, temperature=self.exemplar_temperature)
