"""Aggregates of histories that were recorded before the log starts: lengths, popularity, shares, factors.

One small function per maker, each from flat event lists to encoded columns. All are static: they hold for
every row alike, because the histories precede the log. Every number is divided by its root mean square, so
that 0 stays 0.

Letters: U users, I items, E events.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.contract.encode import EncodedBlock, standardise
from service.contract.layout import VALUES, entity_layout
from service.contract.schema import (
    FIRST_ID,
    CategoricalFeature,
    DotPair,
    Entity,
    FeatureSchema,
    LookupPair,
    MultiFeature,
    NumericFeature,
)
from training.data.columns import Floats, Ints, lists
from training.data.entities import EntityTable
from training.data.errors import DescriptionError
from training.data.made import Made, MadeFeature, multi_block, no_ints, weighted_rms, zero_preserving
from training.data.statistics import clipped, logit
from training.data.table import (
    AggregateSpec,
    DatasetDescription,
    FactorsSpec,
    HistoryListSpec,
    PropensitySpec,
    SequenceSpec,
)


@dataclass(frozen=True)
class Events:
    """One history of every user, flat.

    Attributes:
        user: (E,) int64 slot of the user.
        item: (E,) int64 slot of the item, -1 where it is not known.
        length: (U,) int64 events per user.
    """

    user: Ints
    item: Ints
    length: Ints

    def known(self) -> tuple[Ints, Ints]:
        """User and item slots of the events whose item is known."""
        keep = self.item >= 0
        return self.user[keep], self.item[keep]

    def pairs(self, num_items: int) -> Ints:
        """Distinct (user, item) of known events as user * num_items + item, rising."""
        user, item = self.known()
        return np.unique(user * num_items + item)


@dataclass(frozen=True)
class HistoryInputs:
    """What the makers read: tables, base schema and the encoded items."""

    description: DatasetDescription
    schema: FeatureSchema
    users: EntityTable
    items: EntityTable
    item_block: EncodedBlock
    events: dict[str, Events]


def make_history(
    description: DatasetDescription,
    schema: FeatureSchema,
    users: EntityTable,
    items: EntityTable,
    item_block: EncodedBlock,
) -> Made:
    """All history features that the description asks for."""
    history = description.history
    events = {entry.feature: _events(description, entry, users, items) for entry in history.lists}
    inputs = HistoryInputs(description, schema, users, items, item_block, events)
    made = Made()
    for entry in history.lists:
        made.features += _list_features(inputs, entry)
        for aggregate in entry.aggregates:
            made.extend(
                _mean(inputs, entry, aggregate)
                if aggregate.how == "mean"
                else _share(inputs, entry, aggregate)
            )
    for propensity in history.propensity:
        made.features += _propensity(inputs, propensity)
    for factors in history.factors:
        made.extend(_factors(inputs, factors))
    return made


def _events(
    description: DatasetDescription, entry: HistoryListSpec, users: EntityTable, items: EntityTable
) -> Events:
    feature = description.feature(entry.feature)
    if not isinstance(feature, SequenceSpec):
        raise DescriptionError(f"history.lists: '{entry.feature}' is no sequence")
    field = next(f for f in feature.fields if entry.field in (None, f.name))
    place = f"history '{entry.feature}'"
    values = lists(users.columns[field.column], place)
    return Events(values.rows, items.ids.look_up(values.flat, place), values.lengths)


def _numeric(
    name: str, entity: Entity, values: Floats, train_rows: Ints, description: str, clip: float = 8.0
) -> MadeFeature:
    """One number per entity, divided by its root mean square over train rows."""
    encoder = zero_preserving(weighted_rms(values, train_rows.astype(np.float64)), clip)
    feature = NumericFeature(
        name=name, entity=entity, source="statistic", encoder=name, description=description
    )
    return MadeFeature(feature, no_ints(len(values)), standardise(values, encoder).reshape(-1, 1), encoder)


def _list_features(inputs: HistoryInputs, entry: HistoryListSpec) -> Iterator[MadeFeature]:
    """Length per user, popularity per item: log(1 + events)."""
    events = inputs.events[entry.feature]
    if entry.length:
        yield _numeric(
            f"{entry.feature}_length",
            Entity.USER,
            np.log1p(events.length.astype(np.float64)),
            inputs.users.train_rows,
            f"log events in {entry.feature}",
        )
    if entry.popularity:
        counts = np.bincount(events.known()[1], minlength=len(inputs.items))
        yield _numeric(
            f"{entry.feature}_popularity",
            Entity.ITEM,
            np.log1p(counts.astype(np.float64)),
            inputs.items.train_rows,
            f"log times an item stands in {entry.feature}",
        )


def _mean(inputs: HistoryInputs, entry: HistoryListSpec, aggregate: AggregateSpec) -> Made:
    """Mean of an item's encoded number over the history; 0 for an empty one."""
    slot = entity_layout(inputs.schema, Entity.ITEM).of_feature(aggregate.of)[0]
    if slot.part != VALUES or slot.size != 1:
        raise DescriptionError(
            f"history.lists '{entry.feature}': the mean of '{aggregate.of}' needs a single "
            "standardised number"
        )
    user, item = inputs.events[entry.feature].known()
    num_users = len(inputs.users)
    numbers = inputs.item_block.floats[item, slot.start].astype(np.float64)
    total = np.bincount(user, weights=numbers, minlength=num_users)
    mean = total / np.maximum(np.bincount(user, minlength=num_users), 1)
    name = f"{entry.feature}_mean_{aggregate.of}"
    text = f"mean {aggregate.of} over {entry.feature}"
    return Made([_numeric(name, Entity.USER, mean, inputs.users.train_rows, text)])


def _share(inputs: HistoryInputs, entry: HistoryListSpec, aggregate: AggregateSpec) -> Made:
    """Share of each category in a user's history, as a map with a lookup by the candidate's category."""
    key = inputs.schema.feature(aggregate.of)
    if not isinstance(key, CategoricalFeature):
        raise DescriptionError(f"history.lists '{entry.feature}': '{aggregate.of}' is not categorical")
    slot = entity_layout(inputs.schema, Entity.ITEM).slot(aggregate.of)
    user, item = inputs.events[entry.feature].known()
    category = inputs.item_block.ints[item, slot.start].astype(np.int64)
    in_history = np.maximum(np.bincount(user, minlength=len(inputs.users)), 1)
    known = category >= FIRST_ID
    pair, counts = np.unique((user[known] << 31) | category[known], return_counts=True)
    owner, category = pair >> 31, pair & ((1 << 31) - 1)
    order = np.lexsort((category, -counts, owner))
    rank = np.arange(len(order)) - np.searchsorted(owner[order], owner[order])
    order, rank = order[rank < aggregate.top], rank[rank < aggregate.top]
    share = counts[order] / in_history[owner[order]]
    ids = np.zeros((len(inputs.users), aggregate.top), dtype=np.int32)
    weights = np.zeros((*ids.shape, 1), dtype=np.float32)
    ids[owner[order], rank] = category[order]
    weights[owner[order], rank, 0] = share / (weighted_rms(share, share) or 1.0)
    name = f"{entry.feature}_share_{aggregate.of}"
    feature = MultiFeature(
        name=name,
        entity=Entity.USER,
        source="statistic",
        encoder=key.encoder,
        max_len=aggregate.top,
        num_weights=1,
        description=f"share of each {aggregate.of} in {entry.feature}",
    )
    lookup = LookupPair(name=f"{name}.lookup", holder=name, key=aggregate.of)
    return Made([multi_block(feature, ids, weights)], [lookup])


def _propensity(inputs: HistoryInputs, spec: PropensitySpec) -> Iterator[MadeFeature]:
    """How often items among one history were also chosen (stand in a second one).

    Item: shrunk log-odds of being chosen, less those of all. User: (chosen - expected of its items) /
    (n + a), so that a user is not praised for easy items; 0 without history.
    """
    num_users, num_items = len(inputs.users), len(inputs.items)
    among = inputs.events[spec.among].pairs(num_items)
    chosen = np.isin(among, inputs.events[spec.chosen].pairs(num_items), assume_unique=True)
    user, item = among // max(num_items, 1), among % max(num_items, 1)
    rate = float(chosen.mean()) if len(chosen) else 0.5
    base, a = clipped(np.array([rate])), spec.smoothing
    seen = np.bincount(item, minlength=num_items)
    taken = np.bincount(item, weights=chosen, minlength=num_items)
    item_rate = clipped((taken + a * base) / (seen + a))
    lift = np.where(seen > 0, logit(item_rate) - logit(base), 0.0)
    surplus = np.bincount(user, weights=chosen - item_rate[item], minlength=num_users)
    adjusted = surplus / (np.bincount(user, minlength=num_users) + a)
    text = f"{spec.chosen} given {spec.among}"
    yield _numeric(f"{spec.name}_user", Entity.USER, adjusted, inputs.users.train_rows, text)
    yield _numeric(f"{spec.name}_item", Entity.ITEM, lift, inputs.items.train_rows, text)


def _factors(inputs: HistoryInputs, spec: FactorsSpec) -> Made:
    """Singular vectors of the degree-normalised user x item matrix, split evenly between both sides."""
    # Loaded here: they take 60 MB, which a data set without factors need not pay.
    from scipy.sparse import csr_matrix  # type: ignore[import-untyped]
    from sklearn.utils.extmath import randomized_svd

    num_users, num_items = len(inputs.users), len(inputs.items)
    pairs = np.concatenate([inputs.events[name].pairs(num_items) for name in spec.lists])
    shape = (num_users, num_items)
    rows, columns = pairs // max(num_items, 1), pairs % max(num_items, 1)
    degree = np.sqrt(
        np.bincount(rows, minlength=num_users)[rows] * np.bincount(columns, minlength=num_items)[columns]
    )
    matrix = csr_matrix((1.0 / degree, (rows, columns)), shape=shape)
    width = min(spec.width, max(1, min(shape) - 1))
    user, item = np.zeros((num_users, spec.width)), np.zeros((num_items, spec.width))
    if len(pairs):
        left, sizes, right = randomized_svd(matrix, width, random_state=0)
        user[:, :width], item[:, :width] = left * np.sqrt(sizes), right.T * np.sqrt(sizes)
    # Vectors of unit RMS have dot products of size sqrt(width); a fourth root on each side brings that to 1.
    balance = float(spec.width) ** 0.25
    made = Made()
    for entity, vectors, table in ((Entity.USER, user, inputs.users), (Entity.ITEM, item, inputs.items)):
        made.features.append(_vector(f"{spec.name}_{entity}", entity, vectors, table.train_rows, balance))
    made.pairs.append(DotPair(name=f"{spec.name}.dot", left=f"{spec.name}_user", right=f"{spec.name}_item"))
    return made


def _vector(
    name: str, entity: Entity, vectors: NDArray[np.float64], train_rows: Ints, balance: float
) -> MadeFeature:
    """(n, width) numbers with one common scale; the clip is wide so that dot products stay linear."""
    mass = np.repeat(train_rows.astype(np.float64), vectors.shape[1])
    encoder = zero_preserving(weighted_rms(vectors.reshape(-1), mass) * balance, clip=64.0)
    feature = NumericFeature(
        name=name,
        entity=entity,
        source="statistic",
        encoder=name,
        width=vectors.shape[1],
        description="factors of histories",
    )
    return MadeFeature(feature, no_ints(len(vectors)), standardise(vectors, encoder), encoder)
