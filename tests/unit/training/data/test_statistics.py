"""Statistics as of each row, by hand, and the promise that the future never reaches the past."""

import copy
import math
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from service.contract.schema import Entity
from training.data.dataset import RowReader
from training.data.prepare import prepare
from training.data.statistics import measures

DAY_MS = 86_400_000
KEYS = [{"key": ["user_id"]}, {"key": ["user_id", "tab"]}]


def _logit(p):
    return math.log(p / (1 - p))


def _raw(prepared, split):
    """Statistics of each row, scale undone: user numbers, then the user x tab lookup."""
    batch = next(RowReader(prepared, split).batches(100))
    layout = prepared.layout(Entity.USER)
    names = prepared.stat_columns(Entity.USER)
    places = [layout.slot(name, "values").start for name in names]
    scales = [prepared.schema.encoder(name).std for name in names]
    return batch.user_floats[:, places] * scales, batch


def test_as_of_values_by_hand(rows, description, write, tmp_path):
    description["statistics"] = {"keys": KEYS, "smoothing": 2}

    prepared = prepare(write(description, log=rows), tmp_path / "out")

    rate = 3 / 5
    lift = _logit((1 + 2 * rate) / (2 + 2)) - _logit(rate)
    assert prepared.stat_columns(Entity.USER) == ["user_id_count", "user_id_rate_label"]
    train, batch = _raw(prepared, "train")
    v_lift = _logit((0 + 2 * rate) / (1 + 2)) - _logit(rate)
    # Day 0 knows nothing, not even its other rows; day 1 knows day 0: u has 2 rows and 1 click, v 1 and 0.
    expected = [[0, 0], [0, 0], [0, 0], [math.log(3), lift], [math.log(2), v_lift]]
    assert train == pytest.approx(np.array(expected), abs=1e-6)
    # The root mean square over the five train rows is the scale.
    scale = math.sqrt((math.log(3) ** 2 + math.log(2) ** 2) / 5)
    assert prepared.schema.encoder("user_id_count").std == pytest.approx(scale)
    assert prepared.schema.encoder("user_id_count").mean == 0
    # user x tab: on day 1, u in tab a had 1 row and 1 click; v in tab b had none.
    up = _logit((1 + 2 * rate) / (1 + 2)) - _logit(rate)
    assert batch.pairs[:3].tolist() == [[0, 0]] * 3
    assert batch.pairs[4].tolist() == [0, 0]
    assert batch.pairs[3, 0] == pytest.approx(math.log(2) / (math.log(2) / math.sqrt(5)))
    assert batch.pairs[3, 1] == pytest.approx(up / (up / math.sqrt(5)))
    # Valid is frozen at the end of train: u has 3 rows and 2 clicks.
    valid, _ = _raw(prepared, "valid")
    frozen = [math.log(4), _logit((2 + 2 * rate) / (3 + 2)) - _logit(rate)]
    assert valid == pytest.approx(np.array([frozen]), abs=1e-6)
    # An unknown user has exactly nothing.
    test, batch = _raw(prepared, "test")
    assert test.tolist() == [[0, 0]]
    assert batch.pairs.tolist() == [[0, 0]]


def test_parent_shrinks_a_pair_to_its_holder(rows, description, write, tmp_path):
    description["statistics"] = {"keys": [{"key": ["user_id", "tab"], "parent": True}], "smoothing": 2}

    prepared = prepare(write(description, log=rows), tmp_path / "out")

    own = (1 + 2 * 0.6) / (2 + 2)
    expected = _logit((1 + 2 * own) / (1 + 2)) - _logit(own)
    lift = next(RowReader(prepared, "train").batches(9)).pairs[3, 1]
    # Only row 3 has a non-zero value, so the scale is |value| / sqrt(5 rows).
    assert lift == pytest.approx(math.copysign(math.sqrt(5), expected), rel=1e-5)


def test_row_snapshot_sees_earlier_rows_of_the_same_day(rows, description, write, tmp_path):
    for second, row in enumerate(rows):
        row["time_ms"] += second * 1000
    rows[1]["time_ms"] = rows[0]["time_ms"]
    description["statistics"] = {"keys": [{"key": ["user_id"]}, {"key": ["item_id"]}], "snapshot": "row"}

    prepared = prepare(write(description, log=rows), tmp_path / "out")

    # Rows 0 and 1 share a moment: neither sees the other. Row 3 is user u's third.
    counts = _raw(prepared, "train")[0][:, 0]
    assert np.expm1(counts) == pytest.approx([0, 0, 0, 2, 1], abs=1e-5)


def test_rates_of_zero_and_one_stay_finite_and_nothing_is_zero():
    found = measures(np.array([[0, 0, 0], [5, 5, 0]]), np.array([1.0, 0.0]), 3.0)

    assert found[0].tolist() == [0, 0, 0]
    assert np.isfinite(found).all()


def test_attribute_statistics_reach_every_item_of_the_author(rows, description, write, tmp_path):
    description["items"] = {"file": "items.parquet", "key": "item_id"}
    description["features"].append({"name": "author", "entity": "item", "kind": "categorical"})
    description["statistics"] = {"keys": [{"key": ["author"]}, {"key": ["author", "tab"], "top": 1}]}
    items = [{"item_id": i, "author": "x"} for i in ("i", "j", "k")] + [{"item_id": "l", "author": None}]

    prepared = prepare(write(description, log=rows, items=items), tmp_path / "out")

    stored, layout = prepared.entities[Entity.ITEM], prepared.layout(Entity.ITEM)
    counts = stored.floats[:, layout.slot("author_count", "values").start]
    assert prepared.entity_ids(Entity.ITEM) == ["i", "j", "k", "l"]
    assert counts[0] == counts[1] == counts[2] > counts[3] == 0
    tabs = prepared.schema.encoder("tab").values
    assert stored.ints[:, layout.slot("author_x_tab").start].tolist() == [2 + tabs.index("a")] * 3 + [0]
    assert prepared.info["statistics"]["author_x_tab"]["rows_kept_by_top"] == 0.6


def test_a_bucketised_number_may_hold_a_pair(rows, description, write, tmp_path):
    description["items"] = {"file": "items.parquet", "key": "item_id"}
    bucketise = {"type": "bucketise", "boundaries": [10.0]}
    description["features"].append(
        {"name": "price", "entity": "item", "kind": "numeric", "encoder": bucketise}
    )
    description["statistics"] = {"keys": [{"key": ["price"]}, {"key": ["price", "tab"]}]}
    prices = {"i": 3.0, "j": 11.0, "k": 5.0, "l": None}
    items = [{"item_id": item, "price": price} for item, price in prices.items()]

    prepared = prepare(write(description, log=rows, items=items), tmp_path / "out")

    # Train shows i (cheap, like k) three times, all in tab a, and j twice, both in tab b.
    stored, layout = prepared.entities[Entity.ITEM], prepared.layout(Entity.ITEM)
    counts = stored.floats[:, layout.slot("price_count", "values").start]
    scale = prepared.schema.encoder("price_count").std
    assert np.expm1(counts * scale) == pytest.approx([3, 2, 3, 0], abs=1e-5)
    a, b = (2 + prepared.schema.encoder("tab").values.index(tab) for tab in "ab")
    assert stored.ints[:, layout.slot("price_x_tab").start].tolist() == [a, b, a, 0]


log_rows = st.lists(
    st.tuples(st.sampled_from("uvw"), st.sampled_from("ij"), st.integers(0, 3), st.sampled_from("ab")),
    min_size=6,
    max_size=14,
)


@settings(max_examples=12, deadline=None)
@given(records=log_rows, bits=st.integers(0, 2**14 - 1), data=st.data())
def test_labels_of_later_or_same_day_rows_never_reach_a_row(records, bits, data):
    """Two labels trade places, which keeps the train rate: rows up to that day keep every raw statistic."""
    records = sorted(records, key=lambda r: r[2])
    labels = [bits >> i & 1 for i in range(len(records))]
    labels[0], labels[1] = 0, 1
    ones = [i for i, label in enumerate(labels) if label]
    zeros = [i for i, label in enumerate(labels) if not label]
    a, b = data.draw(st.sampled_from(ones)), data.draw(st.sampled_from(zeros))
    swapped = labels.copy()
    swapped[a], swapped[b] = 0, 1
    first_day = min(records[a][2], records[b][2])
    untouched = [i for i, record in enumerate(records) if record[2] <= first_day]

    before, after = (_prepared_statistics(records, chosen) for chosen in (labels, swapped))

    assert before[untouched] == pytest.approx(after[untouched], abs=1e-5)


def _prepared_statistics(records, labels):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = [
            {
                "user_id": u,
                "item_id": i,
                "tab": t,
                "domain": "d",
                "label": y,
                "time_ms": d * DAY_MS,
                "split": "train",
            }
            for (u, i, d, t), y in zip(records, labels, strict=True)
        ]
        for day, split in ((8, "valid"), (9, "test")):
            table.append({**table[-1], "time_ms": day * DAY_MS, "split": split, "label": 0})
        pq.write_table(pa.Table.from_pylist(table), folder / "log.parquet")
        description = copy.deepcopy(_DESCRIPTION)
        (folder / "dataset.yaml").write_text(yaml.safe_dump(description))
        prepared = prepare(folder, folder / "out")
        raw, batch = _raw(prepared, "train")
        holder = prepared.schema.feature("item_id_x_tab")
        assert holder.num_weights == 2
        # Counts decide which pair numbers are 0; their scale moves with the data, their sign cannot.
        return np.concatenate([raw, np.sign(batch.pairs)], axis=1)


_DESCRIPTION = {
    "name": "drawn",
    "interactions": "log.parquet",
    "columns": {
        "user": "user_id",
        "item": "item_id",
        "domain": "domain",
        "label": "label",
        "time": "time_ms",
        "split": "split",
    },
    "features": [
        {"name": "user_id", "entity": "user", "kind": "categorical"},
        {"name": "item_id", "entity": "item", "kind": "categorical"},
        {"name": "tab", "entity": "context", "kind": "categorical"},
    ],
    "statistics": {"keys": [{"key": ["user_id"]}, {"key": ["item_id", "tab"]}], "smoothing": 3},
}
