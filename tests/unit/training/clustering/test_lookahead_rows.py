"""Rows for lookaheads: held out, disjoint, drawn from (seed, update) alone; bounded P; the benchmark."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from training.clustering.domain_rows import DomainRows, RowCounts, hold_out
from training.clustering.errors import RulesError
from training.clustering.lookahead_bench import bench_model, bench_schema, main
from training.clustering.lookahead_model import parameter_map
from training.clustering.lookahead_step import MIN_MOMENT_RATIO, SGD, Preconditioner, SecondMoment
from training.data.prepare import prepare

SIZES = {"big": 900, "mid": 300, "tiny": 20}
CPU = torch.device("cpu")
COUNTS = RowCounts(train=32, evaluation=40, updates_per_pass=3, min_train=100, min_evaluation=30)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """1,220 train rows of three domains in row groups of 64; the item's id is the number of its row."""
    folder = tmp_path_factory.mktemp("rows")
    rng = np.random.default_rng(0)
    names = rng.permutation(np.repeat(list(SIZES), list(SIZES.values())))
    n = len(names)
    columns = {
        "user_id": rng.integers(0, 50, n + 20),
        "item_id": np.arange(n + 20),
        "domain": [*names.tolist(), *["big"] * 20],
        "label": rng.integers(0, 2, n + 20),
        "time_ms": np.arange(n + 20) * 10_000_000,
        "split": ["train"] * n + ["valid"] * 10 + ["test"] * 10,
    }
    pq.write_table(pa.table(columns), folder / "log.parquet")
    roles = {"user": "user_id", "item": "item_id", "domain": "domain", "label": "label", "time": "time_ms"}
    description = {
        "name": "rows",
        "interactions": "log.parquet",
        "columns": roles | {"split": "split"},
        "features": [
            {"name": "user_id", "entity": "user", "kind": "categorical"},
            {"name": "item_id", "entity": "item", "kind": "categorical"},
        ],
    }
    (folder / "dataset.yaml").write_text(yaml.safe_dump(description))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.data.row_files.GROUP_ROWS", 64)
        return prepare(folder, folder / "out")


def same(one, other) -> bool:
    return all(torch.equal(value, getattr(other.inputs, name)) for name, value in vars(one.inputs).items())


def test_rows_are_of_their_domain_and_never_on_both_sides(prepared):
    """Sizes as asked, domains in order, B_u and E_v disjoint over updates, the tiny domain left out."""
    rows = DomainRows(prepared, seed=1, device=CPU, counts=COUNTS)
    index = {name: i for i, name in enumerate(prepared.schema.domains)}
    drawn = [rows.rows(update) for update in range(5)]

    assert rows.left_out.tolist() == [index["tiny"]]
    assert rows.train_rows[index["tiny"]] == 20
    for one in drawn:
        for side, size in ((one.train, 32), (one.evaluation, 40)):
            assert side.sizes.tolist() == [size, size]
            assert side.inputs.domain.tolist() == [int(d) for d in rows.measured for _ in range(size)]
    train = {int(i) for one in drawn for i in one.train.inputs.item_ints[:, 0]}
    evaluation = {int(i) for one in drawn for i in one.evaluation.inputs.item_ints[:, 0]}
    assert not train & evaluation
    assert len(train) > 64  # updates do not all draw the same rows


def test_rows_depend_on_seed_and_update_alone(prepared):
    """Starting at update 4 gives what going through 0 to 4 gives; another seed gives other rows."""
    through = DomainRows(prepared, seed=1, device=CPU, counts=COUNTS)
    for update in range(4):
        through.rows(update)
    fourth = through.rows(4)
    at_once = DomainRows(prepared, seed=1, device=CPU, counts=COUNTS).rows(4)
    other = DomainRows(prepared, seed=2, device=CPU, counts=COUNTS).rows(4)

    assert same(fourth.train, at_once.train)
    assert same(fourth.evaluation, at_once.evaluation)
    assert not same(fourth.train, other.train)


def test_hold_out_keeps_five_percent_or_what_is_wanted_up_to_a_fifth():
    """4000 rows: 5 % is 200; 1000 rows: 128 wanted; 100 rows: 20 % is 20; unknown domains: none."""
    sizes = [4000, 1000, 100, 50]
    domains = np.repeat(np.arange(4, dtype=np.int32), sizes)
    held = hold_out(domains, 3, seed=0, wanted=128)

    assert np.bincount(domains[held], minlength=4).tolist() == [200, 128, 20, 0]
    assert (held != hold_out(domains, 3, seed=1, wanted=128)).any()


def test_counts_and_domains_without_rows_are_refused(prepared):
    with pytest.raises(RulesError, match="train is 0"):
        RowCounts(train=0)
    with pytest.raises(RulesError, match="no domain has 5000 training"):
        DomainRows(prepared, seed=0, device=CPU, counts=RowCounts(min_train=5000))


def test_a_parameter_that_training_does_not_move_gets_a_bounded_step():
    """The v of rounding noise is raised to a share of the mean squared gradient; other v stay as they are."""
    model = bench_model(bench_schema(3))
    parameters = parameter_map(model)
    moments = {n: SecondMoment(torch.full_like(p, 1e-20), 1.0, 1e-8) for n, p in parameters.dense.items()}
    name = next(iter(moments))
    moments[name] = SecondMoment(torch.full_like(parameters.dense[name], 4.0), 1.0, 1e-8)
    other = list(moments)[-1]
    squares = torch.full((parameters.num_dense,), 0.25)
    P = Preconditioner(moments).bounded(squares, parameters)

    assert float(P.dense_factor(name, parameters.dense[name]).max()) == pytest.approx(0.5)
    assert float(P.dense_factor(other, parameters.dense[other]).max()) == pytest.approx(
        1 / (0.5 * MIN_MOMENT_RATIO**0.5), rel=1e-4
    )
    assert SGD.bounded(squares, parameters) is SGD


def test_the_benchmark_writes_its_json(tmp_path, capsys):
    """Three cases with seconds, shares and, for exact, both literal schemes."""
    sizes = ["--small", "4", "--large", "5", "--train", "8", "--evaluation", "8", "--steps", "1"]
    threads = str(torch.get_num_threads())
    main(["--out", str(tmp_path / "b.json"), *sizes, "--literal-sets", "1", "--threads", threads])
    cases = json.loads((tmp_path / "b.json").read_text())["cases"]

    assert [(c["num_domains"], c["mode"]) for c in cases] == [
        (4, "exact"),
        (4, "first_order"),
        (5, "first_order"),
    ]
    assert all(c["lookahead_s"] > 0 and c["share_of_interval"] > 0 for c in cases)
    assert cases[0]["literal_scheme"]["sets_measured"] == 1
    assert cases[0]["literal_scheme"]["sets"] == 4 + 3 + 4 + 50 + 1
    assert json.loads(capsys.readouterr().out)["threads"] == int(threads)
