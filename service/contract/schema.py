"""The feature schema: what a model reads of a user, an item and a context, and how it is encoded.

Reads and writes `schema.json`. Values are frozen; `FeatureSchema.digest` changes whenever an
encoded row could change, so it keys stored features and ties a graph to its rows.

Ids are laid out alike for every encoder: row 0 means missing (and pads lists), row 1 means unknown,
known values start at row 2. A table for an encoder therefore has `num_rows` rows and no id is ever
negative or out of range.
"""

from __future__ import annotations

import hashlib
import math
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.contract.errors import SchemaError

MISSING_ID = 0
UNKNOWN_ID = 1
FIRST_ID = 2
DOMAIN_ENCODER = "domain"

Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.:]*$", max_length=80)]


class Frozen(BaseModel):
    """A value object: unknown keys are refused, fields cannot be reassigned."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Entity(StrEnum):
    """Who a feature describes. User and context have one row per request, item one per candidate."""

    USER = "user"
    ITEM = "item"
    CONTEXT = "context"


class VocabularyEncoder(Frozen):
    """Known values get rows 2, 3, ... in the order listed; any other value gets the unknown row 1."""

    type: Literal["vocabulary"] = "vocabulary"
    values: tuple[str, ...]

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.values)) != len(self.values):
            seen: set[str] = set()
            twice = next(v for v in self.values if v in seen or seen.add(v))  # type: ignore[func-returns-value]
            raise SchemaError(f"vocabulary lists the value {twice!r} twice")
        return self

    @property
    def num_rows(self) -> int:
        """Rows that a table for this encoder needs."""
        return FIRST_ID + len(self.values)


class HashEncoder(Frozen):
    """xxhash64 of the UTF-8 value, seeded, folded onto `num_buckets` rows that start at row 2."""

    type: Literal["hash"] = "hash"
    num_buckets: int = Field(ge=1, le=2**30)
    seed: int = Field(default=0, ge=0, lt=2**63)

    @property
    def num_rows(self) -> int:
        """Rows that a table for this encoder needs."""
        return FIRST_ID + self.num_buckets


class BucketiseEncoder(Frozen):
    """Number to bucket id: row 2 + count of boundaries that are <= the value; missing gets row 0."""

    type: Literal["bucketise"] = "bucketise"
    boundaries: tuple[float, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if not all(map(math.isfinite, self.boundaries)):
            raise SchemaError(f"bucket boundaries must be finite, got {self.boundaries}")
        if any(b <= a for a, b in zip(self.boundaries, self.boundaries[1:], strict=False)):
            raise SchemaError(f"bucket boundaries must rise strictly, got {self.boundaries}")
        return self

    @property
    def num_rows(self) -> int:
        """Rows that a table for this encoder needs."""
        return FIRST_ID + len(self.boundaries) + 1


class StandardiseEncoder(Frozen):
    """Number to float: clip((transform(x) - mean) / std, -clip, clip); missing gets 0.

    `log1p` is sign(x) * log(1 + |x|), defined for every finite number.
    """

    type: Literal["standardise"] = "standardise"
    mean: float = 0.0
    std: float = Field(default=1.0, gt=0)
    transform: Literal["none", "log1p"] = "none"
    clip: float = Field(default=8.0, gt=0)


Encoder = Annotated[
    VocabularyEncoder | HashEncoder | BucketiseEncoder | StandardiseEncoder, Field(discriminator="type")
]
IdEncoder = VocabularyEncoder | HashEncoder | BucketiseEncoder


class Feature(Frozen):
    """What every stored feature has.

    Attributes:
        name: Unique within the schema.
        entity: Whose row holds it.
        source: `table` for attributes as recorded, `statistic` for aggregates of past clicks.
        description: One line for people.
    """

    name: Name
    entity: Entity
    source: Literal["table", "statistic"] = "table"
    description: str = ""


class CategoricalFeature(Feature):
    """One id. `is_id` marks the entity's own id: an entity that is not stored gets the unknown row there."""

    kind: Literal["categorical"] = "categorical"
    encoder: Name
    is_id: bool = False


class MultiFeature(Feature):
    """Up to `max_len` ids without order, each with `num_weights` numbers (0: none). The first ids win."""

    kind: Literal["multi"] = "multi"
    encoder: Name
    max_len: int = Field(ge=1, le=4096)
    num_weights: int = Field(default=0, ge=0, le=16)


class SequenceField(Frozen):
    """One of the parallel columns of a sequence, e.g. the item or the domain of each event."""

    name: Name
    encoder: Name


class SequenceFeature(Feature):
    """Up to `max_len` events in time order, oldest first; the newest win. Padded at the end by row 0."""

    kind: Literal["sequence"] = "sequence"
    fields: tuple[SequenceField, ...] = Field(min_length=1)
    max_len: int = Field(ge=1, le=4096)


class NumericFeature(Feature):
    """`width` numbers, standardised to floats, or one number bucketised to an id."""

    kind: Literal["numeric"] = "numeric"
    encoder: Name
    width: int = Field(default=1, ge=1, le=1024)


StoredFeature = Annotated[
    CategoricalFeature | MultiFeature | SequenceFeature | NumericFeature, Field(discriminator="kind")
]


class LookupPair(Frozen):
    """Row-level numbers: the weights that `holder` (a weighted multi) keeps for the id in `key`.

    `key` is a categorical feature with the holder's encoder, or `domain`. Rows whose key the holder
    does not list get 0. Example: the user's click rate in the request's tab.
    """

    kind: Literal["lookup"] = "lookup"
    name: Name
    holder: Name
    key: Name


class DotPair(Frozen):
    """Row-level number: the dot product of two numeric vectors of equal width."""

    kind: Literal["dot"] = "dot"
    name: Name
    left: Name
    right: Name


PairFeature = Annotated[LookupPair | DotPair, Field(discriminator="kind")]


class FeatureSchema(Frozen):
    """Everything that turns raw values into graph inputs.

    Attributes:
        name: Of the data set.
        domains: Domain names; a domain's index is its place here, an unknown domain has index D.
        encoders: By name; features that name the same encoder share one embedding table.
        features: Stored features of user, item and context.
        pairs: Row-level numbers derived inside the graph from stored features of both sides.
    """

    name: Name
    domains: tuple[str, ...] = Field(min_length=1)
    encoders: dict[Name, Encoder]
    features: tuple[StoredFeature, ...]
    pairs: tuple[PairFeature, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _check_names(self)
        for feature in self.features:
            _check_encoders(self, feature)
        for pair in self.pairs:
            _check_pair(self, pair)
        return self

    @cached_property
    def digest(self) -> str:
        """Sha256 (hex) over everything that can change an encoded row."""
        slim = self.model_copy(
            update={"features": tuple(f.model_copy(update={"description": ""}) for f in self.features)}
        )
        return hashlib.sha256(slim.model_dump_json().encode()).hexdigest()

    @cached_property
    def _by_name(self) -> dict[str, StoredFeature]:
        return {feature.name: feature for feature in self.features}

    @cached_property
    def _domain_index(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.domains)}

    @property
    def num_domains(self) -> int:
        """D. Tables indexed by domain have D + 1 rows, the last for unknown domains."""
        return len(self.domains)

    def feature(self, name: str) -> StoredFeature:
        """The stored feature of that name.

        Raises:
            SchemaError: No such feature.
        """
        try:
            return self._by_name[name]
        except KeyError:
            raise SchemaError(f"no feature '{name}'; known are {sorted(self._by_name)}") from None

    def of_entity(self, entity: Entity) -> tuple[StoredFeature, ...]:
        """Stored features of one entity, in schema order."""
        return tuple(f for f in self.features if f.entity is entity)

    def encoder(self, name: str) -> Encoder:
        """The encoder of that name; `domain` is built from the domain list."""
        if name == DOMAIN_ENCODER:
            return VocabularyEncoder(values=self.domains)
        try:
            return self.encoders[name]
        except KeyError:
            raise SchemaError(f"no encoder '{name}'; known are {sorted(self.encoders)}") from None

    def domain_index(self, name: str) -> int:
        """Index of a domain, D when it is unknown."""
        return self._domain_index.get(name, len(self.domains))

    @cached_property
    def holders(self) -> frozenset[str]:
        """Multi features that only serve lookups; models do not embed them."""
        return frozenset(p.holder for p in self.pairs if isinstance(p, LookupPair))

    def pair_width(self, pair: PairFeature) -> int:
        """Numbers per row that a pair feature yields."""
        if isinstance(pair, DotPair):
            return 1
        holder = self.feature(pair.holder)
        return holder.num_weights if isinstance(holder, MultiFeature) else 0


def _check_names(schema: FeatureSchema) -> None:
    names = [f.name for f in schema.features] + [p.name for p in schema.pairs]
    for name in names:
        if names.count(name) > 1:
            raise SchemaError(f"feature name '{name}' is used twice")
    if DOMAIN_ENCODER in schema.encoders:
        raise SchemaError(f"encoder name '{DOMAIN_ENCODER}' is reserved for the domain list")
    if len(set(schema.domains)) != len(schema.domains):
        raise SchemaError("a domain is listed twice")
    for entity in Entity:
        ids = [f.name for f in schema.of_entity(entity) if isinstance(f, CategoricalFeature) and f.is_id]
        if len(ids) > 1:
            raise SchemaError(f"entity '{entity}' has two id features: {ids}")


def _check_encoders(schema: FeatureSchema, feature: StoredFeature) -> None:
    if isinstance(feature, SequenceFeature):
        used = {field.name: schema.encoder(field.encoder) for field in feature.fields}
        if len(used) != len(feature.fields):
            raise SchemaError(f"sequence '{feature.name}' names a field twice")
        for field, encoder in used.items():
            if isinstance(encoder, StandardiseEncoder):
                raise SchemaError(
                    f"sequence '{feature.name}', field '{field}': needs an encoder that gives ids"
                )
        return
    encoder = schema.encoder(feature.encoder)
    if isinstance(feature, NumericFeature):
        if not isinstance(encoder, StandardiseEncoder | BucketiseEncoder):
            raise SchemaError(f"numeric '{feature.name}' needs standardise or bucketise, got {encoder.type}")
        if isinstance(encoder, BucketiseEncoder) and feature.width != 1:
            raise SchemaError(f"numeric '{feature.name}': bucketise needs width 1, got {feature.width}")
    elif not isinstance(encoder, VocabularyEncoder | HashEncoder):
        raise SchemaError(f"{feature.kind} '{feature.name}' needs vocabulary or hash, got {encoder.type}")


def _check_pair(schema: FeatureSchema, pair: PairFeature) -> None:
    if isinstance(pair, DotPair):
        left, right = schema.feature(pair.left), schema.feature(pair.right)
        widths = [f.width for f in (left, right) if isinstance(f, NumericFeature)]
        if len(widths) != 2 or widths[0] != widths[1]:
            raise SchemaError(f"dot '{pair.name}' needs two numeric features of equal width")
        return
    holder = schema.feature(pair.holder)
    if not isinstance(holder, MultiFeature) or holder.num_weights == 0:
        raise SchemaError(
            f"lookup '{pair.name}': holder '{pair.holder}' must be a multi feature with weights"
        )
    if pair.key == DOMAIN_ENCODER:
        key_encoder = DOMAIN_ENCODER
    else:
        key = schema.feature(pair.key)
        if not isinstance(key, CategoricalFeature):
            raise SchemaError(f"lookup '{pair.name}': key '{pair.key}' must be categorical")
        key_encoder = key.encoder
    if key_encoder != holder.encoder:
        raise SchemaError(
            f"lookup '{pair.name}': key uses encoder '{key_encoder}', holder uses '{holder.encoder}'"
        )
