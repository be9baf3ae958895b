"""Pair features inside the graph: lookups and dot products from stored rows of both sides.

Training tables carry pair values that are as of each row's time; a request has only stored rows, so
the exported graph computes the same numbers itself. A test holds both to each other.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from service.contract.layout import VALUES, WEIGHTS, entity_layout
from service.contract.schema import (
    DOMAIN_ENCODER,
    FIRST_ID,
    UNKNOWN_ID,
    DotPair,
    Entity,
    FeatureSchema,
    LookupPair,
)
from training.models.base import at_rows

Blocks = dict[Entity, tuple[Tensor, Tensor]]


class PairLayer(nn.Module):
    """All pair features of a schema, (N, P) float32 in schema order."""

    def __init__(self, schema: FeatureSchema) -> None:
        super().__init__()
        self.num_domains = schema.num_domains
        self.pairs = [
            _Lookup(schema, pair) if isinstance(pair, LookupPair) else _Dot(schema, pair)
            for pair in schema.pairs
        ]

    def forward(self, blocks: Blocks, domain: Tensor, index: Tensor | None) -> Tensor:
        """Compute pair values.

        Args:
            blocks: (ints, floats) of each entity; user and context with R rows, item with N.
            domain: (R,) int64 domain index.
            index: (N,) int64 request of each row, or None.
        """
        domain_ids = torch.where(
            domain < self.num_domains, domain + FIRST_ID, torch.full_like(domain, UNKNOWN_ID)
        )
        rows = blocks[Entity.ITEM][0].shape[0]
        values = [pair(blocks, domain_ids, index) for pair in self.pairs]
        if not values:
            return blocks[Entity.ITEM][1].new_zeros((rows, 0))
        return torch.cat(values, dim=1)


class _Lookup:
    """Weights that the holder keeps for the key's id, 0 where it does not list it."""

    def __init__(self, schema: FeatureSchema, pair: LookupPair) -> None:
        self.holder = schema.feature(pair.holder).entity
        layout = entity_layout(schema, self.holder)
        self.ids = layout.slot(pair.holder)
        self.weights = layout.slot(pair.holder, WEIGHTS)
        self.key_slot = None
        self.key_entity = Entity.CONTEXT
        if pair.key != DOMAIN_ENCODER:
            self.key_entity = schema.feature(pair.key).entity
            self.key_slot = entity_layout(schema, self.key_entity).slot(pair.key)

    def __call__(self, blocks: Blocks, domain_ids: Tensor, index: Tensor | None) -> Tensor:
        ints, floats = blocks[self.holder]
        length, channels = self.weights.shape
        key = domain_ids if self.key_slot is None else blocks[self.key_entity][0][:, self.key_slot.start]
        ids, weights = ints[:, self.ids.columns], floats[:, self.weights.columns]
        both_at_request = Entity.ITEM not in (self.holder, self.key_entity)
        if not both_at_request:
            ids, weights = _spread(ids, self.holder, index), _spread(weights, self.holder, index)
            key = _spread(key, self.key_entity, index)
        # Ids in a list are distinct, and padding (0) must not match a missing key.
        hit = (ids == key.unsqueeze(1)) & (ids != 0)
        found = (
            hit.to(weights.dtype).unsqueeze(1) @ weights.reshape(weights.shape[0], length, channels)
        ).squeeze(1)
        return at_rows(found, index) if both_at_request else found


class _Dot:
    """Dot product of two stored vectors."""

    def __init__(self, schema: FeatureSchema, pair: DotPair) -> None:
        self.sides = []
        for name in (pair.left, pair.right):
            entity = schema.feature(name).entity
            self.sides.append((entity, entity_layout(schema, entity).slot(name, VALUES).columns))

    def __call__(self, blocks: Blocks, domain_ids: Tensor, index: Tensor | None) -> Tensor:
        del domain_ids
        left, right = (_spread(blocks[entity][1][:, cols], entity, index) for entity, cols in self.sides)
        return (left * right).sum(dim=1, keepdim=True)


def _spread(values: Tensor, entity: Entity, index: Tensor | None) -> Tensor:
    return values if entity is Entity.ITEM else at_rows(values, index)
