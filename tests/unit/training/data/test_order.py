"""Statistics by the order of rows, and times that only count steps."""

import numpy as np
import pytest
import yaml

from service.contract.schema import Entity
from training.data.dataset import RowReader
from training.data.errors import DescriptionError, LeakError
from training.data.prepare import prepare
from training.data.source import parse_description
from training.data.statistics import period_of

KEYS = [{"key": ["user_id"]}, {"key": ["item_id"]}, {"key": ["user_id", "domain"], "parent": True}]


@pytest.fixture
def stepped(description):
    description["columns"]["time"] = {"column": "time_ms", "unit": "step"}
    description["statistics"] = {"snapshot": "order", "smoothing": 2, "keys": KEYS}
    description["split"] = {"allow_overlap": True}
    return description


def _log(rng, n=240):
    return [
        {
            "user_id": f"u{rng.integers(8)}",
            "item_id": f"i{rng.integers(12)}",
            "domain": f"d{rng.integers(3)}",
            "tab": "a",
            "label": int(rng.integers(2)),
            "time_ms": int(step),
            "split": str(rng.choice(["train", "train", "train", "valid", "test"])),
        }
        for step in np.sort(rng.integers(1, 4, n))
    ]


def test_each_position_is_a_period_of_its_own():
    times, positions = np.array([5, 5, 5]), np.array([7, 9, 10])
    assert period_of(times, positions, "order", 0.0).tolist() == [7, 9, 10]
    assert period_of(times, positions, "row", 0.0).tolist() == [5, 5, 5]


def test_a_train_row_counts_the_train_rows_written_before_it(stepped, write, tmp_path):
    """Against a plain loop over the rows; scales are undone by the ratio to the largest value."""
    log = _log(np.random.default_rng(5))
    train = [row for row in log if row["split"] == "train"]
    p, a = np.mean([row["label"] for row in train]), 2.0
    expected = {"user_id": [], "item_id": []}
    for name, found in expected.items():
        for place, row in enumerate(train):
            past = [other["label"] for other in train[:place] if other[name] == row[name]]
            n, c = len(past), sum(past)
            rate = (c + a * p) / (n + a)
            lift = np.log(rate / (1 - rate)) - np.log(p / (1 - p)) if n else 0.0
            found.append((np.log(1 + n), lift))

    prepared = prepare(write(stepped, log=log), tmp_path / "out")

    batch = next(RowReader(prepared, "train").batches(1000))
    for entity, floats in ((Entity.USER, batch.user_floats), (Entity.ITEM, batch.item_floats)):
        names = prepared.stat_columns(entity)
        columns = [prepared.layout(entity).slot(name, "values").start for name in names]
        wanted = np.array(expected[f"{entity}_id"])
        np.testing.assert_allclose(
            floats[:, columns], wanted / np.sqrt((wanted**2).mean(axis=0)), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_no_row_knows_its_own_label_a_later_one_or_one_of_valid_and_test(stepped, write, tmp_path, split):
    """Labels are turned over from some row on; numbers of rows before it must stay."""
    log = _log(np.random.default_rng(6))
    # Turning a train label and its opposite keeps the base rate, on which every number rests.
    places = [i for i, row in enumerate(log) if row["split"] == split]
    half = [i for i in places if i >= 120]
    one = next(i for i in half if log[i]["label"] == 1)
    zero = next(i for i in half if log[i]["label"] == 0)
    changed = [dict(row, label=1 - row["label"]) if i in (one, zero) else row for i, row in enumerate(log)]

    before = prepare(write(stepped, "a", log=log), tmp_path / "out_a")
    after = prepare(write(stepped, "b", log=changed), tmp_path / "out_b")

    train = np.array([i for i, row in enumerate(log) if row["split"] == "train"])
    safe = train <= min(one, zero) if split == "train" else np.ones(len(train), bool)
    a, b = (_raw(data, "train", safe) for data in (before, after))
    assert _same_shape(a, b)
    if split != "train":
        for other in ("valid", "test"):
            rows = np.ones(before.rows[other], bool)
            assert _same_shape(_raw(before, other, rows), _raw(after, other, rows))


def _raw(prepared, split, rows):
    batch = next(RowReader(prepared, split).batches(1000))
    return np.concatenate([batch.user_floats, batch.item_floats, batch.pairs], axis=1)[rows]


def _same_shape(a, b):
    """Equal up to one factor per column: scales are taken over all of train."""
    top_a, top_b = np.abs(a).max(axis=0), np.abs(b).max(axis=0)
    return np.allclose(a * top_b, b * top_a, rtol=1e-4, atol=1e-5)


def test_order_of_a_log_out_of_time_order_is_refused(stepped, write, tmp_path, rows):
    rows[3]["time_ms"] = -1

    with pytest.raises(LeakError, match="'order' needs train rows in time order, but row 3 is earlier"):
        prepare(write(stepped, log=rows), tmp_path / "out")


def test_order_is_checked_across_files(stepped, write, tmp_path, rows):
    stepped["interactions"] = ["b.parquet", "a.parquet"]

    with pytest.raises(LeakError, match="but row 4 is earlier than the one before it; sort the log"):
        prepare(write(stepped, a=rows[:3], b=rows[3:]), tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"statistics": {"snapshot": "1d", "keys": KEYS}}, "'1d', but the time column counts steps; allowed"),
        (
            {
                "features": [
                    {"name": "h", "entity": "context", "kind": "categorical", "column": {"from_time": "hour"}}
                ]
            },
            "'h' wants the hour, but the time column counts steps",
        ),
    ],
    ids=["snapshot", "hour"],
)
def test_steps_have_no_clock(stepped, change, said):
    stepped["statistics"] = {}
    with pytest.raises(DescriptionError, match=said):
        parse_description(yaml.safe_dump(stepped | change))
