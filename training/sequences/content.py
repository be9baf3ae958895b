"""Vectors of items that training never met, from their attributes.

A ridge regression from attributes to the vectors of items with events gives others theirs: an item like those
that one audience takes next starts beside them. Reads the encoded rows of the prepared items. Invariant: the
vectors of items with events are only fitted to, never changed.

Letters: I items of the schema's encoder, r width, A attributes.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.contract.layout import entity_layout
from service.contract.schema import FIRST_ID, Entity, MultiFeature, SequenceFeature, StandardiseEncoder
from training.data.prepared import PreparedDataset

RIDGE = 10.0
"""Events' worth of pull to the mean vector."""
MOST_VALUES = 4096
"""An encoder of more values names items rather than describes them, so it is no attribute."""


def content_vectors(
    vectors: Tensor, has_events: Tensor, prepared: PreparedDataset, *, item: str
) -> tuple[Tensor, Tensor]:
    """Vectors by attributes, for all rows of the item encoder.

    Args:
        vectors: (I, r) float32, of the items with events.
        has_events: (I,) bool.
        prepared: With the rows of known items.
        item: The item's id feature.

    Returns:
        (I, r) float32 and (I,) bool, whether an item has a described row with an attribute at all.
    """
    rows = prepared.entities[Entity.ITEM]
    layout = entity_layout(prepared.schema, Entity.ITEM)
    ids = np.asarray(rows.ints[:, layout.slot(item).start]).astype(np.int64)
    described = ids >= FIRST_ID
    columns, present = _attributes(prepared, item)
    made, found = torch.zeros_like(vectors), torch.zeros_like(has_events)
    fitted = described & has_events.numpy()[ids]
    usable = described & present
    if columns.shape[1] == 0 or not fitted.any():
        return made, found
    target = vectors.numpy()[ids[fitted]].astype(np.float64)
    mean = target.mean(axis=0)
    x = columns[fitted]
    weights = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ (target - mean))
    made[torch.from_numpy(ids[usable])] = torch.from_numpy(columns[usable] @ weights + mean).to(made.dtype)
    found[torch.from_numpy(ids[usable])] = True
    return made, found


def _attributes(prepared: PreparedDataset, item: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(rows, A) one column per value of an id attribute, and (rows,) whether a row has any of them."""
    schema, rows = prepared.schema, prepared.entities[Entity.ITEM]
    layout = entity_layout(schema, Entity.ITEM)
    statistics = {f.name for f in schema.of_entity(Entity.ITEM) if f.source == "statistic"}
    parts: list[NDArray[np.float64]] = [np.zeros((len(rows.ints), 0))]
    for slot in layout.slots:
        if slot.block != "int" or slot.feature in statistics | schema.holders | {item}:
            continue
        encoder = schema.encoder(slot.encoder)
        kind = schema.feature(slot.feature)
        if isinstance(encoder, StandardiseEncoder) or encoder.num_rows > MOST_VALUES:
            continue
        ids = np.asarray(rows.ints[:, slot.columns]).astype(np.int64).reshape(len(rows.ints), -1)
        part = np.zeros((len(ids), encoder.num_rows))
        np.add.at(part, (np.repeat(np.arange(len(ids)), ids.shape[1]), ids.reshape(-1)), 1.0)
        part = part[:, FIRST_ID:]
        if isinstance(kind, MultiFeature | SequenceFeature):
            part /= np.maximum(part.sum(axis=1, keepdims=True), 1.0)
        parts.append(part)
    whole = np.concatenate(parts, axis=1)
    present: NDArray[np.bool_] = np.count_nonzero(whole, axis=1) > 0
    return whole, present
