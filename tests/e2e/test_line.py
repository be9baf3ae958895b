"""The whole line by its commands: data, training, export, a running service, the same probabilities."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest

from loadtests.examples import example_requests, wait_until_ready
from loadtests.parity import compare
from service.contract.bundle import Bundle
from service.contract.store import ModelStore
from training.data.source import open_data

BIN = Path(sys.executable).parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
CONFIG = """
name: e2e
model: {type: mmoe, num_experts: 2, expert_widths: [16], tower_widths: [], inputs: {tables: [{dim: 4}]}}
training: {epochs: 1, batch_size: 256, num_threads: 1, evaluations_per_epoch: 2}
"""
REQUIRED = {
    "total_auc",
    "domain_auc",
    "major5_auc",
    "minor10_auc",
    "gauc",
    "logloss",
    "ece",
    "calibration_ratio",
    "domains",
}


@dataclass(frozen=True)
class Line:
    """What the commands left behind."""

    data: Path
    run: Path
    store: Path

    @property
    def bundle(self) -> Bundle:
        """The published bundle."""
        return ModelStore(self.store).open("stable")


def command(*words: str | Path) -> None:
    """Run a console script; its output is shown when it fails."""
    done = subprocess.run(
        [BIN / words[0], *words[1:]], env=ENVIRONMENT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    """Synthetic data, one small run, one bundle."""
    root = tmp_path_factory.mktemp("line")
    made = Line(data=root / "data", run=root / "run", store=root / "models")
    (root / "config.yaml").write_text(CONFIG)
    command("ctr-train", "data", "synthetic", "--preset", "small", "--out", made.data)
    command("ctr-train", "run", "--config", root / "config.yaml", "--data", made.data, "--out", made.run)
    command("ctr-export", "build", made.run, "--store", made.store)
    return made


@pytest.fixture(scope="module")
def client(line: Line) -> Iterator[httpx.Client]:
    """A client of a service that runs the bundle; the service must end cleanly on SIGTERM."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    service = subprocess.Popen(
        [BIN / "ctr-serve", "run", "--store", line.store, "--port", str(port)],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as made:
        assert wait_until_ready(made, timeout_s=60)
        yield made
    service.send_signal(signal.SIGTERM)
    assert service.wait(timeout=30) == 0


def test_metrics_json_has_the_promised_keys(line: Line):
    """Both parts hold every headline figure, and each domain its AUC, rows and ECE."""
    metrics = json.loads((line.run / "metrics.json").read_text())

    for part in ("valid", "test"):
        assert set(metrics[part]) >= REQUIRED
        assert all(set(d) >= {"auc", "rows", "ece"} for d in metrics[part]["domains"].values())


def test_the_model_learns_and_stays_below_the_truth(line: Line):
    """Test AUC beats a coin clearly and does not beat the known click probabilities."""
    metrics = json.loads((line.run / "metrics.json").read_text())

    assert 0.6 < metrics["test"]["total_auc"] < metrics["oracle"]["test"]["total_auc"]


def test_posted_test_rows_get_the_offline_probability(line: Line, client: httpx.Client):
    """Raw ids and context of test rows score as the offline evaluation did, to 1e-5."""
    worst = compare(line.run, open_data(line.data), client, num_rows=300, seed=0)

    assert worst <= 1e-5


def test_the_bundle_says_what_it_is(line: Line):
    """Identity, provenance, figures and calibrators of every domain are in the manifest."""
    manifest = line.bundle.manifest
    metrics = json.loads((line.run / "metrics.json").read_text())
    calibration = json.loads((line.run / "calibration.json").read_text())

    assert manifest.model == "mmoe"
    assert manifest.provenance.data_digest == metrics["digests"]["data"]
    assert manifest.provenance.trained_at == metrics["finished_at"]
    assert manifest.metrics["test"]["total_auc"] == metrics["test"]["total_auc"]
    for name, entry in manifest.domains.items():
        assert entry.calibration.scale == calibration["domains"][name]["scale"]
        assert entry.metrics.get("test.auc") == metrics["test"]["domains"][name]["auc"]


def test_building_twice_gives_the_same_bundle(line: Line, tmp_path: Path):
    """The id is a digest of content: the same run gives the same bundle anywhere."""
    command("ctr-export", "build", line.run, "--store", tmp_path / "again", "--alias", "canary")

    assert ModelStore(tmp_path / "again").aliases() == {"canary": line.bundle.bundle_id}


def test_a_bundle_is_readable_by_another_user(line: Line):
    """Containers run as somebody else: every file is world-readable."""
    assert all(p.stat().st_mode & 0o044 == 0o044 for p in line.bundle.path.rglob("*") if p.is_file())


def test_verify_notices_a_damaged_file(line: Line, tmp_path: Path):
    """One flipped byte in the weights: exit status 1, the file is named."""
    command("ctr-export", "build", line.run, "--store", tmp_path)
    weights = next(tmp_path.glob("*/graphs/whole.bin"))
    content = bytearray(weights.read_bytes())
    content[100] ^= 1
    weights.write_bytes(content)

    done = subprocess.run(
        [BIN / "ctr-export", "verify", "--store", tmp_path], capture_output=True, text=True, timeout=120
    )

    assert done.returncode == 1
    assert "whole.bin" in done.stderr
    assert "damaged" in done.stderr


def test_the_example_requests_of_make_run_score(line: Line, client: httpx.Client):
    """Each example answers one probability per item, from a bundle that is ready."""
    for request in example_requests(line.store):
        reply = client.post("/score", json=request)

        assert reply.status_code == httpx.codes.OK, reply.text
        assert len(reply.json()["scores"]) == len(request["items"])
        assert np.all(np.array(reply.json()["scores"]) < 1)
