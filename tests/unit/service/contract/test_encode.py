"""The encoder: ids always in range, one spelling for one value, hashes pinned to xxhash itself."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.contract.encode import EntityEncoder
from service.contract.errors import EncodeError
from service.contract.layout import entity_layout
from service.contract.schema import BucketiseEncoder, Entity, HashEncoder, StandardiseEncoder
from service.contract.values import bucket_id, canonical, hash_id, standardise
from service.features.ids import id_limits
from tests.support.bundles import make_schema

SCHEMA = make_schema()
ENCODERS = {entity: EntityEncoder(SCHEMA, entity) for entity in Entity}

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=6) | st.dictionaries(st.sampled_from(["ids", "weights", "item"]), inner)
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(
    entity=st.sampled_from(list(Entity)), data=st.data(), values=st.lists(anything, min_size=1, max_size=3)
)
def test_ids_stay_in_range_and_numbers_finite_for_any_input(entity, data, values):
    encoder = ENCODERS[entity]
    name = data.draw(st.sampled_from(sorted(encoder.feature_names)))
    try:
        block = encoder.encode({name: values}, len(values))
    except EncodeError:
        return
    limits = id_limits(SCHEMA, encoder.layout)
    assert (block.ints >= 0).all()
    assert (block.ints < limits).all()
    assert np.isfinite(block.floats).all()


@pytest.mark.parametrize("same", [["7", 7, np.int64(7), np.int8(7)], ["true", True, np.bool_(True)]])
def test_one_value_has_one_spelling(same):
    assert len({canonical(value) for value in same}) == 1


def test_a_numpy_column_encodes_as_the_list_from_json():
    encoder = ENCODERS[Entity.ITEM]
    column = np.array([3, 5, 900])
    from_table = encoder.encode({"item_id": column, "tag": column, "price": column.astype(np.float32)}, 3)
    parsed = json.loads("[3, 5, 900]")
    from_request = encoder.encode({"item_id": parsed, "tag": parsed, "price": parsed}, 3)
    np.testing.assert_array_equal(from_table.ints, from_request.ints)
    np.testing.assert_array_equal(from_table.floats, from_request.floats)


def test_hash_is_xxhash64():
    # XXH64 of the empty input with seed 0, from the reference implementation's README
    assert hash_id("", HashEncoder(num_buckets=2**30)) == 2 + 0xEF46DB3751D8E999 % 2**30


@pytest.mark.parametrize(
    ("value", "row"), [(17.9, 2), (18.0, 3), (29.0, 3), (30.0, 4), (1e300, 5), (-1e300, 2)]
)
def test_bucket_counts_boundaries_not_above_the_value(value, row):
    assert bucket_id(value, BucketiseEncoder(boundaries=(18.0, 30.0, 50.0))) == row


def test_standardise_by_hand():
    encoder = StandardiseEncoder(mean=1.0, std=2.0, clip=3.0)
    values = standardise(np.array([5.0, 1.0, np.nan, 1e308, -1e308]), encoder)
    np.testing.assert_array_equal(values, np.array([2, 0, 0, 3, -3], np.float32))


def test_history_keeps_the_newest_events_and_pads_at_the_end():
    encoder = ENCODERS[Entity.USER]
    events = [{"item": f"i{n}"} for n in range(6)]
    long, short = encoder.encode({"history": [events, events[:1]]}, 2).ints[
        :, encoder.layout.slot("history", "item").columns
    ]
    assert long.tolist() == [2 + 2, 2 + 3, 2 + 4, 2 + 5]
    assert short.tolist() == [2, 0, 0, 0]


@pytest.mark.parametrize(
    ("entity", "feature", "value", "message"),
    [
        (Entity.ITEM, "colour", "red", "unknown item feature; known are: item_id, price, tag, vector"),
        (Entity.ITEM, "price", "1", "row 0: expected a finite number or null, got '1'"),
        (Entity.ITEM, "price", float("inf"), "expected a finite number"),
        (Entity.ITEM, "vector", [1, 2], "expected 3 numbers, got 2"),
        (Entity.ITEM, "tag", 1.5, "expected a string, an integer, true, false or null, got 1.5"),
        (Entity.USER, "age", "old", "expected a finite number or null, got 'old'"),
        (Entity.USER, "tastes", "home", "expected a list of ids, got 'home'"),
        (Entity.USER, "tastes", {"ids": ["home"], "weights": [1, 2]}, "expected 1 x 1 finite weights"),
        (Entity.USER, "tastes", {"weights": []}, "expected keys 'ids' and 'weights'"),
        (Entity.USER, "history", {"item": 1}, "expected a list of events"),
        (Entity.USER, "history", [1], "expected events as objects, got 1"),
        (Entity.USER, "history", [{"x": 1}], "unknown event field ['x']; known are ['domain', 'item']"),
    ],
)
def test_refusals_name_the_value_and_what_is_allowed(entity, feature, value, message):
    with pytest.raises(EncodeError) as caught:
        ENCODERS[entity].encode({feature: [value]}, 1)
    assert message in str(caught.value)


def test_columns_of_another_length_are_refused():
    with pytest.raises(EncodeError, match="has 2 values for 3 rows"):
        ENCODERS[Entity.ITEM].encode({"tag": [1, 2]}, 3)


@pytest.mark.parametrize("entity", list(Entity))
def test_layout_covers_each_vector_without_gap_or_overlap(entity):
    layout = entity_layout(SCHEMA, entity)
    for block, width in (("int", layout.int_width), ("float", layout.float_width)):
        columns = [
            c
            for slot in layout.slots
            if slot.block == block
            for c in range(slot.start, slot.start + slot.size)
        ]
        assert sorted(columns) == list(range(width))


def test_an_entity_that_is_not_stored_has_the_unknown_id_and_missing_features():
    layout = entity_layout(SCHEMA, Entity.USER)
    assert layout.default_ints[layout.slot("user_id").start] == 1
    assert layout.default_ints.sum() == 1
    assert not layout.default_floats.any()
