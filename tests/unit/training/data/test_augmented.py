"""The view of train rows with copies: what a copy is, what weighs how much, and that none is evaluated."""

import numpy as np
import pyarrow as pa
import pytest

from service.contract.schema import Entity
from training.data.augment import AugmentRules
from training.data.augmented import AugmentedTrain, augment_train
from training.data.dataset import Batch, RowReader
from training.data.errors import AugmentError
from training.data.prepare import prepare
from training.data.row_files import BLOCKS, SCALARS
from training.engine.row_view import rows_of_domains, view

RULES = AugmentRules(ratio=0.2, cold_exposures=6, small_share=0.05, large_share=0.2)
N = 600


@pytest.fixture
def prepared(description, write, tmp_path, monkeypatch):
    """Six hundred rows in four domains; `twin` is the domain by another name, `hour` is not.

    Row groups of 100 rows, so that copies come from several of them.
    """
    monkeypatch.setattr("training.data.row_files.GROUP_ROWS", 100)
    rng = np.random.default_rng(7)
    domain = rng.choice(4, N, p=[0.6, 0.34, 0.04, 0.02])
    log = {
        "user_id": rng.integers(0, 50, N),
        "item_id": rng.integers(0, 120, N),
        "domain": [f"d{d}" for d in domain],
        "tab": [f"t{t}" for t in rng.integers(0, 3, N)],
        "twin": [f"w{d}" for d in domain],
        "twin_size": (domain * 1.5).tolist(),
        "label": rng.integers(0, 2, N),
        "weight": rng.uniform(0.5, 2.0, N).round(3),
        "time_ms": np.arange(N) * 1000,
        "split": np.where(np.arange(N) < 480, "train", np.where(np.arange(N) < 540, "valid", "test")),
    }
    description["columns"]["weight"] = "weight"
    description["features"] += [
        {"name": "twin", "entity": "context", "kind": "categorical"},
        {"name": "twin_size", "entity": "context", "kind": "numeric"},
    ]
    description["statistics"] = {
        "snapshot": "row",
        "keys": [{"key": ["user_id"]}, {"key": ["item_id"]}, {"key": ["user_id", "domain"]}],
    }
    return prepare(write(description, log=pa.table(log)), tmp_path / "out")


def _all_rows(data, split="train"):
    file = data.row_file(split)
    parts = [file.read_group(group) for group in range(len(file.group_rows))]
    return {name: np.concatenate([part[name] for part in parts]) for name in (*SCALARS, *BLOCKS)}


def _parts(data):
    """Real rows and copies, each in the order they are read in."""
    sides = zip(*data.row_file("train").groups(), strict=True)
    return [{name: np.concatenate([part[name] for part in side]) for name in side[0]} for side in sides]


def test_a_copy_is_its_source_in_all_but_the_domain_and_what_the_domain_decides(prepared):
    data = augment_train(prepared, rules=RULES, seed=3)
    plain = _all_rows(prepared)

    real, copies = _parts(data)

    order = np.argsort(data.plan.sources, kind="stable")
    sources, domains = data.plan.sources[order], data.plan.domains[order]
    assert len(sources) == 96  # int(0.2 * 480)
    assert all(np.array_equal(real[name], plain[name], equal_nan=True) for name in plain)
    assert np.array_equal(copies["domain"], domains)
    assert set(domains.tolist()) == {2, 3}
    assert set(copies["label"].tolist()) == {1.0}
    unchanged = set(plain) - {"domain", "context_ints", "context_floats"}
    for name in unchanged:
        assert np.array_equal(copies[name], plain[name][sources], equal_nan=True), name
    layout = prepared.layout(Entity.CONTEXT)
    tab, twin = (layout.slot(name).start for name in ("tab", "twin"))
    assert np.array_equal(copies["context_ints"][:, tab], plain["context_ints"][sources, tab])
    # The twin of a copy is that of real rows of its new domain, in both of its forms.
    for d in (2, 3):
        own = plain["domain"] == d
        for block in ("context_ints", "context_floats"):
            column = twin if block == "context_ints" else 0
            assert set(copies[block][domains == d, column]) == set(plain[block][own, column])
    assert data.summary()["features_changed"] == ["twin", "twin_size"]
    assert data.summary()["lookups_kept"] == ["user_id_x_domain.lookup"]


def test_batches_hold_every_real_row_and_every_copy_once(prepared):
    data = augment_train(prepared, rules=RULES, seed=3)
    reader = RowReader(data, "train")

    batches = list(reader.batches(64, seed=5, shuffle=True, buffer_rows=150))

    assert sum(map(len, batches)) == reader.num_rows == 480 + 96 == data.rows["train"]
    found = np.bincount(np.concatenate([b.domain for b in batches]), minlength=4)
    assert found.tolist() == list(data.domain_rows["train"].values())
    assert data.domain_rows["train"]["d0"] == prepared.domain_rows["train"]["d0"]


def test_weighted_click_rate_of_every_domain_is_the_real_one(prepared):
    data = augment_train(prepared, rules=RULES, seed=3)
    before, after = _all_rows(prepared), _all_rows(data)

    def rates(rows):
        weights = np.bincount(rows["domain"], weights=rows["weight"])
        return np.bincount(rows["domain"], weights=rows["weight"] * rows["label"]) / weights, weights

    # Weights are float32; unweighted, copies do change the rate.
    np.testing.assert_allclose(rates(after)[0], rates(before)[0], rtol=1e-5)
    np.testing.assert_allclose(rates(after)[1], rates(before)[1], rtol=1e-5)
    plain = [r["label"][r["domain"] == 3].mean() for r in (before, after)]
    assert plain[1] > plain[0] + 0.2
    shown = data.summary()["domains"]["d3"]
    assert shown["click_rate"] == pytest.approx(plain[0])
    assert shown["click_rate_unweighted"] == pytest.approx(plain[1])
    assert shown["rows"] + shown["augmented_rows"] == (after["domain"] == 3).sum()


@pytest.mark.parametrize("split", ["valid", "test", "other"])
def test_no_copy_can_be_evaluated(prepared, split):
    """The view has a train split and no other, so nothing that scores valid or test can read a copy."""
    data = augment_train(prepared, rules=RULES, seed=3)

    with pytest.raises(AugmentError, match=f"split '{split}' of augmented rows; allowed: 'train'"):
        RowReader(data, split)
    with pytest.raises(AugmentError, match="must not be evaluated"):
        data.row_file(split)
    assert list(data.rows) == list(data.domain_rows) == ["train"]


def test_valid_and_test_are_never_opened(prepared, monkeypatch):
    """Plan, view and statistics come from train rows alone: the other files may be missing altogether."""
    expected = augment_train(prepared, rules=RULES, seed=3)
    for split in ("valid", "test"):
        (prepared.path / "rows" / f"{split}.parquet").unlink()

    found = augment_train(prepared, rules=RULES, seed=3)

    assert np.array_equal(found.plan.sources, expected.plan.sources)
    assert list(RowReader(found, "train").batches(1000))


def test_the_base_is_left_as_it_was(prepared):
    before = {split: _all_rows(prepared, split) for split in ("train", "valid", "test")}
    data = augment_train(prepared, rules=RULES, seed=3)
    list(RowReader(data, "train").batches(100, shuffle=True))

    for split, rows in before.items():
        again = _all_rows(prepared, split)
        assert all(np.array_equal(rows[name], again[name], equal_nan=True) for name in rows)


def test_ratio_0_gives_the_rows_themselves(prepared):
    data = augment_train(prepared, rules=AugmentRules(ratio=0.0), seed=3)
    ours, theirs = (
        list(RowReader(source, "train").batches(100, seed=1, shuffle=True)) for source in (data, prepared)
    )

    for a, b in zip(ours, theirs, strict=True):
        assert all(np.array_equal(getattr(a, n), getattr(b, n), equal_nan=True) for n in Batch.__slots__)
    assert data.summary()["note"] == "ratio 0.0 of 480 rows is no row"


def test_a_view_of_some_domains_is_augmented_from_those_alone(prepared):
    some = view(prepared, {"train": rows_of_domains(prepared, "train", [1, 3])})
    size = some.rows["train"]

    data = augment_train(some, rules=AugmentRules(0.5, 6, None, 0.1, 0.2), seed=3)

    assert isinstance(data, AugmentedTrain)
    assert data.rows == {"train": size + int(0.5 * size)}
    assert data.plan.large == (1,)
    assert set(data.plan.domains.tolist()) == {3}


def test_no_train_rows_are_an_error(prepared):
    nothing = view(prepared, {"train": np.zeros(480, bool)})

    with pytest.raises(AugmentError, match=r"out: no train rows, so there is nothing to copy"):
        augment_train(nothing, rules=RULES, seed=3)
