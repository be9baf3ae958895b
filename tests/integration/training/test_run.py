"""Whole runs on real prepared data: artefacts, exact resume after SIGKILL, repeatability."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import polars as pl
import pytest
import torch

from training.config import load_config
from training.data.dataset import RowReader
from training.data.prepared import PreparedDataset
from training.engine.artefacts import RunFolder, load_model
from training.engine.calibrate import Calibrator
from training.engine.checkpoint import load_tensors, weights_digest
from training.engine.errors import CheckpointError, RunError
from training.engine.fit import evaluate_run, predict_split, run_training
from training.engine.platt import sigmoid
from training.metrics import auc
from training.track import read_log

RESULT_KEYS = {
    "total_auc",
    "domain_auc",
    "major5_auc",
    "minor10_auc",
    "gauc",
    "logloss",
    "ece",
    "calibration_ratio",
    "skipped_domains",
    "rows",
    "domains",
}


def test_metrics_json_has_the_published_keys(finished, small):
    metrics = json.loads(finished.folder.metrics.read_text())
    assert metrics == finished.metrics
    names = PreparedDataset.open(small.prepared).schema.domains
    for record in (metrics, metrics["raw"], metrics["oracle"]):
        for split in ("valid", "test"):
            assert set(record[split]) >= RESULT_KEYS
            assert tuple(record[split]["domains"]) == names
            for domain in record[split]["domains"].values():
                assert set(domain) >= {"auc", "rows", "ece"}
    assert set(metrics) == {
        "valid", "test", "raw", "oracle", "name", "seed", "best_epoch", "best_step", "steps", "seconds",
        "train_s", "rows_per_s", "digests", "finished_at", "model",
    }  # fmt: skip
    assert set(metrics["digests"]) == {"config", "data", "schema", "weights"}
    assert metrics["seed"] == 5
    assert metrics["test"]["rows"] == 2500


def test_the_run_learns_and_the_truth_bounds_it(finished):
    metrics = finished.metrics
    assert 0.6 < metrics["test"]["total_auc"] < metrics["oracle"]["test"]["total_auc"]
    assert metrics["oracle"]["test"]["logloss"] < metrics["test"]["logloss"]


def test_the_best_validation_is_what_the_model_file_holds(finished, small):
    events = read_log(finished.folder.log)
    checks = [e for e in events if e["event"] == "evaluate"]
    assert len(checks) == 6
    best = max(checks, key=lambda e: e["monitor"])
    assert finished.metrics["best_step"] == best["step"]
    raw = finished.metrics["raw"]["valid"]
    assert (raw["total_auc"] + raw["domain_auc"]) / 2 == pytest.approx(best["monitor"], abs=1e-12)
    prepared = PreparedDataset.open(small.prepared)
    model = load_model(finished.folder.model, prepared.schema)
    rows = predict_split(model, prepared, "valid", batch_size=700, device=torch.device("cpu"))
    assert auc(rows.label, rows.logit) == pytest.approx(best["total_auc"], abs=1e-6)


def test_predictions_follow_the_reader_and_the_calibrator(finished, small):
    prepared = PreparedDataset.open(small.prepared)
    frame = pl.read_parquet(finished.folder.predictions("test"))
    assert frame.columns == ["user_code", "domain", "label", "logit", "score"]
    batches = list(RowReader(prepared, "test").batches(512, shuffle=False))
    domain = np.concatenate([b.domain for b in batches])
    np.testing.assert_array_equal(frame["label"].to_numpy(), np.concatenate([b.label for b in batches]))
    assert frame["domain"].to_list() == [prepared.schema.domains[d] for d in domain]
    lines = json.loads(finished.folder.calibration.read_text())
    assert set(lines["domains"]) == set(prepared.schema.domains)
    scale, bias = (
        np.array([lines["domains"][name][key] for name in frame["domain"]]) for key in ("scale", "bias")
    )
    score = sigmoid(scale * frame["logit"].to_numpy() + bias)
    np.testing.assert_allclose(frame["score"].to_numpy(), score, rtol=1e-12)


def test_calibration_does_not_reorder_a_domain(finished):
    for name, domain in finished.metrics["test"]["domains"].items():
        raw = finished.metrics["raw"]["test"]["domains"][name]["auc"]
        assert domain["auc"] == (None if raw is None else pytest.approx(raw, abs=1e-9))
    assert (Calibrator.load(finished.folder.calibration).scale > 0).all()


def test_evaluating_a_run_again_gives_its_figures(finished):
    again = evaluate_run(finished.folder.root, "test")
    assert again["total_auc"] == pytest.approx(finished.metrics["test"]["total_auc"], abs=1e-9)
    assert again["logloss"] == pytest.approx(finished.metrics["test"]["logloss"], abs=1e-9)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(finished, small, tmp_path):
    prepared = PreparedDataset.open(small.prepared)
    weights = finished.metrics["digests"]["weights"]
    same = run_training(load_config(small.config), prepared, tmp_path / "same")
    assert same.metrics["digests"]["weights"] == weights
    assert same.metrics["test"] == finished.metrics["test"]
    other = run_training(
        load_config(small.config, ["training.seed=6", "training.epochs=1"]), prepared, tmp_path / "other"
    )
    assert other.metrics["digests"]["weights"] != weights


def _command(small, out, *extra):
    options = ["--config", small.config, "--prepared", small.prepared, "--out", out, *extra]
    return [sys.executable, "-W", "error", "-m", "training.cli", "run", *map(str, options)]


def test_a_run_killed_by_sigkill_and_resumed_ends_with_the_same_bits(finished, small, tmp_path):
    out = RunFolder(tmp_path / "killed")
    child = subprocess.Popen(_command(small, out.root), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not out.checkpoint.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    state = load_tensors(out.checkpoint)["state"]
    assert not state["position"]["finished"]
    assert not out.metrics.exists()

    done = subprocess.run(_command(small, out.root, "--resume"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "going on from step" in done.stderr
    model = load_tensors(out.model)
    assert weights_digest(model["state_dict"]) == finished.metrics["digests"]["weights"]
    resumed = json.loads(out.metrics.read_text())
    assert resumed["test"] == finished.metrics["test"]
    assert resumed["raw"] == finished.metrics["raw"]
    kept = ("event", "step", "epoch", "rows", "loss", "monitor")
    logs = [
        [{k: e.get(k) for k in kept} for e in read_log(log) if e["event"] in ("train", "evaluate")]
        for log in (out.log, finished.folder.log)
    ]
    assert logs[0] == logs[1]
    assert "resume" in [e["event"] for e in read_log(out.log)]


def test_a_finished_run_resumes_to_itself_and_a_taken_folder_is_refused(small, tmp_path):
    prepared = PreparedDataset.open(small.prepared)
    config = load_config(small.config, ["training.epochs=1"])
    first = run_training(config, prepared, tmp_path / "a")
    again = run_training(config, prepared, tmp_path / "a", resume=True)
    assert again.metrics["test"] == first.metrics["test"]
    assert again.metrics["steps"] == first.metrics["steps"]
    with pytest.raises(RunError, match="already holds a run; pass --resume"):
        run_training(config, prepared, tmp_path / "a")
    other = load_config(small.config, ["training.epochs=1", "training.seed=9"])
    with pytest.raises(CheckpointError, match="another run: config is"):
        run_training(other, prepared, tmp_path / "a", resume=True)
    assert first.folder.metrics.exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="no such run folder"):
        evaluate_run(tmp_path / "gone", "test")
    with pytest.raises(RunError, match=r"not a finished run, config\.yaml is missing"):
        evaluate_run(tmp_path, "test")


def test_a_model_of_another_schema_is_refused(finished, small):
    schema = PreparedDataset.open(small.prepared).schema.model_copy(update={"name": "renamed"})
    schema = type(schema).model_validate(schema.model_dump())
    with pytest.raises(RunError, match="trained on schema"):
        load_model(finished.folder.model, schema)
