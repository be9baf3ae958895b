"""Preparing a folder: what is frozen, what is unknown, what is refused."""

import json
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.contract.encode import EntityEncoder
from service.contract.schema import UNKNOWN_ID, Entity
from training.data.dataset import RowReader
from training.data.errors import DescriptionError, LeakError, PreparedError, TableError
from training.data.pairs import pair_values
from training.data.prepare import prepare
from training.data.prepared import PreparedDataset

DAY_MS = 86_400_000


@pytest.fixture
def many(rng_rows):
    """300 rows over six days, users, items, tabs and labels drawn."""
    return rng_rows(300)


@pytest.fixture
def rng_rows():
    def _rows(n):
        rng = np.random.default_rng(3)
        days = np.sort(rng.integers(0, 6, n))
        return [
            {
                "user_id": f"u{rng.integers(20)}" if day < 4 else f"u{rng.integers(25)}",
                "item_id": int(rng.integers(30)),
                "domain": f"d{rng.integers(3)}",
                "tab": "ab"[rng.integers(2)],
                "label": int(rng.integers(2)),
                "time_ms": int(day) * DAY_MS + 3_600_000 * int(rng.integers(24)),
                "split": "train" if day < 4 else ("valid" if day == 4 else "test"),
            }
            for day in days.tolist()
        ]

    return _rows


def _with_everything(description):
    description["statistics"] = {
        "keys": [
            {"key": ["user_id"]},
            {"key": ["item_id"]},
            {"key": ["user_id", "tab"], "parent": True},
            {"key": ["item_id", "domain"]},
        ]
    }
    description["features"].append(
        {"name": "hour", "entity": "context", "kind": "categorical", "column": {"from_time": "hour"}}
    )
    return description


def test_valid_and_test_rows_equal_what_the_service_would_compute(description, write, tmp_path, many):
    prepared = prepare(write(_with_everything(description), log=many), tmp_path / "out")

    for split in ("valid", "test"):
        raw = [row for row in many if row["split"] == split]
        batch = next(RowReader(prepared, split).batches(1000))
        slots = {e: {v: i for i, v in enumerate(prepared.entity_ids(e))} for e in (Entity.USER, Entity.ITEM)}
        user = prepared.entities[Entity.USER].take(
            np.array([slots[Entity.USER].get(r["user_id"], -1) for r in raw])
        )
        item = prepared.entities[Entity.ITEM].take(
            np.array([slots[Entity.ITEM].get(str(r["item_id"]), -1) for r in raw])
        )
        context = EntityEncoder(prepared.schema, Entity.CONTEXT).encode(
            {
                "tab": [r["tab"] for r in raw],
                "hour": [datetime.fromtimestamp(r["time_ms"] / 1000, UTC).hour for r in raw],
            },
            len(raw),
        )
        domain = np.array([prepared.schema.domain_index(r["domain"]) for r in raw], dtype=np.int32)

        assert np.array_equal(batch.user_ints, user.ints)
        assert np.array_equal(batch.user_floats, user.floats)
        assert np.array_equal(batch.item_ints, item.ints)
        assert np.array_equal(batch.item_floats, item.floats)
        assert np.array_equal(batch.context_ints, context.ints)
        assert np.array_equal(batch.pairs, pair_values(prepared.schema, user, context, item, domain))
        assert batch.pairs.any()
        assert batch.label.tolist() == [r["label"] for r in raw]


def test_train_rows_never_carry_the_frozen_maps(description, write, tmp_path, many):
    prepared = prepare(write(_with_everything(description), log=many), tmp_path / "out")

    batch = next(RowReader(prepared, "train").batches(1000))

    for name in ("user_id_x_tab", "item_id_x_domain"):
        entity = prepared.schema.feature(name).entity
        ints, floats = (
            (batch.user_ints, batch.user_floats) if entity == "user" else (batch.item_ints, batch.item_floats)
        )
        assert not ints[:, prepared.layout(entity).slot(name).columns].any()
        assert not floats[:, prepared.layout(entity).slot(name, "weights").columns].any()


def test_unknown_users_items_and_domains(description, write, tmp_path, rows):
    prepared = prepare(write(description, log=rows), tmp_path / "out")

    test = next(RowReader(prepared, "test").batches(9))

    assert prepared.schema.domains == ("d0", "d1")
    assert prepared.info["unknown_domains"] == {"valid": {}, "test": {"d9": 1}}
    assert test.domain.tolist() == [2]
    assert test.user_ints[0, prepared.layout(Entity.USER).slot("user_id").start] == UNKNOWN_ID
    assert test.user_code.tolist() == [2]
    assert np.isnan(test.true_probability).all()
    assert test.weight.tolist() == [1.0]
    assert prepared.rows == {"train": 5, "valid": 1, "test": 1}
    assert prepared.base_rate == pytest.approx(3 / 5)
    assert prepared.feature_time_ms == DAY_MS
    assert prepared.domain_rows["train"] == {"d0": 4, "d1": 1}


def test_entities_of_the_tables_are_known_without_rows(description, write, tmp_path, rows):
    description["users"] = {"file": "users.parquet", "key": "uid", "extra_files": [{"file": "more.parquet"}]}
    description["features"] += [
        {
            "name": "age",
            "entity": "user",
            "kind": "numeric",
            "encoder": {"type": "bucketise", "boundaries": [30]},
        },
        {"name": "city", "entity": "user", "kind": "categorical"},
    ]
    users = [{"uid": u, "age": a} for u, a in (("w", 20.0), ("u", 40.0), ("z", None))]
    more = [{"uid": "u", "city": "x"}, {"uid": "w", "city": "y"}, {"uid": "nobody", "city": "x"}]

    prepared = prepare(write(description, log=rows, users=users, more=more), tmp_path / "out")

    layout, stored = prepared.layout(Entity.USER), prepared.entities[Entity.USER]
    assert prepared.entity_ids(Entity.USER) == ["w", "u", "z", "v"]
    assert stored.ints[:, layout.slot("age").start].tolist() == [2, 3, 0, 0]
    # Only u has train rows, so its city is known; w's is a value that no train row had.
    assert stored.ints[:, layout.slot("city").start].tolist() == [1, 2, 0, 0]
    assert stored.ints[:, layout.slot("user_id").start].tolist() == [1, 2, 1, 3]


def test_columns_of_the_log_give_each_entity_its_latest_train_value(description, write, tmp_path, rows):
    for day, row in enumerate(rows):
        row["age"] = day * 10
    description["features"].append({"name": "age", "entity": "user", "kind": "categorical"})

    prepared = prepare(write(description, log=rows), tmp_path / "out")

    values = prepared.schema.encoder("age").values
    ids = prepared.entities[Entity.USER].ints[:, prepared.layout(Entity.USER).slot("age").start]
    assert [values[i - 2] for i in ids] == ["30", "40"]


def test_cuts_by_share_and_by_moment_agree(description, write, tmp_path, many):
    del description["columns"]["split"]
    description["split"] = {"valid_fraction": 0.2, "test_fraction": 0.1}
    by_share = prepare(write(description, log=many), tmp_path / "a")
    cuts = by_share.info["cuts"]
    description["split"] = {"valid_from": cuts["valid_from_ms"], "test_from": cuts["test_from_ms"]}
    by_moment = prepare(write(description, folder="b", log=many), tmp_path / "b")

    assert by_moment.rows == by_share.rows
    assert abs(by_share.rows["test"] - 30) <= 12
    assert by_share.info["times_ms"]["train"][1] < by_share.info["times_ms"]["valid"][0]
    assert by_share.data_digest != by_moment.data_digest


def test_iso_moments_are_local(description, write, tmp_path, many):
    del description["columns"]["split"]
    description["columns"]["time"] = {"column": "time_ms", "timezone_offset_h": 8}
    description["split"] = {"valid_from": "1970-01-05", "test_from": "1970-01-06T00:00:00+00:00"}

    cuts = prepare(write(description, log=many), tmp_path / "out").info["cuts"]

    assert cuts == {"valid_from_ms": 4 * DAY_MS - 8 * 3_600_000, "test_from_ms": 5 * DAY_MS}


@pytest.mark.parametrize(
    ("rule", "said"), [(["x", "1970-01-02"], "'x' is no moment"), ([5, 4], "must be before")]
)
def test_moments_that_cannot_be(description, write, tmp_path, rows, rule, said):
    del description["columns"]["split"]
    description["split"] = dict(zip(("valid_from", "test_from"), rule, strict=True))

    with pytest.raises(DescriptionError, match=said):
        prepare(write(description, log=rows), tmp_path / "out")


def test_overlapping_splits_are_refused_unless_allowed(description, write, tmp_path, rows):
    rows[0]["time_ms"] = 5 * DAY_MS
    with pytest.raises(LeakError, match="train reaches to 432000000 ms, after valid starts at 172800000 ms"):
        prepare(write(description, log=rows), tmp_path / "out")
    description["split"] = {"allow_overlap": True}

    prepared = prepare(write(description, log=rows), tmp_path / "out")

    assert prepared.info["leak_check"]["splits_in_time_order"] is False


@pytest.mark.parametrize("kind", ["categorical", "numeric"])
@pytest.mark.parametrize("noise", [0, 1])
def test_an_input_that_tells_the_label_is_refused(description, write, tmp_path, many, kind, noise):
    for i, row in enumerate(many):
        row["liked"] = row["label"] if not noise or i != 100 else 1 - row["label"]
    description["features"].append({"name": "liked", "entity": "context", "kind": kind})
    said = (
        r"'liked' all but equals the label.*AUC alone is 0\.9.*outcomes"
        if noise
        else "'liked' equals the label"
    )

    with pytest.raises(LeakError, match=said):
        prepare(write(description, log=many), tmp_path / "out")
    with pytest.raises(PreparedError, match=r"prepared\.json: missing"):
        PreparedDataset.open(tmp_path / "out")


BAD_CELLS = [
    ("label", 2, "column 'label'.*row 3 is 2.0; allowed: 0 and 1"),
    ("split", "dev", "value 'dev'; allowed: .*'train', 'valid', 'test'"),
    ("domain", None, "missing domain"),
    ("user_id", None, "column 'user_id'.*missing id"),
    ("time_ms", None, "1 missing times"),
]


@pytest.mark.parametrize(("column", "value", "said"), BAD_CELLS)
def test_a_bad_cell_is_named(description, write, tmp_path, rows, column, value, said):
    rows[3][column] = value

    with pytest.raises(TableError, match=said):
        prepare(write(description, log=rows), tmp_path / "out")


def test_splits_and_columns_that_are_missing(description, write, tmp_path, rows):
    with pytest.raises(TableError, match=r"no test rows; found .*'train': 5"):
        prepare(write(description, log=rows[:6]), tmp_path / "out")
    with pytest.raises(TableError, match="1 files hold no rows"):
        prepare(write(description, log=pa.Table.from_pylist(rows).slice(0, 0)), tmp_path / "out")
    description["features"].append({"name": "brand", "entity": "item", "kind": "categorical"})
    with pytest.raises(DescriptionError, match="no column 'brand' for item; the files have"):
        prepare(write(description, log=rows), tmp_path / "out")
    description["columns"]["weight"] = "mass"
    with pytest.raises(DescriptionError, match="interactions: no column 'mass'; the files have"):
        prepare(write(description, log=rows), tmp_path / "out")


def test_bad_entity_tables_are_named(description, write, tmp_path, rows):
    description["users"] = {"file": "users.parquet", "key": "id"}
    with pytest.raises(DescriptionError, match=r"users\.parquet has no key column 'id'"):
        prepare(write(description, log=rows, users=[{"uid": 1}]), tmp_path / "out")
    with pytest.raises(TableError, match="the key '1' stands in two rows"):
        prepare(write(description, log=rows, users=[{"id": 1}, {"id": 1}]), tmp_path / "out")
    with pytest.raises(TableError, match="1 rows without a key"):
        prepare(write(description, log=rows, users=[{"id": 1}, {"id": None}]), tmp_path / "out")


def test_weights_probabilities_and_row_groups_pass_through(description, write, tmp_path, many):
    for i, row in enumerate(many):
        row |= {"w": i / 10, "p": 0.25}
    description["columns"] |= {"weight": "w", "true_probability": "p"}
    folder = write(description, log=many)
    pq.write_table(pa.Table.from_pylist(many), folder / "log.parquet", row_group_size=37)

    prepared = prepare(folder, tmp_path / "out")

    batch = next(RowReader(prepared, "train").batches(1000))
    assert batch.weight.tolist() == pytest.approx([r["w"] for r in many if r["split"] == "train"])
    assert set(batch.true_probability.tolist()) == {0.25}
    many[0]["w"] = -1.0
    with pytest.raises(TableError, match=r"weight -1\.0 is negative"):
        prepare(write(description, log=many), tmp_path / "out")


def test_equal_input_gives_equal_folders_and_progress_is_reported(description, write, tmp_path, many):
    seen = []
    folder = write(_with_everything(description), log=many)

    a = prepare(folder, tmp_path / "a", progress=lambda *step: seen.append(step))
    b = prepare(folder, tmp_path / "b")

    assert a.info == b.info
    assert [step for step in seen if step[1] == step[2]] == [
        (p, 300, 300) for p in ("scan", "count", "encode")
    ]
    for name in ("rows/train.parquet", "entities/user/floats.npy", "schema.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_folders_that_cannot_be_opened(description, write, tmp_path, rows):
    out = tmp_path / "out"
    prepared = prepare(write(description, log=rows), out)
    with pytest.raises(PreparedError, match="no split 'dev'; allowed"):
        prepared.row_file("dev")
    (out / "rows" / "test.parquet").unlink()
    with pytest.raises(PreparedError, match=r"test\.parquet: missing"):
        prepared.row_file("test")
    np.save(out / "entities" / "user" / "ints.npy", np.zeros((2, 9), dtype=np.int32))
    with pytest.raises(PreparedError, match="rows are 1 wide"):
        _ = PreparedDataset.open(out).entities
    (out / "entities" / "item" / "ints.npy").unlink()
    manifest = json.loads((out / "prepared.json").read_text())
    for change, said in (
        ({"format": 99}, "format 99; this code reads 1"),
        ({"schema_digest": "0"}, "recorded 0"),
    ):
        (out / "prepared.json").write_text(json.dumps(manifest | change))
        with pytest.raises(PreparedError, match=said):
            PreparedDataset.open(out)
    (out / "prepared.json").write_text("{")
    with pytest.raises(PreparedError, match="not JSON"):
        PreparedDataset.open(out)
    (out / "prepared.json").write_text(json.dumps(manifest))
    (out / "schema.json").write_text("{}")
    with pytest.raises(PreparedError, match="no feature schema"):
        PreparedDataset.open(out)
