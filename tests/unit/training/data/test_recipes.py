"""The shipped recipes, run on small generated tables that look like the real ones."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.contract.schema import Entity
from training.data.dataset import RowReader
from training.data.errors import DescriptionError
from training.data.kuairand import prepare_raw
from training.data.prepare import prepare
from training.data.source import open_data

DAY_MS = 86_400_000
START_MS = 1_650_816_000_000
USERS, ITEMS, N = 40, 60, 900
ONE_HOT = [f"onehot_feat{i}" for i in range(18)]
RANGES = [f"{name}_user_num_range" for name in ("follow", "fans", "friend")] + ["register_days_range"]
OUTCOMES = ("long_view", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "is_profile_enter")


def _log(rng):
    item = rng.integers(0, ITEMS, N)
    time_ms = np.sort(START_MS + rng.integers(0, 14 * DAY_MS, N))
    day = (time_ms - START_MS) // DAY_MS
    columns = {
        "user_id": rng.integers(0, USERS, N).astype(np.int32),
        "item_id": item.astype(np.int32),
        "domain_id": (item % 7).astype(np.int8),
        "tag1": (item % 7 - 1).astype(np.int16),
        "tab": rng.integers(0, 4, N).astype(np.int8),
        "time_ms": time_ms,
        "label": rng.integers(0, 2, N).astype(np.int8),
        "split": np.where(day < 10, "train", np.where(day < 12, "valid", "test")),
        "play_time_ms": rng.integers(0, 9999, N).astype(np.int32),
    }
    return columns | {name: rng.integers(0, 2, N).astype(np.int8) for name in OUTCOMES}


def _profile(rng, n):
    columns = {name: rng.choice(["0", "(0,10]", "500+"], n) for name in RANGES}
    columns |= {name.removesuffix("_range"): rng.integers(0, 900, n) for name in RANGES}
    columns |= {name: rng.integers(0, 3, n).astype(float) for name in ONE_HOT}
    columns["user_active_degree"] = rng.choice(["full_active", "low_active"], n)
    return columns | {name: rng.integers(0, 2, n) for name in ("is_live_streamer", "is_video_author")}


def _attributes(rng, n):
    return {
        "author_id": rng.integers(0, 12, n),
        "video_type": ["NORMAL"] * n,
        "upload_type": rng.choice(["Web", "LongImport"], n),
        "video_duration": rng.integers(5_000, 90_000, n).astype(np.float32),
        "music_type": rng.integers(0, 3, n).astype(np.int8),
    }


@pytest.fixture(scope="module")
def kuairand_like(tmp_path_factory):
    """Four files with the columns and types of KuaiRand-Pure as stored in the shared data."""
    rng, folder = np.random.default_rng(1), tmp_path_factory.mktemp("kuairand")
    items = _attributes(rng, ITEMS) | {
        "item_id": np.arange(ITEMS),
        "music_id": rng.integers(0, 20, ITEMS),
        "tag1": (np.arange(ITEMS) % 7 - 1).astype(np.int16),
        "tags": [None if i % 7 == 0 else f"{i % 7 - 1},5" for i in range(ITEMS)],
    }
    watched = [rng.integers(0, ITEMS, rng.integers(0, 60)).astype(np.int32) for _ in range(USERS - 5)]
    history = {
        "user_id": np.arange(USERS - 5, dtype=np.int32),
        "history_rows_before_20220425": np.array([len(w) * 3 for w in watched], dtype=np.int64),
        "watch_seq": watched,
        "long_watch_seq": [w[::3] for w in watched],
    }
    users = _profile(rng, USERS) | {"user_id": np.arange(USERS)}
    tables = {"interactions": _log(rng), "users": users, "items": items, "user_history": history}
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return folder


@pytest.mark.parametrize(("domains", "first", "count"), [("tag", "tag_0", 7), ("tab", "tab_0", 4)])
def test_kuairand_recipe(kuairand_like, tmp_path, domains, first, count):
    source = prepare_raw(kuairand_like, tmp_path, domains)

    prepared = prepare(source, tmp_path / "out")

    assert prepared.schema.domains[0] == first
    assert prepared.schema.num_domains == count
    assert prepared.stat_columns(Entity.USER) == ["user_id_count", "user_id_rate_label"]
    assert len(prepared.stat_columns(Entity.ITEM)) == 4
    names = {pair.name for pair in prepared.schema.pairs}
    expected = {"user_id_x_tab.lookup", "duration_bucket_x_tab.lookup", "watch_factors_watch.dot"}
    assert expected <= names
    stored = {feature.name for feature in prepared.schema.features}
    assert {"long_rasch_user", "long_rasch_item", "long_ratio_user", "long_factors_long_watch"} <= stored
    batches = list(RowReader(prepared, "train").batches(128, shuffle=True))
    assert sum(map(len, batches)) == prepared.rows["train"]
    assert all(np.isfinite(b.pairs).all() and np.isfinite(b.user_floats).all() for b in batches)
    slot = prepared.layout(Entity.USER).slot("watch", "item")
    assert max(int((b.user_ints[:, slot.columns] > 0).sum(axis=1).max()) for b in batches) == 50


def test_kuairand_recipe_needs_its_files(kuairand_like, tmp_path):
    with pytest.raises(DescriptionError, match="interactions: no file matches"):
        prepare_raw(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    again = prepare_raw(kuairand_like, tmp_path / "out")
    assert again.description.name == "kuairand"
    assert open_data(tmp_path / "out").root == kuairand_like


def test_tiny_recipe_takes_users_and_items_from_one_wide_table(tmp_path):
    rng = np.random.default_rng(2)
    log = _log(rng)
    users, items = _profile(rng, USERS), _attributes(rng, ITEMS)
    wide = log | {name: np.asarray(values)[log["user_id"]] for name, values in users.items()}
    wide |= {name: np.asarray(values)[log["item_id"]] for name, values in items.items()}
    pq.write_table(pa.table(wide), tmp_path / "kuairand_tiny.parquet")

    prepared = prepare(open_data(tmp_path, "tiny"), tmp_path / "out")

    train = log["split"] == "train"
    assert len(prepared.entities[Entity.USER]) == len(set(log["user_id"][train].tolist()))
    batch = next(RowReader(prepared, "train").batches(2000))
    column = batch.item_ints[:, prepared.layout(Entity.ITEM).slot("author").start]
    values = np.array(["", "", *prepared.schema.encoder("author").values])
    expected = np.asarray(items["author_id"])[log["item_id"][train]].astype(str)
    assert np.array_equal(values[column][column > 1], expected[column > 1])
    assert (column > 1).mean() > 0.9
