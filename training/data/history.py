"""Aggregates of histories that were recorded before the log starts: lengths, popularity, shares, factors.

One small function per maker, each from flat event lists to encoded columns. All are static: they hold for
every row alike, because the histories precede the log. Every number is divided by its root mean square, so
that 0 stays 0.

Letters: U users, I items, E events.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from service.contract.encode import EncodedBlock
from service.contract.layout import VALUES, entity_layout
from service.contract.schema import (
    FIRST_ID,
    CategoricalFeature,
    Entity,
    FeatureSchema,
    LookupPair,
    MultiFeature,
)
from training.data.columns import lists, numbers
from training.data.entities import EntityTable
from training.data.errors import DescriptionError
from training.data.events import Events, HistoryInputs, entity_number
from training.data.factors import make_factors
from training.data.fit import raw_column
from training.data.made import Made, MadeFeature, multi_block, weighted_rms
from training.data.rasch import make_rasch, rasch_of
from training.data.statistics import clipped, logit
from training.data.table import (
    AggregateSpec,
    DatasetDescription,
    HistoryListSpec,
    NumericSpec,
    PropensitySpec,
    RatioSpec,
    SequenceSpec,
)


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
    for ratio in history.ratios:
        made.features += _ratio(inputs, ratio)
    fits = {spec.name: rasch_of(inputs, spec) for spec in history.rasch}
    for rasch in history.rasch:
        made.extend(make_rasch(inputs, rasch, fits[rasch.name]))
    for factors in history.factors:
        made.extend(make_factors(inputs, factors, fits))
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


def _list_features(inputs: HistoryInputs, entry: HistoryListSpec) -> Iterator[MadeFeature]:
    """Length per user, popularity per item: log(1 + events)."""
    events = inputs.events[entry.feature]
    if entry.length:
        yield entity_number(
            f"{entry.feature}_length",
            Entity.USER,
            np.log1p(events.length.astype(np.float64)),
            inputs.users.train_rows,
            f"log events in {entry.feature}",
        )
    if entry.popularity:
        counts = np.bincount(events.known()[1], minlength=len(inputs.items))
        yield entity_number(
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
    return Made([entity_number(name, Entity.USER, mean, inputs.users.train_rows, text)])


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
    base, a = clipped(np.array([rate])), spec.item_smoothing or spec.smoothing
    seen = np.bincount(item, minlength=num_items)
    taken = np.bincount(item, weights=chosen, minlength=num_items)
    item_rate = clipped((taken + a * base) / (seen + a))
    lift = np.where(seen > 0, logit(item_rate) - logit(base), 0.0)
    surplus = np.bincount(user, weights=chosen - item_rate[item], minlength=num_users)
    adjusted = surplus / (np.bincount(user, minlength=num_users) + spec.smoothing)
    text = f"{spec.chosen} given {spec.among}"
    yield entity_number(f"{spec.name}_user", Entity.USER, adjusted, inputs.users.train_rows, text)
    yield entity_number(f"{spec.name}_item", Entity.ITEM, lift, inputs.items.train_rows, text)


def _ratio(inputs: HistoryInputs, spec: RatioSpec) -> Iterator[MadeFeature]:
    """Logs of how much more often an item was chosen than its share, and a user chose than was shown.

    Item: log((c + a) / (n r + a)) with c events in `chosen`, n in `among`, r the ratio of all events.
    User: log((c + 1) / (min(rows shown, cap) + 2)); a user of whom nothing was recorded has 0.
    """
    chosen, among = inputs.events[spec.chosen], inputs.events[spec.among]
    c, n = (np.bincount(e.known()[1], minlength=len(inputs.items)) for e in (chosen, among))
    expected = n * (c.sum() / max(n.sum(), 1))
    text = f"{spec.chosen} against {spec.among}"
    lift = np.log((c + spec.smoothing) / (expected + spec.smoothing))
    yield entity_number(f"{spec.name}_item", Entity.ITEM, lift, inputs.items.train_rows, text)
    if spec.shown is None:
        return
    feature = inputs.description.feature(spec.shown)
    if not isinstance(feature, NumericSpec):
        raise DescriptionError(f"history.ratios '{spec.name}': '{spec.shown}' is not numeric")
    rows = numbers(inputs.users.columns[raw_column(feature)], f"feature '{spec.shown}'")
    shown = np.minimum(np.nan_to_num(rows), spec.shown_cap)
    ratio = np.where(np.isnan(rows), 0.0, np.log((chosen.length + 1) / (shown + 2)))
    text = f"{spec.chosen} against {spec.shown}"
    yield entity_number(f"{spec.name}_user", Entity.USER, ratio, inputs.users.train_rows, text)
