"""Whole columns give the ids that the service's encoder gives value by value."""

import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from service.contract.encode import EntityEncoder
from service.contract.schema import Entity
from training.data.base_schema import base_schema
from training.data.encode_table import TableEncoder
from training.data.errors import TableError
from training.data.fit import Fitter
from training.data.source import parse_description

FEATURES = [
    {
        "name": "user_id",
        "entity": "user",
        "kind": "categorical",
        "encoder": {"type": "vocabulary", "min_count": 2},
    },
    {
        "name": "hashed",
        "entity": "user",
        "kind": "categorical",
        "encoder": {"type": "hash", "num_buckets": 5, "seed": 3},
    },
    {"name": "home", "entity": "user", "kind": "categorical", "encoder": "domain"},
    {
        "name": "age",
        "entity": "user",
        "kind": "numeric",
        "encoder": {"type": "standardise", "transform": "log1p"},
    },
    {
        "name": "bin",
        "entity": "user",
        "kind": "numeric",
        "encoder": {"type": "bucketise", "num_quantiles": 3},
    },
    {"name": "vector", "entity": "user", "kind": "numeric", "width": 2},
    {"name": "likes", "entity": "user", "kind": "multi", "max_len": 2, "weights": "mass"},
    {"name": "cut", "entity": "user", "kind": "multi", "max_len": 2, "column": "text", "separator": "|"},
    {
        "name": "past",
        "entity": "user",
        "kind": "sequence",
        "max_len": 3,
        "fields": [
            {"name": "item", "column": "past_items", "encoder": {"type": "hash", "num_buckets": 9}},
            {"name": "place", "column": "past_places", "encoder": "domain"},
        ],
    },
]
DESCRIPTION = parse_description(
    yaml.safe_dump(
        {
            "name": "wide",
            "interactions": "x",
            "columns": {
                "user": "user_id",
                "item": "i",
                "domain": {"column": "d", "prefix": "tag_"},
                "label": "y",
                "time": "t",
                "split": "s",
            },
            "features": FEATURES,
        }
    )
)
DOMAINS = ("tag_1", "tag_2")

small = st.integers(0, 4)
number = st.none() | st.floats(-50, 50, allow_nan=False)
events = st.lists(st.tuples(st.none() | small, st.none() | small), max_size=5)
weighted = st.none() | st.lists(st.tuples(small, st.floats(-2, 2)), max_size=4)
rows = st.lists(
    st.tuples(
        small, st.none() | small, number, number, st.none() | st.tuples(number, number), weighted, events
    ),
    min_size=1,
    max_size=8,
)


def _columns(records):
    user, home, age, wide_bin, vector, likes, past = zip(*records, strict=True)
    integers = pa.list_(pa.int64())
    return {
        "user_id": pa.array(user),
        "hashed": pa.array([None if h is None else f"h{h}" for h in home], pa.string()),
        "home": pa.array(home, pa.float64()),
        "age": pa.array(age, pa.float64()),
        "bin": pa.array(wide_bin, pa.float32()),
        "vector": pa.array([None if v is None else list(v) for v in vector], pa.list_(pa.float64())),
        "likes": pa.array([None if v is None else [i for i, _ in v] for v in likes], integers),
        "mass": pa.array([None if v is None else [w for _, w in v] for v in likes], pa.list_(pa.float64())),
        "text": pa.array([None if v is None else "|".join(str(i) for i, _ in v) for v in likes], pa.string()),
        "past_items": pa.array([[i for i, _ in p] for p in past], integers),
        "past_places": pa.array([[d for _, d in p] for p in past], integers),
    }


def _request(records):
    """The same rows as a caller of the service would send them."""
    user, home, age, wide_bin, vector, likes, past = zip(*records, strict=True)

    def place(d):
        return None if d is None else f"tag_{d}"

    return {
        "user_id": list(user),
        "hashed": [None if h is None else f"h{h}" for h in home],
        "home": [place(h) for h in home],
        "age": list(age),
        "bin": [None if b is None else float(np.float32(b)) for b in wide_bin],
        "vector": [v if v is None else list(v) for v in vector],
        "likes": [
            None if v is None else {"ids": [i for i, _ in v], "weights": [w for _, w in v]} for v in likes
        ],
        "cut": [None if v is None else [str(i) for i, _ in v] for v in likes],
        "past": [[{"item": i, "place": place(d)} for i, d in p] for p in past],
    }


@settings(deadline=None, max_examples=60)
@given(records=rows)
def test_table_and_request_are_encoded_alike(records):
    columns = _columns(records)
    fitter = Fitter(DESCRIPTION)
    for feature in DESCRIPTION.features:
        fitter.add(feature, columns.__getitem__, np.ones(len(records)))
    schema = base_schema(DESCRIPTION, DOMAINS, fitter.encoders())

    found = TableEncoder(schema, Entity.USER, DESCRIPTION).encode(columns.__getitem__, len(records))

    expected = EntityEncoder(schema, Entity.USER).encode(_request(records), len(records))
    assert np.array_equal(found.ints, expected.ints)
    assert np.array_equal(found.floats, expected.floats)


def test_only_rows_with_weight_reach_an_encoder():
    records = [(u, u, float(u), float(u), (u, u), [(u, 1.0)], [(u, 1)]) for u in (1, 2, 3, 3)]
    columns = _columns(records)
    fitter = Fitter(DESCRIPTION)
    for feature in DESCRIPTION.features:
        fitter.add(feature, columns.__getitem__, np.array([1.0, 2.0, 0.0, 0.0]))

    encoders = fitter.encoders()

    assert encoders["user_id"].values == ("2",)
    assert encoders["likes"].values == ("2", "1")
    logs = np.log1p([1, 2, 2])
    assert encoders["age"].mean == pytest.approx(logs.mean())
    assert encoders["age"].std == pytest.approx(logs.std())
    assert encoders["bin"].boundaries == (1.0, 2.0)


def test_thinned_quantiles_stay_close(monkeypatch):
    monkeypatch.setattr("training.data.fit._SAMPLE_VALUES", 500)
    fitter = Fitter(DESCRIPTION)
    feature = DESCRIPTION.feature("bin")
    for start in range(0, 9000, 100):
        fitter.add(feature, {"bin": pa.array(range(start, start + 100))}.__getitem__, np.ones(100))

    assert fitter.encoders()["bin"].boundaries == pytest.approx((3000, 6000), abs=60)


WRONG = [
    ("home", pa.array([1.5]), "fractional numbers cannot be categories"),
    ("home", pa.array([[1]]), "cannot hold categories"),
    ("age", pa.array(["x"]), "type string is no number"),
    ("age", pa.array([float("inf")]), "row 0 is infinite"),
    ("vector", pa.array([[1.0]]), "row 0 has 1 numbers; width is 2"),
    ("likes", pa.array([1]), "expected a list column, got int64"),
    ("mass", pa.array([[1.0, 2.0]]), "parallel lists differ in row 0: 1 and 2"),
    ("mass", pa.array([[None]], pa.list_(pa.float64())), "a weight is missing"),
    ("text", pa.array([1]), "separator needs a string column"),
    ("past_places", pa.array([[1, 2]]), "parallel lists differ in row 0"),
]


@pytest.mark.parametrize(("column", "values", "said"), WRONG)
def test_wrong_columns_are_named(column, values, said):
    records = [(1, 1, 1.0, 1.0, (1, 1), [(1, 1.0)], [(1, 1)])]
    fitter = Fitter(DESCRIPTION)
    columns = _columns(records)
    for feature in DESCRIPTION.features:
        fitter.add(feature, columns.__getitem__, np.ones(1))
    schema = base_schema(DESCRIPTION, DOMAINS, fitter.encoders())
    columns[column] = values

    with pytest.raises(TableError, match=said):
        TableEncoder(schema, Entity.USER, DESCRIPTION).encode(columns.__getitem__, 1)
