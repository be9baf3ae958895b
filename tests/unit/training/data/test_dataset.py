"""Batches: one stream per epoch, whatever cuts it into steps, ranks or interrupted runs."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from training.data.dataset import RankShare, RowReader, rank_slice
from training.data.errors import PreparedError
from training.data.prepare import prepare
from training.data.row_files import GROUP_ROWS, RowFile, RowWriter

ROWS = 1000


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """1,000 train rows in row groups of 64; the weight of a row is its number."""
    folder = tmp_path_factory.mktemp("batches")
    n = ROWS + 20
    rng = np.random.default_rng(0)
    split = ["train"] * ROWS + ["valid"] * 10 + ["test"] * 10
    columns = {
        "user_id": rng.integers(0, 50, n),
        "item_id": rng.integers(0, 50, n),
        "domain": ["d"] * n,
        "label": rng.integers(0, 2, n),
        "time_ms": np.arange(n) * 10_000_000,
        "split": split,
        "w": np.arange(n),
    }
    pq.write_table(pa.table(columns), folder / "log.parquet")
    roles = {"user": "user_id", "item": "item_id", "domain": "domain", "label": "label", "time": "time_ms"}
    description = {
        "name": "batches",
        "interactions": "log.parquet",
        "columns": roles | {"split": "split", "weight": "w"},
        "features": [
            {"name": "user_id", "entity": "user", "kind": "categorical"},
            {"name": "item_id", "entity": "item", "kind": "categorical"},
        ],
        "statistics": {"keys": [{"key": ["user_id"]}]},
    }
    (folder / "dataset.yaml").write_text(yaml.safe_dump(description))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.data.row_files.GROUP_ROWS", 64)
        prepared = prepare(folder, folder / "out")
    return RowReader(prepared, "train")


def _same(a, b):
    return all(
        np.array_equal(getattr(a, f.name), getattr(b, f.name), equal_nan=True)
        for f in dataclasses.fields(a)
        if f.name != "user_code"
    ) and np.array_equal(a.user_code, b.user_code)


SHUFFLED = {"seed": 5, "epoch": 2, "shuffle": True, "buffer_rows": 200}


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("batch_size", [1, 7, 64, 333, 5000])
def test_an_epoch_holds_every_row_once(reader, batch_size, shuffle):
    batches = list(reader.batches(batch_size, shuffle=shuffle, buffer_rows=130))

    numbers = np.concatenate([b.weight for b in batches])
    assert len(batches) == reader.num_batches(batch_size)
    assert sorted(numbers.tolist()) == list(range(ROWS))
    assert (numbers.tolist() == list(range(ROWS))) is (not shuffle)
    assert {len(b) for b in batches[:-1]} <= {batch_size}


def test_order_is_a_function_of_seed_and_epoch(reader):
    def order(**change):
        return np.concatenate([b.weight for b in reader.batches(64, **{**SHUFFLED, **change})]).tolist()

    assert order() == order()
    assert order() != order(epoch=3) != order(seed=6)
    assert np.concatenate([b.weight for b in reader.batches(50, **SHUFFLED)]).tolist() == order()


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("start", [0, 1, 5, 9, 11, 100])
def test_resumed_run_equals_the_unbroken_one(reader, start, world_size):
    share = SHUFFLED | {"rank": world_size - 1, "world_size": world_size}
    unbroken = list(reader.batches(30, **share))

    resumed = list(reader.batches(30, start_batch=start, **share))

    assert len(resumed) == max(0, len(unbroken) - start)
    assert all(_same(a, b) for a, b in zip(unbroken[start:], resumed, strict=True))


def test_resume_reads_only_from_the_buffer_it_needs(reader, monkeypatch):
    read = []
    original = RowFile.read_group
    monkeypatch.setattr(RowFile, "read_group", lambda self, g: read.append(g) or original(self, g))

    list(reader.batches(50, start_batch=18, **SHUFFLED))

    assert len(read) <= 4


@pytest.mark.parametrize("batch_size", [3, 40, 41, 333])
@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_ranks_share_the_steps_of_one_process_without_gap_or_repeat(reader, world_size, batch_size):
    whole = [b.weight for b in reader.batches(batch_size, **SHUFFLED)]
    ranks = [
        [b.weight for b in reader.batches(batch_size, rank=r, world_size=world_size, **SHUFFLED)]
        for r in range(world_size)
    ]

    assert {len(batches) for batches in ranks} == {len(whole)}
    for step, expected in enumerate(whole):
        parts = [batches[step] for batches in ranks]
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert np.array_equal(np.concatenate(parts), expected)


@pytest.mark.parametrize("world_size", [2, 7])
def test_a_share_tells_where_each_rank_s_rows_belong(reader, world_size):
    found = np.full(ROWS, -1.0)
    for rank in range(world_size):
        own = np.concatenate([b.weight for b in reader.batches(30, rank=rank, world_size=world_size)])
        found[RankShare(ROWS, 30, rank, world_size).places(0, ROWS)] = own
    assert found.tolist() == list(range(ROWS))


def test_the_last_rows_are_split_evenly():
    assert [rank_slice(2, r, 3) for r in range(3)] == [slice(0, 0), slice(0, 1), slice(1, 2)]
    assert [len(range(10)[rank_slice(10, r, 4)]) for r in range(4)] == [2, 3, 2, 3]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batch_size": 0}, "batch_size is 0; allowed: 1"),
        ({"start_batch": -1}, "start_batch is -1; allowed: 0"),
        ({"world_size": 0}, "world_size is 0"),
        ({"buffer_rows": 0}, "buffer_rows is 0"),
        ({"rank": 2, "world_size": 2}, "rank is 2; allowed: 0 to 1"),
    ],
)
def test_sizes_out_of_range(reader, change, said):
    with pytest.raises(PreparedError, match=said):
        next(reader.batches(**{"batch_size": 4, **change}))


def test_row_groups_have_the_promised_size(tmp_path):
    widths = {"context_ints": 2, "context_floats": 0, "user_stats": 1, "item_stats": 0, "pairs": 0}

    def rows(start, n):
        number = np.arange(start, start + n)
        scalars = dict.fromkeys(("user_slot", "item_slot", "domain", "user_code"), number.astype(np.int32))
        scalars |= dict.fromkeys(("label", "weight", "true_probability"), number.astype(np.float32))
        blocks = {"context_ints": np.stack([number, -number], axis=1).astype(np.int32)}
        return scalars | blocks | {"time_ms": number, "user_stats": number.astype(np.float32).reshape(-1, 1)}

    with RowWriter(tmp_path / "rows.parquet", widths) as writer:
        for start in range(0, 150_000, 50_000):
            writer.write(rows(start, 50_000))

    file = RowFile(tmp_path / "rows.parquet", widths)
    assert file.group_rows == (GROUP_ROWS, GROUP_ROWS, 150_000 - 2 * GROUP_ROWS)
    second = file.read_group(1)
    expected = rows(GROUP_ROWS, GROUP_ROWS)
    assert all(np.array_equal(second[name], values) for name, values in expected.items())
    assert second["pairs"].shape == (GROUP_ROWS, 0)
    file.close()
