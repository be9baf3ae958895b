"""A minute of users and a while of planned arrivals on a trained bundle, held to the project's objectives."""

import subprocess
import sys
from pathlib import Path

import pytest

import training
from loadtests.bench_serve.servers import service
from loadtests.campaign import main
from loadtests.record import read_run
from loadtests.slo import SLO_FILE, judge, read_objectives
from tests.deploy.engine import ROOT

CONFIG = Path(training.__file__).parent / "configs" / "synthetic_mmoe.yaml"
ROUTING = ROOT / "loadtests" / "routing.yaml"
OUT = ROOT / "runs" / "deploy" / "load"
SECONDS = {"users": 60, "arrivals": 20}
RATE = 100


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A bundle of the smallest demo, trained for one epoch."""
    work = tmp_path_factory.mktemp("demo")
    programs = Path(sys.executable).parent
    trained = ("--config", CONFIG, "--data", work / "data", "--out", work / "run")
    for words in (
        ("ctr-train", "data", "synthetic", "--preset", "small", "--out", work / "data"),
        ("ctr-train", "run", *trained, "--set", "training.epochs=1"),
        ("ctr-export", "build", work / "run", "--store", work / "models"),
    ):
        done = subprocess.run([programs / words[0], *words[1:]], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    return work / "models"


@pytest.fixture(scope="module")
def status(store, tmp_path_factory):
    """Exit status of the campaign."""
    folder = tmp_path_factory.mktemp("service")
    variables = {"CTR_ROUTING_FILE": str(ROUTING), "CTR_FEEDBACK_DIR": str(folder / "feedback")}
    variables["CTR_EXPOSURE_DIR"] = str(folder / "exposures")
    with service(store, folder, workers=2, variables=variables) as server:
        words = ["--store", store, "--routing", ROUTING, "--port", server.port, "--out", OUT, "--rate", RATE]
        words += ["--user-seconds", SECONDS["users"], "--rate-seconds", SECONDS["arrivals"]]
        return main([str(word) for word in words])


def test_a_minute_of_load_keeps_every_objective(status, figures):
    objectives = read_objectives(SLO_FILE)
    for name, seconds in SECONDS.items():
        run = read_run(OUT / name)
        measured = {v.objective: v.value for v in judge(run, objectives, None) if v.value is not None}
        told = ("availability", "latency_ms.all.p50", "latency_ms.all.p99", "shed", "parity")
        figures.add(
            f"load_{name}",
            {
                "requests_sent": len(run.calls),
                "requests_failed": sum(call.status not in {200, 202} for call in run.calls),
                "requests_per_s": round(len(run.calls) / seconds, 1),
                **{objective: float(f"{measured[objective]:.4g}") for objective in told},
            },
        )
    assert status == 0


def test_the_reports_are_there(status):
    for name in SECONDS:
        assert "<h2>Objectives</h2>" in (OUT / name / "report.html").read_text()
