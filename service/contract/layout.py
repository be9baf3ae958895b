"""Where each feature sits in an entity's encoded row.

A row is two flat vectors: int32 ids and float32 numbers. The layout is a pure function of the
schema, so training, export and service agree on every column without storing it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service.contract.schema import (
    MISSING_ID,
    UNKNOWN_ID,
    BucketiseEncoder,
    CategoricalFeature,
    Entity,
    FeatureSchema,
    MultiFeature,
    NumericFeature,
    SequenceFeature,
)

IDS = "ids"
WEIGHTS = "weights"
VALUES = "values"


@dataclass(frozen=True, slots=True)
class Slot:
    """The columns of one part of a feature.

    Attributes:
        feature: Feature name.
        part: `ids`, `weights`, `values`, or the field's name for a sequence.
        block: Which vector of the row holds it.
        start: First column.
        shape: Shape of the part for one row; () for a single column, row-major otherwise.
        encoder: Name of the encoder that gives the ids or numbers ('' for weights).
    """

    feature: str
    part: str
    block: Literal["int", "float"]
    start: int
    shape: tuple[int, ...]
    encoder: str

    @property
    def size(self) -> int:
        """Number of columns."""
        return math.prod(self.shape)

    @property
    def columns(self) -> slice:
        """The columns as a slice of the block."""
        return slice(self.start, self.start + self.size)


@dataclass(frozen=True)
class EntityLayout:
    """All slots of one entity, and what an entity without stored features looks like."""

    entity: Entity
    slots: tuple[Slot, ...]
    int_width: int
    float_width: int
    id_feature: str | None

    @cached_property
    def _by_key(self) -> dict[tuple[str, str], Slot]:
        return {(slot.feature, slot.part): slot for slot in self.slots}

    def slot(self, feature: str, part: str = IDS) -> Slot:
        """The slot of one part of a feature; KeyError when the entity has none."""
        return self._by_key[(feature, part)]

    def of_feature(self, feature: str) -> tuple[Slot, ...]:
        """All parts of one feature."""
        return tuple(slot for slot in self.slots if slot.feature == feature)

    @cached_property
    def default_ints(self) -> NDArray[np.int32]:
        """Ids of an entity that is not stored, shape (int_width,): all missing, its own id unknown."""
        row = np.full(self.int_width, MISSING_ID, dtype=np.int32)
        if self.id_feature is not None:
            row[self.slot(self.id_feature).start] = UNKNOWN_ID
        return row

    @cached_property
    def default_floats(self) -> NDArray[np.float32]:
        """Numbers of an entity that is not stored, shape (float_width,): all 0."""
        return np.zeros(self.float_width, dtype=np.float32)


def entity_layout(schema: FeatureSchema, entity: Entity) -> EntityLayout:
    """Lay out the features of one entity in schema order.

    Args:
        schema: A valid schema.
        entity: Which entity.

    Returns:
        Slots that cover both vectors without gap or overlap.
    """
    slots: list[Slot] = []
    width = {"int": 0, "float": 0}

    def add(
        feature: str, part: str, block: Literal["int", "float"], shape: tuple[int, ...], encoder: str
    ) -> None:
        slot = Slot(feature, part, block, width[block], shape, encoder)
        width[block] += slot.size
        slots.append(slot)

    id_feature: str | None = None
    for f in schema.of_entity(entity):
        match f:
            case CategoricalFeature():
                add(f.name, IDS, "int", (), f.encoder)
                id_feature = f.name if f.is_id else id_feature
            case MultiFeature():
                add(f.name, IDS, "int", (f.max_len,), f.encoder)
                if f.num_weights:
                    add(f.name, WEIGHTS, "float", (f.max_len, f.num_weights), "")
            case SequenceFeature():
                for field in f.fields:
                    add(f.name, field.name, "int", (f.max_len,), field.encoder)
            case NumericFeature():
                if isinstance(schema.encoder(f.encoder), BucketiseEncoder):
                    add(f.name, IDS, "int", (), f.encoder)
                else:
                    add(f.name, VALUES, "float", (f.width,), f.encoder)
    return EntityLayout(entity, tuple(slots), width["int"], width["float"], id_feature)
