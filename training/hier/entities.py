"""Items as sets of entities: things such as an author, a tag or a price band that domains share.

Reads item features of a prepared data set and, where there is one, a file of triples. An entity's name is
`kind:value`. Invariant: an item has an entity only if the vocabulary lists it; what is too rare to link
items, or so common that it tells nothing, is not listed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from service.contract.layout import IDS
from service.contract.schema import (
    FIRST_ID,
    BucketiseEncoder,
    CategoricalFeature,
    Entity,
    FeatureSchema,
    HashEncoder,
    MultiFeature,
    NumericFeature,
    StoredFeature,
    VocabularyEncoder,
)
from service.contract.values import canonical, id_function
from training.data.prepared import PreparedDataset
from training.hier.errors import GraphError
from training.hier.ragged import Ragged

TRIPLE_COLUMNS = ("head", "relation", "tail")

NameLists = list[list[str]]
"""Names of the entities of each item, in the order of item slots."""

Encoders = Mapping[str, VocabularyEncoder | HashEncoder | BucketiseEncoder]
"""By name of the item feature that it encodes."""


@dataclass(frozen=True)
class EntityVocabulary:
    """The known entities; entity i has row FIRST_ID + i in every table.

    Attributes:
        names: Distinct, `kind:value`.
    """

    names: tuple[str, ...]

    @staticmethod
    def fit(items: Sequence[Sequence[str]], *, min_items: int, max_share: float) -> EntityVocabulary:
        """Entities of at least `min_items` items and at most `max_share` of all items.

        Raises:
            GraphError: None is left.
        """
        counts = Counter(name for names in items for name in set(names))
        limit = max_share * len(items)
        kept = sorted(name for name, count in counts.items() if min_items <= count <= limit)
        if not kept:
            raise GraphError(
                f"none of {len(counts)} entities is in {min_items} items or more and in {max_share:.0%} of "
                f"the {len(items)} items or less"
            )
        return EntityVocabulary(tuple(kept))

    @property
    def num_rows(self) -> int:
        """E, rows of an entity table."""
        return FIRST_ID + len(self.names)

    @cached_property
    def rows(self) -> dict[str, int]:
        """Row of each name."""
        return {name: FIRST_ID + i for i, name in enumerate(self.names)}

    def sets(self, items: Sequence[Sequence[str]], *, limit: int | None = None) -> Ragged:
        """Known entities of each item as sorted rows, the first `limit`; empty where none is known."""
        rows = self.rows
        return Ragged.of([sorted({rows[name] for name in own if name in rows})[:limit] for own in items])

    def kind(self, row: int) -> str:
        """What an entity is: the part of its name before the colon."""
        return self.names[row - FIRST_ID].partition(":")[0]


def coverage(sets: Ragged) -> float:
    """Share of items with at least one known entity; 0 without items."""
    return float((sets.sizes > 0).mean()) if len(sets) else 0.0


def attribute_encoders(schema: FeatureSchema, features: Sequence[str] | None) -> Encoders:
    """Encoders of the item features that make entities.

    Args:
        schema: Of the data.
        features: Their names; None takes all categorical and multi features but the item's own id.

    Raises:
        GraphError: A feature is not one of items, or holds no ids.
    """
    chosen: dict[str, VocabularyEncoder | HashEncoder | BucketiseEncoder] = {}
    own = {feature.name: feature for feature in schema.of_entity(Entity.ITEM)}
    if features is None:
        named = [
            f for f in own.values() if isinstance(f, CategoricalFeature | MultiFeature) and not _is_id(f)
        ]
        features = [f.name for f in named if f.source == "table" and f.name not in schema.holders]
    for name in features:
        feature = own.get(name)
        if feature is None:
            raise GraphError(f"graph.attributes names '{name}'; items have {sorted(own)}")
        encoder = None
        if isinstance(feature, CategoricalFeature | MultiFeature | NumericFeature):
            encoder = schema.encoder(feature.encoder)
        if not isinstance(encoder, VocabularyEncoder | HashEncoder | BucketiseEncoder):
            raise GraphError(f"graph.attributes names '{name}', a {feature.kind} feature without single ids")
        chosen[name] = encoder
    return chosen


def _is_id(feature: StoredFeature) -> bool:
    return isinstance(feature, CategoricalFeature) and (feature.is_id or feature.name == "item_id")


def stored_names(prepared: PreparedDataset, encoders: Encoders) -> NameLists:
    """Entities of every item of a prepared data set, by its encoded features."""
    rows = prepared.entities[Entity.ITEM]
    lists: NameLists = [[] for _ in range(len(rows))]
    for feature, encoder in encoders.items():
        columns = np.asarray(rows.ints[:, rows.layout.slot(feature, IDS).columns])
        texts = [f"{feature}:{text}" for text in _texts(encoder)]
        for own, ids in zip(lists, columns.tolist(), strict=True):
            own += [texts[i - FIRST_ID] for i in ids if i >= FIRST_ID]
    return lists


def _texts(encoder: VocabularyEncoder | HashEncoder | BucketiseEncoder) -> list[str]:
    if isinstance(encoder, VocabularyEncoder):
        return list(encoder.values)
    return [f"#{number}" for number in range(encoder.num_rows - FIRST_ID)]


def named_values(feature: str, value: Any, encoders: Encoders) -> list[str]:
    """Entities that one raw value of one attribute stands for; lists stand for each of their values.

    Raises:
        TypeError, ValueError: A value that is no string, integer or boolean, or no number where bands are
            made of numbers.
    """
    if value is None or value == "":
        return []
    if isinstance(value, list | tuple | np.ndarray | pl.Series):
        return [name for part in value for name in named_values(feature, part, encoders)]
    encoder = encoders.get(feature)
    if encoder is None or isinstance(encoder, VocabularyEncoder):
        return [f"{feature}:{canonical(value)}"]
    return [f"{feature}:#{id_function(encoder)(value) - FIRST_ID}"]


@dataclass(frozen=True)
class Triples:
    """What a file of triples says.

    Attributes:
        items: Entities of each item slot.
        ontology: (head, relation, tail) between entities.
    """

    items: NameLists
    ontology: tuple[tuple[str, str, str], ...]


def read_triples(path: Path, item_ids: Sequence[str], *, item_prefix: str) -> Triples:
    """Read (head, relation, tail) rows of a parquet or csv file.

    Args:
        path: The file. A head that starts with `item_prefix` is an item, any other an entity; tails are
            names of entities, `kind:value`.
        item_ids: Id of each item slot; triples of other items are left out.
        item_prefix: What precedes the id in a head.

    Raises:
        GraphError: No such file, or a column is missing.
    """
    if not path.is_file():
        raise GraphError(f"graph.triples: {path} does not exist")
    frame = pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path, infer_schema=False)
    if missing := [name for name in TRIPLE_COLUMNS if name not in frame.columns]:
        raise GraphError(f"graph.triples: {path} lacks the columns {missing}; it has {frame.columns}")
    slots = {identity: slot for slot, identity in enumerate(item_ids)}
    items: NameLists = [[] for _ in item_ids]
    ontology: list[tuple[str, str, str]] = []
    for head, relation, tail in frame.select(TRIPLE_COLUMNS).cast(pl.String).iter_rows():
        if head.startswith(item_prefix):
            slot = slots.get(head.removeprefix(item_prefix))
            if slot is not None:
                items[slot].append(tail)
        else:
            ontology.append((head, relation, tail))
    return Triples(items, tuple(ontology))
