"""Rows chosen by `where`: which pass, what is counted, and what is refused."""

import numpy as np
import pyarrow as pa
import pytest
import yaml

from training.data.dataset import RowReader
from training.data.describe import describe_prepared, describe_source
from training.data.errors import DescriptionError, TableError
from training.data.log import Log
from training.data.prepare import prepare
from training.data.source import open_data, parse_description
from training.data.where import passing

TABLE = pa.table(
    {
        "core": pa.array([True, False, None, True, True]),
        "tab": pa.array(["a", "a", "b", None, "c"]),
        "kind": pa.array(["a", "a", "b", None, "c"]).dictionary_encode(),
        "size": pa.array([1, 2, 3, 1, 300], pa.int16()),
        "small": pa.array([1, 2, 3, 4, 5], pa.uint8()),
        "price": pa.array([0.5, 1.0, None, 2.0, 0.5]),
    }
)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"core": True}, [0, 3, 4]),
        ({"core": False}, [1]),
        ({"tab": "a"}, [0, 1]),
        ({"tab": ("a", "c", "nowhere")}, [0, 1, 4]),
        ({"kind": ("b", "c")}, [2, 4]),
        ({"size": (1, 300)}, [0, 3, 4]),
        ({"small": 5}, [4]),
        ({"price": (0.5, 1)}, [0, 1, 4]),
        ({"core": True, "tab": ("a", "b")}, [0]),
    ],
    ids=str,
)
def test_rows_pass_that_hold_an_allowed_value_in_every_column(where, expected):
    assert np.flatnonzero(passing(TABLE, where)).tolist() == expected


@pytest.mark.parametrize(
    ("column", "value", "kind"),
    [
        ("core", 1, "bool"),
        ("core", "true", "bool"),
        ("size", True, "int16"),
        ("size", "1", "int16"),
        ("size", 1.5, "int16"),
        ("size", 40_000, "int16"),
        ("small", -1, "uint8"),
        ("tab", 1, "string"),
        ("kind", 2, "string"),
        ("price", "0.5", "double"),
    ],
)
def test_a_value_that_the_column_cannot_hold_is_refused(column, value, kind):
    with pytest.raises(DescriptionError, match=f"{value!r} is no value of column '{column}'.* {kind}"):
        passing(TABLE, {column: value})


def test_prepared_rows_are_those_that_pass_and_the_rest_is_counted(description, write, tmp_path, rows):
    """As if the rows left out had never been in the file: domains, entities, statistics and rows agree."""
    description["statistics"] = {"keys": [{"key": ["user_id"]}]}
    kept = [dict(row, core=1) for row in rows]
    left_out = [dict(row, core=0, user_id="z", domain="d7", label=1, tab="q") for row in rows[:3]]
    plain = prepare(write(description, "plain", log=kept), tmp_path / "out_plain")
    description["where"] = {"core": 1}
    # In front, between and behind, so that batches hold both kinds.
    mixed = [left_out[0], *kept[:2], left_out[1], *kept[2:], left_out[2]]
    source = open_data(write(description, "mixed", log=mixed))

    prepared = prepare(source, tmp_path / "out_mixed")

    assert prepared.rows == plain.rows == {"train": 5, "valid": 1, "test": 1}
    assert prepared.schema == plain.schema
    assert prepared.base_rate == plain.base_rate == 0.6
    for split in plain.rows:
        a, b = (next(RowReader(data, split).batches(10)) for data in (prepared, plain))
        assert all(np.array_equal(getattr(a, n), getattr(b, n), equal_nan=True) for n in a.__slots__)
    assert prepared.info["where"] == {"conditions": {"core": 1}, "rows_left_out": 3}
    assert plain.info["where"] == {"conditions": {}, "rows_left_out": 0}
    assert describe_prepared(prepared)["where"]["rows_left_out"] == 3
    assert describe_source(source)["where"] == {"core": 1}
    assert describe_source(source)["rows"] == 10


def test_several_files_and_batches_are_filtered_as_they_are_read(description, write, rows):
    description["where"] = {"core": [2, 3]}
    description["interactions"] = ["a.parquet", "b.parquet"]
    logs = {name: [dict(row, core=core) for row in rows for core in (1, 2)] for name in ("a", "b")}
    seen = []

    log = Log(open_data(write(description, **logs)))
    batches = list(log.batches(["label"], progress=lambda *call: seen.append(call)))

    assert np.concatenate([b.positions for b in batches]).tolist() == list(range(1, 28, 2))
    assert seen == [("read", 14, 28), ("read", 28, 28)]


def test_a_condition_that_nothing_meets_is_refused(description, write, tmp_path, rows):
    description["where"] = {"tab": ["x", "y"], "domain": "d0"}

    with pytest.raises(TableError, match=r"none of 7 rows has tab in \['x', 'y'\] and domain in \['d0'\]"):
        prepare(write(description, log=rows), tmp_path / "out")


def test_an_unknown_column_is_refused_before_rows_are_read(description, write, tmp_path, rows):
    description["where"] = {"core": True}

    with pytest.raises(DescriptionError, match=r"no column 'core'; the files have .*'tab'"):
        describe_source(open_data(write(description, log=rows)))
    with pytest.raises(DescriptionError, match="no column 'core'"):
        prepare(write(description, log=rows), tmp_path / "out")


def test_a_value_of_another_type_is_refused(description, write, tmp_path, rows):
    description["where"] = {"tab": 3}

    with pytest.raises(DescriptionError, match="3 is no value of column 'tab', whose type is string"):
        prepare(write(description, log=rows), tmp_path / "out")


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ({"label": 1}, "where: column 'label' is the label; rows cannot be chosen by what followed"),
        ({"dwell": 1}, "where: column 'dwell' is an outcome"),
        ({"tab": []}, "where.tab"),
        ({"tab": {"above": 3}}, "where.tab"),
        ({"tab": None}, "where.tab"),
        (["tab"], "where: Input should be a valid dictionary"),
    ],
)
def test_descriptions_that_cannot_be(description, where, said):
    description["outcomes"] = ["dwell"]
    description["where"] = where

    with pytest.raises(DescriptionError, match=said):
        parse_description(yaml.safe_dump(description))


def test_the_split_column_may_be_any(description, write, tmp_path, rows):
    description["columns"]["split"] = "mine"
    description["split"] = {"allow_overlap": True}
    other = [dict(row, mine=("test", "valid")[i] if i < 2 else "train") for i, row in enumerate(rows)]

    prepared = prepare(write(description, log=other), tmp_path / "out")

    assert prepared.rows == {"train": 5, "valid": 1, "test": 1}
    assert prepared.info["leak_check"]["splits_in_time_order"] is False
