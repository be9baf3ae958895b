"""Encode whole raw tables with the service's encoder, a column of distinct values at a time.

`EntityEncoder` reads values one by one; here every distinct value goes through it once and the ids are spread
over the rows. Invariant: the result equals `EntityEncoder.encode` on the same rows (tests compare the two).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract.encode import EncodedBlock, EntityEncoder
from service.contract.layout import IDS, WEIGHTS, Slot
from service.contract.schema import (
    DOMAIN_ENCODER,
    MISSING_ID,
    BucketiseEncoder,
    CategoricalFeature,
    Entity,
    FeatureSchema,
    StandardiseEncoder,
)
from training.data.columns import Ints, Lists, distinct, lists, numbers
from training.data.errors import TableError
from training.data.fit import GetColumn, numeric_matrix, raw_column
from training.data.table import (
    CategoricalSpec,
    DatasetDescription,
    FeatureSpec,
    MultiSpec,
    NumericSpec,
    SequenceSpec,
)


class TableEncoder:
    """Encodes the described features of one entity; other features of the schema keep their defaults."""

    def __init__(self, schema: FeatureSchema, entity: Entity, description: DatasetDescription) -> None:
        self.encoder = EntityEncoder(schema, entity)
        self.specs = tuple(f for f in description.features if f.entity is entity)
        self._prefix = description.columns.domain.prefix
        self._of_encoder = _encoder_per_value(schema)

    def encode(self, get: GetColumn, num_rows: int) -> EncodedBlock:
        """Encode `num_rows` rows whose raw columns `get` returns."""
        block = self.encoder.defaults(num_rows)
        for spec in self.specs:
            self._write(block, spec, get)
        return block

    def _write(self, block: EncodedBlock, spec: FeatureSpec, get: GetColumn) -> None:
        layout, place = self.encoder.layout, f"feature '{spec.name}'"
        match spec:
            case CategoricalSpec():
                slot = layout.slot(spec.name)
                block.ints[:, slot.start] = self._ids(slot, get(raw_column(spec)), place)
            case NumericSpec():
                self._write_numeric(block, spec, get)
            case MultiSpec():
                self._write_multi(block, spec, get, place)
            case SequenceSpec():
                self._write_sequence(block, spec, get, place)

    def _write_multi(self, block: EncodedBlock, spec: MultiSpec, get: GetColumn, place: str) -> None:
        values = lists(get(raw_column(spec)), place, spec.separator)
        kept = values.positions < spec.max_len
        slot = self.encoder.layout.slot(spec.name, IDS)
        ids = self._ids(slot, values.flat, place)
        _scatter(block.ints, slot, values, values.positions, kept, ids)
        if spec.weights is not None:
            weights = lists(get(spec.weights), place)
            _same_lengths(place, values, weights)
            flat = numbers(weights.flat, place)
            if np.isnan(flat).any():
                raise TableError(f"{place}: a weight is missing; every listed id needs one")
            slot = self.encoder.layout.slot(spec.name, WEIGHTS)
            _scatter(block.floats, slot, values, values.positions, kept, flat)

    def _write_sequence(self, block: EncodedBlock, spec: SequenceSpec, get: GetColumn, place: str) -> None:
        first = lists(get(spec.fields[0].column), place)
        dropped = np.maximum(first.lengths - spec.max_len, 0)
        position = first.positions - np.repeat(dropped, first.lengths)
        for part in spec.fields:
            values = lists(get(part.column), place)
            _same_lengths(place, first, values)
            slot = self.encoder.layout.slot(spec.name, part.name)
            ids = self._ids(slot, values.flat, place)
            _scatter(block.ints, slot, values, position, position >= 0, ids)

    def _write_numeric(self, block: EncodedBlock, spec: NumericSpec, get: GetColumn) -> None:
        matrix = numeric_matrix(spec, get)
        slot = self.encoder.layout.of_feature(spec.name)[0]
        if slot.block == "float":
            self.encoder.encode_into(block, spec.name, matrix if spec.width > 1 else matrix[:, 0])
            return
        values, index = np.unique(matrix[:, 0], return_inverse=True)
        small = self.encoder.encode({spec.name: values}, len(values))
        block.ints[:, slot.start] = small.ints[:, slot.start][index]

    def _ids(self, slot: Slot, values: Any, place: str) -> NDArray[np.int32]:
        """(n,) int32 ids of a column of raw values."""
        index, names = distinct(values, place)
        if slot.encoder == DOMAIN_ENCODER:
            names = [self._prefix + name for name in names]
        encoder = self._of_encoder[slot.encoder]
        ids = np.full(len(names) + 1, MISSING_ID, dtype=np.int32)
        ids[:-1] = encoder.encode({"value": names}, len(names)).ints[:, 0]
        return np.asarray(ids[index])


def _encoder_per_value(schema: FeatureSchema) -> dict[str, EntityEncoder]:
    """For each encoder of ids, an entity encoder with the single categorical feature `value`."""
    found = {}
    for name in (*schema.encoders, DOMAIN_ENCODER):
        if isinstance(schema.encoder(name), StandardiseEncoder | BucketiseEncoder):
            continue
        own = {} if name == DOMAIN_ENCODER else {name: schema.encoders[name]}
        value = CategoricalFeature(name="value", entity=Entity.CONTEXT, encoder=name)
        single = FeatureSchema(name="single", domains=schema.domains, encoders=own, features=(value,))
        found[name] = EntityEncoder(single, Entity.CONTEXT)
    return found


def _scatter(
    block: NDArray[Any],
    slot: Slot,
    values: Lists,
    position: Ints,
    kept: NDArray[np.bool_],
    flat: NDArray[Any],
) -> None:
    """Write flat list elements to their rows and places; what is not written stays 0."""
    block[:, slot.columns] = 0
    block[values.rows[kept], slot.start + position[kept]] = flat[kept]


def _same_lengths(place: str, a: Lists, b: Lists) -> None:
    different = a.lengths != b.lengths
    if different.any():
        row = int(np.flatnonzero(different)[0])
        raise TableError(
            f"{place}: parallel lists differ in row {row}: {a.lengths[row]} and {b.lengths[row]} elements"
        )
