"""Encode raw columns into id and number blocks.

One piece of code for training tables and for requests: columns in, an `EncodedBlock` out. Pure; no
I/O. Invariant: every id lies in [0, num_rows) of its encoder whatever the input, and every number is
finite; a value that cannot be read so is refused with `EncodeError`.

Columns are numpy arrays or sequences with one value per row; None (or NaN in a float array) means
missing. List-valued features take one list per row. Keys of features may be absent: defaults fill in.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from service.contract.errors import EncodeError
from service.contract.layout import IDS, WEIGHTS, EntityLayout, Slot, entity_layout
from service.contract.schema import (
    MISSING_ID,
    UNKNOWN_ID,
    BucketiseEncoder,
    CategoricalFeature,
    Encoder,
    Entity,
    FeatureSchema,
    MultiFeature,
    NumericFeature,
    SequenceFeature,
    StandardiseEncoder,
    StoredFeature,
    VocabularyEncoder,
)
from service.contract.values import IdOf, id_function, number_of, standardise, vocabulary_rows

Column = Sequence[Any] | NDArray[Any]
FLOAT32_MAX = float(np.finfo(np.float32).max)
_STRINGS = {str}
_NUMBERS = {float, int, type(None)}


class EncodedBlock(msgspec.Struct, frozen=True):
    """Encoded rows of one entity.

    Attributes:
        ints: (n, int_width) int32 ids.
        floats: (n, float_width) float32 numbers.
    """

    ints: NDArray[np.int32]
    floats: NDArray[np.float32]

    def __len__(self) -> int:
        return int(self.ints.shape[0])


class EntityEncoder:
    """Encodes raw columns of one entity.

    Building one indexes the vocabularies; keep it for the life of the schema. Safe to share between
    threads: it never changes after construction.
    """

    def __init__(self, schema: FeatureSchema, entity: Entity) -> None:
        self.schema = schema
        self.layout: EntityLayout = entity_layout(schema, entity)
        self._features: dict[str, StoredFeature] = {f.name: f for f in schema.of_entity(entity)}
        self._id_of: dict[str, IdOf] = {}
        self._vocabularies: dict[str, dict[str, int]] = {}
        self._numeric: dict[str, StandardiseEncoder] = {}
        for slot in self.layout.slots:
            encoder: Encoder | None = schema.encoder(slot.encoder) if slot.encoder else None
            if isinstance(encoder, StandardiseEncoder):
                self._numeric[slot.encoder] = encoder
            elif encoder is not None and slot.encoder not in self._id_of:
                self._id_of[slot.encoder] = id_function(encoder)
                if isinstance(encoder, VocabularyEncoder):
                    self._vocabularies[slot.encoder] = vocabulary_rows(encoder)

    @property
    def feature_names(self) -> frozenset[str]:
        """Names that `encode` takes."""
        return frozenset(self._features)

    def defaults(self, num_rows: int) -> EncodedBlock:
        """Rows of an entity that is not stored."""
        return EncodedBlock(
            ints=np.tile(self.layout.default_ints, (num_rows, 1)),
            floats=np.tile(self.layout.default_floats, (num_rows, 1)),
        )

    def encode(self, columns: Mapping[str, Column], num_rows: int) -> EncodedBlock:
        """Encode whole columns.

        Args:
            columns: By feature name; a sequence takes one list of {field: value} per row.
            num_rows: Rows of the result; every column must have as many.

        Returns:
            A fresh block; features without a column hold their defaults.

        Raises:
            EncodeError: Unknown feature, wrong length, or a value of a wrong type.
        """
        block = self.defaults(num_rows)
        for name, column in columns.items():
            self.encode_into(block, name, column)
        return block

    def encode_into(self, block: EncodedBlock, name: str, column: Column) -> None:
        """Overwrite one feature of every row of `block`.

        Raises:
            EncodeError: Unknown feature, wrong length, or a value of a wrong type.
        """
        feature = self._features.get(name)
        if feature is None:
            known = ", ".join(sorted(self._features)) or "none"
            raise EncodeError(name, f"unknown {self.layout.entity} feature; known are: {known}")
        if len(column) != len(block):
            raise EncodeError(name, f"has {len(column)} values for {len(block)} rows")
        match feature:
            case CategoricalFeature():
                self._write_ids(block, self.layout.slot(name), column)
            case NumericFeature():
                self._write_numeric(block, feature, column)
            case MultiFeature():
                self._write_multi(block, feature, column)
            case SequenceFeature():
                self._write_sequence(block, feature, column)

    def _write_ids(self, block: EncodedBlock, slot: Slot, column: Column) -> None:
        block.ints[:, slot.start] = np.fromiter(self._ids(slot, column), np.int32, len(column))

    def _ids(self, slot: Slot, values: Column) -> list[int]:
        plain = values.tolist() if isinstance(values, np.ndarray) else values
        rows = self._vocabularies.get(slot.encoder)
        if rows is not None and set(map(type, plain)) == _STRINGS:
            return list(map(rows.get, plain, repeat(UNKNOWN_ID)))
        id_of = self._id_of[slot.encoder]
        try:
            return [id_of(value) for value in plain]
        except (TypeError, ValueError, OverflowError):
            raise self._explain(slot, plain) from None

    def _explain(self, slot: Slot, values: Sequence[Any]) -> EncodeError:
        """Find the value that `_ids` stumbled over."""
        id_of = self._id_of[slot.encoder]
        number = isinstance(self.schema.encoder(slot.encoder), BucketiseEncoder)
        wanted = "a finite number or null" if number else "a string, an integer, true, false or null"
        for row, value in enumerate(values):
            try:
                id_of(value)
            except (TypeError, ValueError, OverflowError):
                return EncodeError(slot.feature, f"expected {wanted}, got {_shown(value)}", row=row)
        return EncodeError(slot.feature, f"expected {wanted}")

    def _write_numeric(self, block: EncodedBlock, feature: NumericFeature, column: Column) -> None:
        slot = self.layout.of_feature(feature.name)[0]
        if slot.block == "int":
            self._write_ids(block, slot, column)
            return
        raw = _floats(feature, column)
        block.floats[:, slot.columns] = standardise(raw, self._numeric[slot.encoder])

    def _write_multi(self, block: EncodedBlock, feature: MultiFeature, column: Column) -> None:
        ids = self.layout.slot(feature.name, IDS)
        block.ints[:, ids.columns] = MISSING_ID
        weights = self.layout.slot(feature.name, WEIGHTS) if feature.num_weights else None
        if weights is not None:
            block.floats[:, weights.columns] = 0.0
        for row, value in enumerate(column):
            values, row_weights = _multi_row(feature, row, value)
            count = min(len(values), feature.max_len)
            if count == 0:
                continue
            try:
                encoded = self._ids(ids, values[:count])
            except EncodeError as error:
                raise EncodeError(feature.name, error.reason, row=row) from None
            block.ints[row, ids.start : ids.start + count] = encoded
            if weights is not None:
                flat = np.asarray(row_weights[:count], dtype=np.float32).reshape(-1)
                block.floats[row, weights.start : weights.start + flat.size] = flat

    def _write_sequence(self, block: EncodedBlock, feature: SequenceFeature, column: Column) -> None:
        known = {field.name for field in feature.fields}
        for field in feature.fields:
            block.ints[:, self.layout.slot(feature.name, field.name).columns] = MISSING_ID
        for row, value in enumerate(column):
            events = _events(feature, row, value, known)[-feature.max_len :]
            for field in feature.fields:
                slot = self.layout.slot(feature.name, field.name)
                try:
                    encoded = self._ids(slot, [event.get(field.name) for event in events])
                except EncodeError as error:
                    raise EncodeError(
                        feature.name, f"field '{field.name}': {error.reason}", row=row
                    ) from None
                block.ints[row, slot.start : slot.start + len(events)] = encoded


def _shown(value: Any) -> str:
    """A value in an error; of lists and objects only the first parts are looked at."""
    text = reprlib.repr(value) if isinstance(value, list | tuple | Mapping) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _floats(feature: NumericFeature, column: Column) -> NDArray[np.float64]:
    """Column as (n, width) float64 with NaN for missing."""
    n, width = len(column), feature.width
    if isinstance(column, np.ndarray) and column.dtype.kind in "fiu":
        raw = column.astype(np.float64).reshape(n, -1) if n else np.empty((0, width))
        if raw.shape[1] != width:
            raise EncodeError(feature.name, f"expected {width} numbers per row, got {raw.shape[1]}")
        if np.isinf(raw).any():
            row = int(np.flatnonzero(np.isinf(raw).any(axis=1))[0])
            raise EncodeError(feature.name, "expected a finite number or null, got inf", row=row)
        return raw
    plain = _plain_numbers(column) if width == 1 else None
    if plain is not None:
        return plain[:, None]
    raw = np.full((n, width), np.nan)
    for row, value in enumerate(column):
        numbers = value if width > 1 else (value,)
        if numbers is None:
            continue
        if isinstance(numbers, str | Mapping) or not isinstance(numbers, Sequence | np.ndarray):
            raise EncodeError(feature.name, f"expected {width} numbers, got {_shown(value)}", row=row)
        if len(numbers) != width:
            raise EncodeError(feature.name, f"expected {width} numbers, got {len(numbers)}", row=row)
        try:
            raw[row] = [number_of(x) for x in numbers]
        except (TypeError, ValueError, OverflowError):
            raise EncodeError(
                feature.name, f"expected a finite number or null, got {_shown(value)}", row=row
            ) from None
    return raw


def _plain_numbers(column: Column) -> NDArray[np.float64] | None:
    """(n,) float64 of finite numbers and None, which becomes NaN; None where there is anything else."""
    if not set(map(type, column)) <= _NUMBERS:
        return None
    try:
        numbers = np.array(column, dtype=np.float64)
    except OverflowError:
        return None  # an integer beyond float64
    return None if np.isinf(numbers).any() else numbers


def _multi_row(feature: MultiFeature, row: int, value: Any) -> tuple[list[Any], list[Any]]:
    """Ids and weights of one row: a list of ids, or {"ids": [...], "weights": [...]}; None is empty."""
    if value is None:
        return [], []
    weights: Any = None
    if isinstance(value, Mapping):
        if set(value) - {"ids", "weights"} or "ids" not in value:
            raise EncodeError(
                feature.name, f"expected keys 'ids' and 'weights', got {_shown(sorted(value))}", row=row
            )
        value, weights = value["ids"], value.get("weights")
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
        raise EncodeError(feature.name, f"expected a list of ids, got {_shown(value)}", row=row)
    ids = list(value)
    if not feature.num_weights:
        if weights is not None:
            raise EncodeError(feature.name, "takes no weights", row=row)
        return ids, []
    if weights is None:
        return ids, [[1.0] * feature.num_weights] * len(ids)
    return ids, _weights(feature, row, weights, len(ids))


def _weights(feature: MultiFeature, row: int, weights: Any, num_ids: int) -> list[list[float]]:
    """Weights of one row as (num_ids, num_weights); a flat list is taken where num_weights is 1."""
    reason = f"expected {num_ids} x {feature.num_weights} finite weights, got {_shown(weights)}"
    if isinstance(weights, str | Mapping) or not isinstance(weights, Sequence | np.ndarray):
        raise EncodeError(feature.name, reason, row=row)
    try:
        rows = [w if isinstance(w, Sequence | np.ndarray) else [w] for w in weights]
        checked = [[number_of(x) for x in w] for w in rows]
    except (TypeError, ValueError, OverflowError):
        raise EncodeError(feature.name, reason, row=row) from None
    ok = all(len(w) == feature.num_weights and all(abs(x) <= FLOAT32_MAX for x in w) for w in checked)
    if len(checked) != num_ids or not ok:
        raise EncodeError(feature.name, reason, row=row)
    return checked


def _events(feature: SequenceFeature, row: int, value: Any, known: set[str]) -> list[Mapping[str, Any]]:
    """Events of one row, oldest first; None is an empty history."""
    if value is None:
        return []
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence | np.ndarray):
        raise EncodeError(feature.name, f"expected a list of events, got {_shown(value)}", row=row)
    for event in value:
        if not isinstance(event, Mapping):
            raise EncodeError(feature.name, f"expected events as objects, got {_shown(event)}", row=row)
        if extra := set(event) - known:
            raise EncodeError(
                feature.name,
                f"unknown event field {_shown(sorted(extra))}; known are {sorted(known)}",
                row=row,
            )
    return list(value)


__all__ = ["Column", "EncodedBlock", "EntityEncoder"]
