"""Several ranks train one model: what one process computes, agreement of hooks, kills, restarts, refusals.

All ranks of a launch do all jobs one after the other, since starting torch costs more than most of them.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.support.ranks import free_port, launch
from tests.support.runs import Dying, KillError, run_into
from training.config import load_config
from training.data.dataset import RowReader
from training.engine.artefacts import RunFolder
from training.engine.checkpoint import load_tensors
from training.track import read_log

# Starting torch five times takes longer than all jobs together.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# No dropout, and steps whose size does not hang on the last bit of a gradient near 0, as Adam's would.
EXACT = (
    "model.dropout=0.0",
    "model.batch_norm=false",
    "model.inputs.tables=[{dim: 8}]",
    "optimiser.tables.type=rowwise_adagrad",
    "training.epochs=1",
    "training.batch_size=1001",
    "training.checkpoint_every_batches=4",
)
SHORT = ("training.epochs=1", "training.batch_size=512", "training.evaluations_per_epoch=2")
CDC = (
    *SHORT,
    "model.towers=clusters",
    "clustering={version: end_to_end, num_clusters: 3, warmup_batches: 8, update_interval: 10, "
    "max_updates: 2, step_rows: 64, eval_rows: 64, held_out_ratio: 0.1, min_train_rows: 100, "
    "min_eval_rows: 10, mode: first_order}",
)
AREAD = (
    *SHORT,
    "model={type: aread, base: {type: mmoe, num_experts: 2, expert_widths: [16], gate_input: domain}, "
    "expert_widths: [[8], [8], [4]], gate_dim: 8, num_cross_layers: 2, dropout: 0.1, "
    "inputs: {tables: [{dim: 8, unknown_rate: 0.02}]}}",
    "masks={enabled: true, warmup_batches: 5, update_interval: 9, rows: 16, candidates: 4, max_updates: 2, "
    "target_density: 0.6, target_updates: 2, settle_ratio: 0.2}",
)
WHOLE = (*SHORT, "training.checkpoint_every_batches=4")
SPLIT = tuple(o.replace("end_to_end", "split") for o in CDC if "towers" not in o)
COPIES = (
    *SHORT,
    "training.ema_decay=0.9",
    "augment={ratio: 0.2, in_training: true}",
    "training.precision=bf16",
)
RUNS = {"exact": EXACT, "clusters": CDC, "masks": AREAD, "whole": WHOLE, "split": SPLIT, "copies": COPIES}
STEPPED = ["mmoe", "star_clusters", "pepnet_per_domain", "aread", "dcnv2"]
KILLED_AT = 6
"""Steps; the checkpoint before is of step 4."""


@pytest.fixture(scope="module")
def ranks(small, prepared, tmp_path_factory):
    """The folder of all runs, each under its name, and what two ranks tell of each job."""
    folder = tmp_path_factory.mktemp("ranks")

    def run(name, overrides, **options):
        given = {"config": str(small.config), "prepared": str(small.prepared), "out": str(folder / name)}
        return {"job": "run", "with": given | {"overrides": list(overrides)} | options}

    with pytest.raises(KillError):
        run_into(
            load_config(small.config, list(EXACT)),
            prepared,
            folder / "begun_by_one",
            watcher=Dying(KILLED_AT),
        )
    jobs = {"failing": {"job": "failing"}, "steps": {"job": "steps", "with": {"models": STEPPED}}}
    jobs |= {name: run(name, overrides) for name, overrides in RUNS.items()}
    jobs["begun_by_one"] = run("begun_by_one", EXACT, resume=True)
    jobs["begun_by_two"] = run("begun_by_two", EXACT, killed_at=KILLED_AT)
    return folder, launch(folder, jobs)


@pytest.mark.parametrize("model", STEPPED)
def test_gradients_of_two_ranks_are_those_of_one_process(ranks, model):
    _, told = ranks
    first, second = (rank[model] for rank in told["steps"])
    assert first["digests"] == second["digests"]
    # 33 + 9 rows; sums of float32 in another order, so a few units in the last place of numbers up to 10.
    assert first["rows"] == second["rows"] == 42
    assert max(first["gradient"], second["gradient"]) < 5e-6
    assert max(first["loss"], first["buffer"]) < 1e-6


def test_two_ranks_train_as_one_process(ranks, small, prepared, tmp_path):
    folder, told = ranks
    one = run_into(load_config(small.config, list(EXACT)), prepared, tmp_path / "one")
    two = RunFolder(folder / "exact")
    assert [rank["rows"] for rank in told["exact"]] == [15_000, 15_000]
    losses = [[e["loss"] for e in read_log(f.log) if e["event"] == "train"] for f in (one.folder, two)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    # AdamW steps by the sign of a gradient that is nearly 0: single weights of rare domains may part by the
    # last bit of a sum; on the mean, weights and logits may not.
    weights = [load_tensors(f.model)["state_dict"] for f in (one.folder, two)]
    for name, value in weights[0].items():
        assert (value - weights[1][name]).abs().double().mean() < 2e-3, name
    logits = [pl.read_parquet(f.predictions("test"))["logit"].to_numpy() for f in (one.folder, two)]
    assert np.abs(logits[0] - logits[1]).mean() < 5e-3
    metrics = json.loads(two.metrics.read_text())
    assert metrics["test"]["total_auc"] == pytest.approx(one.metrics["test"]["total_auc"], abs=0.002)
    assert metrics["test"]["domain_auc"] == pytest.approx(one.metrics["test"]["domain_auc"], abs=0.002)


def test_scores_of_the_ranks_come_in_the_reader_s_order(ranks, prepared):
    folder, _ = ranks
    frame = pl.read_parquet(RunFolder(folder / "exact").predictions("test"))
    batches = list(RowReader(prepared, "test").batches(300))
    assert frame["label"].to_list() == np.concatenate([b.label for b in batches]).tolist()
    assert frame["user_code"].to_list() == np.concatenate([b.user_code for b in batches]).tolist()


@pytest.mark.parametrize("run", RUNS)
def test_ranks_end_with_the_same_weights_optimisers_and_hooks(ranks, run):
    _, told = ranks
    first, second = told[run]
    for name in ("weights", "optimisers", "hook", "steps", "rows", "test"):
        assert first[name] == second[name], name
    assert first["draw"] != second["draw"]


@pytest.mark.parametrize(("run", "event"), [("clusters", "clusters"), ("masks", "masks")])
def test_hooks_work_on_the_first_rank_and_the_log_has_each_event_once(ranks, run, event):
    folder, _ = ranks
    events = read_log(RunFolder(folder / run).log)
    assert sum(e["event"] == event for e in events) == 2
    assert [e["world_size"] for e in events if e["event"] == "start"] == [2]
    assert sum(e["event"] == "metrics" for e in events) == 1


def test_a_failure_of_the_first_rank_fails_the_others(ranks):
    _, told = ranks
    said = "ValueError: invalid literal for int() with base 10: 'no number'"
    assert [rank["said"] for rank in told["failing"]] == [said, f"PeerError: rank 0 failed: {said}"]


@pytest.mark.parametrize("run", ["begun_by_two", "begun_by_one"])
def test_another_number_of_ranks_goes_on_from_a_checkpoint(ranks, small, prepared, run):
    folder, told = ranks
    config = load_config(small.config, list(EXACT))
    # What two ranks began one process ends; what one began, two have ended by now.
    metrics = run_into(config, prepared, folder / run, resume=True).metrics
    went_on = [e["step"] for e in read_log(folder / run / "log.jsonl") if e["event"] == "resume"]
    assert went_on[0] == 4
    assert metrics["steps"] == told["exact"][0]["steps"] == 15
    assert metrics["test"]["total_auc"] == pytest.approx(told["exact"][0]["test"], abs=0.002)


def _torchrun(small, out, overrides, *, restarts):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    torchrun += ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    torchrun += ["--max-restarts", str(restarts), "--monitor-interval", "0.05", "-m", "training.cli", "run"]
    given = {"--config": small.config, "--prepared": small.prepared, "--out": out}
    options = [str(part) for pair in given.items() for part in pair]
    return [*torchrun, *options, *(part for override in overrides for part in ("--set", override))]


def _rank_of(parent, rank):
    """Process id of a rank that torchrun has started."""
    children = subprocess.run(["pgrep", "-P", str(parent)], capture_output=True, text=True).stdout.split()
    for child in children:
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError(f"no rank {rank} among {children}")


def test_torchrun_restarts_after_a_killed_rank_and_ends_with_the_same_bits(ranks, small, tmp_path):
    _, told = ranks
    folder = RunFolder(tmp_path / "killed")
    child = subprocess.Popen(
        _torchrun(small, folder.root, WHOLE, restarts=1),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while not folder.checkpoint.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(_rank_of(child.pid, 1), signal.SIGKILL)
    said = child.communicate(timeout=240)[1]
    assert child.returncode == 0, said
    assert [e["event"] for e in read_log(folder.log)].count("resume") == 1
    assert (folder.root / "report.html").is_file()
    assert load_tensors(folder.model)["weights_digest"] == told["whole"][0]["best"]
