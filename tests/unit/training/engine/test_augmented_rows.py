"""Rows by domain for the search of masks: real ones, copies, and how draws are made."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from training.clustering.lookahead_model import LabelledRows
from training.data.augment import AugmentRules
from training.data.errors import AugmentError
from training.data.prepare import prepare
from training.engine.augmented_rows import AugmentedRows
from training.masks.rows import RowSource, draw_rows

RULES = AugmentRules(ratio=0.2, cold_exposures=6, small_share=0.05, large_share=0.2)
ROLES = {
    "user": "user",
    "item": "item",
    "domain": "domain",
    "label": "label",
    "time": "time",
    "split": "split",
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """400 train rows in four domains; user ids name the row, so that rows can be told apart."""
    folder, rng = tmp_path_factory.mktemp("rows"), np.random.default_rng(2)
    n = 420
    log = {
        "user": np.arange(n),
        "item": rng.integers(0, 90, n),
        "domain": rng.choice(["a", "b", "c", "d"], n, p=[0.6, 0.34, 0.04, 0.02]),
        "label": rng.integers(0, 2, n),
        "time": np.arange(n),
        "split": ["train"] * 400 + ["valid"] * 10 + ["test"] * 10,
    }
    pq.write_table(pa.table(log), folder / "log.parquet")
    features = [
        {"name": name, "entity": name, "kind": "categorical", "encoder": {"type": "vocabulary"}}
        for name in ("user", "item")
    ]
    description = {"name": "r", "interactions": "log.parquet", "columns": ROLES, "features": features}
    (folder / "dataset.yaml").write_text(yaml.safe_dump(description))
    return prepare(folder, folder / "out")


def _real(prepared):
    counts = prepared.domain_rows["train"]
    return [counts[name] for name in prepared.schema.domains]


def test_counts_are_real_rows_and_copies(prepared):
    rows = AugmentedRows(prepared, rules=RULES, seed=0)

    found = [rows.num_rows(d) for d in range(4)]

    assert [rows.num_real_rows(d) for d in range(4)] == _real(prepared)
    assert sum(found) == 400 + 80
    assert found[:2] == _real(prepared)[:2]
    assert rows.summary()["rules"]["cold_exposures"] == 6
    assert rows.summary()["augmented_rows"] == 80


def test_a_draw_of_all_rows_is_each_of_them_once(prepared):
    rows = AugmentedRows(prepared, rules=RULES, seed=0)
    for d in range(4):
        size, real = rows.num_rows(d), rows.num_real_rows(d)

        drawn = rows.batch(d, size, np.random.default_rng(1))

        assert set(drawn.domain.tolist()) == {d}
        own = rows.train.plan.sources[rows.train.plan.domains == d]
        users = np.bincount(drawn.user_code, minlength=420)
        copied = np.bincount(own, minlength=420)
        assert users.sum() == size
        assert (users - copied).min() == 0
        assert (users - copied).sum() == real
        only = rows.batch(d, real, np.random.default_rng(1), real_only=True)
        assert np.array_equal(np.sort(only.user_code), np.flatnonzero(users - copied))


def test_more_rows_than_there_are_repeat_only_after_all_have_occurred(prepared):
    rows = AugmentedRows(prepared, rules=AugmentRules(ratio=0.0), seed=0)
    size = rows.num_rows(3)

    drawn = rows.draw(3, 2 * size + 3, np.random.default_rng(0))

    assert isinstance(drawn, LabelledRows)
    assert drawn.sizes.tolist() == [2 * size + 3]
    _, counts = np.unique(drawn.inputs.user_ints[:, 0].numpy(), return_counts=True)
    assert sorted(set(counts.tolist())) == [2, 3]
    assert len(counts) == size


@pytest.mark.parametrize("room", [1, 30, 10_000])
def test_draws_depend_on_the_generator_and_not_on_what_is_in_memory(prepared, room):
    one = AugmentedRows(prepared, rules=RULES, seed=0)
    other = AugmentedRows(prepared, rules=RULES, seed=0, max_held_rows=room)

    for d in (2, 0, 3, 1, 2):
        a, b = (r.draw(d, 25, np.random.default_rng([9, d])) for r in (one, other))
        assert torch.equal(a.labels, b.labels)
        for f in dataclasses.fields(a.inputs):
            assert torch.equal(getattr(a.inputs, f.name), getattr(b.inputs, f.name))


def test_it_is_a_source_of_the_mask_search(prepared):
    source: RowSource = AugmentedRows(prepared, rules=RULES, seed=0)

    found = draw_rows(source, [3, 0], 12, key=(1, 2), device=torch.device("cpu"))

    assert found.inputs.domain.tolist() == [3] * 12 + [0] * 12
    # Small domains are mostly copied clicks.
    assert found.labels[:12].mean() > found.labels[12:].mean()


def test_refusals(prepared):
    rows = AugmentedRows(prepared, rules=RULES, seed=0)
    rng = np.random.default_rng(0)

    with pytest.raises(AugmentError, match="domain 4; allowed: 0 to 3"):
        rows.num_rows(4)
    with pytest.raises(AugmentError, match="domain -1; allowed: 0 to 3"):
        rows.draw(-1, 5, rng)
    with pytest.raises(AugmentError, match="num_rows is 0; allowed: 1 and more"):
        rows.draw(0, 0, rng)


def test_a_domain_without_train_rows_cannot_be_drawn_from(prepared):
    from training.engine.row_view import rows_of_domains, view

    some = view(prepared, {"train": rows_of_domains(prepared, "train", [0, 1])})
    rows = AugmentedRows(some, rules=AugmentRules(ratio=0.0), seed=0)

    with pytest.raises(AugmentError, match=r"domain 3 \('d'\) has no train rows"):
        rows.draw(3, 5, np.random.default_rng(0))
