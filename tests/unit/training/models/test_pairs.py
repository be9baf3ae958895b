"""Pair features computed in the graph equal a plain Python reading of the stored rows."""

from __future__ import annotations

import numpy as np
import torch

from service.contract.encode import EntityEncoder
from service.contract.layout import WEIGHTS, entity_layout
from service.contract.schema import Entity
from tests.support.schemas import full_schema, random_block
from training.models.pairs import PairLayer

SCHEMA = full_schema()
R, N = 4, 30


def draw(seed: int):
    random = np.random.default_rng(seed)
    blocks = {
        Entity.USER: random_block(SCHEMA, Entity.USER, R, seed=seed),
        Entity.CONTEXT: random_block(SCHEMA, Entity.CONTEXT, R, seed=seed + 1),
        Entity.ITEM: random_block(SCHEMA, Entity.ITEM, N, seed=seed + 2),
    }
    return blocks, random.integers(0, 4, R), random.integers(0, R, N)


def by_hand(holder_block, holder_row, feature, entity, key_id):
    """Walk the holder's list and add up the weights of the key's id."""
    layout = entity_layout(SCHEMA, entity)
    ids = holder_block.ints[holder_row, layout.slot(feature).columns]
    slot = layout.slot(feature, WEIGHTS)
    weights = holder_block.floats[holder_row, slot.columns].reshape(slot.shape)
    for i, w in zip(ids, weights, strict=True):
        if i == key_id and i != 0:
            return list(w)
    return [0.0] * slot.shape[1]


def test_lookup_and_dot_equal_a_walk_over_the_stored_lists():
    """Every pair value is what a loop over the holder's entries finds, for any mix of sides."""
    layer = PairLayer(SCHEMA)
    for seed in range(5):
        blocks, domain, index = draw(seed)
        tensors = {e: (torch.from_numpy(b.ints), torch.from_numpy(b.floats)) for e, b in blocks.items()}
        found = layer(tensors, torch.from_numpy(domain), torch.from_numpy(index)).numpy()
        user, item, context = (entity_layout(SCHEMA, e) for e in (Entity.USER, Entity.ITEM, Entity.CONTEXT))
        for n in range(N):
            r = index[n]
            brand = blocks[Entity.ITEM].ints[n, item.slot("brand").start]
            hour = blocks[Entity.CONTEXT].ints[r, context.slot("hour").start]
            domain_id = domain[r] + 2 if domain[r] < 3 else 1
            taste = blocks[Entity.USER].floats[r, user.slot("taste", "values").columns]
            style = blocks[Entity.ITEM].floats[n, item.slot("style", "values").columns]
            expected = [
                *by_hand(blocks[Entity.USER], r, "brand_rates", Entity.USER, brand),
                *by_hand(blocks[Entity.USER], r, "domain_rates", Entity.USER, domain_id),
                *by_hand(blocks[Entity.ITEM], n, "hour_rates", Entity.ITEM, hour),
                float(sum(a * b for a, b in zip(taste, style, strict=True))),
            ]
            np.testing.assert_allclose(found[n], expected, atol=1e-5)


def test_padding_never_matches_a_missing_key():
    """A missing key finds nothing although the holder's list is padded with the same row 0."""
    layer = PairLayer(SCHEMA)
    user = EntityEncoder(SCHEMA, Entity.USER).defaults(1)
    item = EntityEncoder(SCHEMA, Entity.ITEM).defaults(1)
    context = EntityEncoder(SCHEMA, Entity.CONTEXT).defaults(1)
    user.floats[:] = 7.0
    tensors = {
        Entity.USER: (torch.from_numpy(user.ints), torch.from_numpy(user.floats)),
        Entity.ITEM: (torch.from_numpy(item.ints), torch.from_numpy(item.floats)),
        Entity.CONTEXT: (torch.from_numpy(context.ints), torch.from_numpy(context.floats)),
    }

    found = layer(tensors, torch.tensor([3]), None)

    assert found[0, :4].tolist() == [0.0, 0.0, 0.0, 0.0]
