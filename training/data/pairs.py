"""Numpy reference of the schema's pairs: the row-level numbers that a graph derives from both sides of a row.

Pure. Invariant: a row whose key the holder does not list gets exactly 0, and so does a missing key.
Letters: B rows, L entries of a holder, W weights per entry, P numbers of all pairs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.contract.encode import EncodedBlock
from service.contract.layout import IDS, VALUES, WEIGHTS, EntityLayout, entity_layout
from service.contract.schema import (
    DOMAIN_ENCODER,
    FIRST_ID,
    MISSING_ID,
    UNKNOWN_ID,
    DotPair,
    Entity,
    FeatureSchema,
    LookupPair,
    PairFeature,
)

Float32s = NDArray[np.float32]


def pair_columns(schema: FeatureSchema) -> dict[str, slice]:
    """Columns of each pair among the P numbers of a row, in schema order."""
    columns, start = {}, 0
    for pair in schema.pairs:
        width = schema.pair_width(pair)
        columns[pair.name] = slice(start, start + width)
        start += width
    return columns


def pairs_width(schema: FeatureSchema) -> int:
    """P."""
    return sum(schema.pair_width(pair) for pair in schema.pairs)


def domain_ids(schema: FeatureSchema, domain: NDArray[np.int32]) -> NDArray[np.int32]:
    """(B,) ids of the domain encoder from domain indexes; index D becomes the unknown id."""
    return np.where(domain < schema.num_domains, domain + FIRST_ID, UNKNOWN_ID).astype(np.int32)


def lookup(ids: NDArray[np.int32], weights: Float32s, key: NDArray[np.int32]) -> Float32s:
    """Weights that each row's holder keeps for the row's key.

    Args:
        ids: (B, L) entries of the holder.
        weights: (B, L, W).
        key: (B,) ids under the same encoder.

    Returns:
        (B, W); an id that stands twice adds up.
    """
    hit = (ids == key[:, None]) & (key != MISSING_ID)[:, None]
    return np.asarray(np.einsum("bl,blw->bw", hit.astype(np.float32), weights))


class PairReader:
    """Computes all pairs of a schema; build once, use for many batches."""

    def __init__(self, schema: FeatureSchema) -> None:
        self.schema = schema
        self.columns = pair_columns(schema)
        self.width = pairs_width(schema)
        self._layouts = {entity: entity_layout(schema, entity) for entity in Entity}

    def values(self, blocks: dict[Entity, EncodedBlock], domain: NDArray[np.int32]) -> Float32s:
        """(B, P) float32 from one block of B rows per entity and (B,) domain indexes."""
        out = np.zeros((len(domain), self.width), dtype=np.float32)
        for pair in self.schema.pairs:
            out[:, self.columns[pair.name]] = self._value(pair, blocks, domain)
        return out

    def _value(
        self, pair: PairFeature, blocks: dict[Entity, EncodedBlock], domain: NDArray[np.int32]
    ) -> Float32s:
        match pair:
            case DotPair():
                left, right = self._vector(pair.left, blocks), self._vector(pair.right, blocks)
                return np.asarray(np.einsum("bw,bw->b", left, right)[:, None])
            case LookupPair():
                layout, block = self._holder(pair.holder, blocks)
                ids, weights = layout.slot(pair.holder, IDS), layout.slot(pair.holder, WEIGHTS)
                values = block.floats[:, weights.columns].reshape(-1, *weights.shape)
                return lookup(block.ints[:, ids.columns], values, self._key(pair.key, blocks, domain))

    def _holder(self, name: str, blocks: dict[Entity, EncodedBlock]) -> tuple[EntityLayout, EncodedBlock]:
        entity = self.schema.feature(name).entity
        return self._layouts[entity], blocks[entity]

    def _vector(self, name: str, blocks: dict[Entity, EncodedBlock]) -> Float32s:
        layout, block = self._holder(name, blocks)
        return block.floats[:, layout.slot(name, VALUES).columns]

    def _key(
        self, name: str, blocks: dict[Entity, EncodedBlock], domain: NDArray[np.int32]
    ) -> NDArray[np.int32]:
        if name == DOMAIN_ENCODER:
            return domain_ids(self.schema, domain)
        layout, block = self._holder(name, blocks)
        return block.ints[:, layout.slot(name).start]


def pair_values(
    schema: FeatureSchema,
    user_block: EncodedBlock,
    context_block: EncodedBlock,
    item_block: EncodedBlock,
    domain: NDArray[np.int32],
) -> Float32s:
    """All pairs of B rows.

    Args:
        schema: Of the blocks.
        user_block: (B, ...) rows, one per candidate (repeat the request's).
        context_block: (B, ...) rows.
        item_block: (B, ...) rows.
        domain: (B,) int32 domain index, D for unknown.

    Returns:
        (B, P) float32, pairs in schema order.
    """
    blocks = {Entity.USER: user_block, Entity.CONTEXT: context_block, Entity.ITEM: item_block}
    return PairReader(schema).values(blocks, domain)
