"""What all deploy tests share: the kit, one Docker engine, images built once, figures.

`DEPLOY_KIT` names the folder of the kit, which starts a real engine and a real Kubernetes. While working on
these tests, `DEPLOY_ENGINE` may name the work folder of an engine that runs already; it is left running, and
images that it has are taken as they are.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.deploy import engine as engines
from tests.deploy.engine import ROOT, SERVICE_IMAGE, TRAINING_IMAGE, Engine, run

FIGURES = ROOT / "runs" / "deploy" / "figures.json"
BUILD_TIMEOUT_S = 900


@dataclass
class Figures:
    """What was measured, by name; printed at the end and written to runs/deploy/figures.json."""

    found: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, value: Any) -> None:
        """Keep a figure; a dictionary for several that belong together."""
        self.found[name] = value


_figures = Figures()


@pytest.fixture(scope="session")
def figures() -> Figures:
    """Where tests leave what they measured."""
    return _figures


def pytest_sessionstart() -> None:
    """Let SIGTERM end the run as Ctrl-C does, so that nothing that was started stays behind."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the figures."""
    if not _figures.found:
        return
    FIGURES.parent.mkdir(parents=True, exist_ok=True)
    FIGURES.write_text(json.dumps(_figures.found, indent=1) + "\n")
    terminalreporter.section(f"figures, also in {FIGURES.relative_to(ROOT)}")
    for name, value in _figures.found.items():
        terminalreporter.write_line(f"{name}: {value}")


@pytest.fixture(scope="session")
def kit() -> Path:
    """Folder of the kit; tests that need it are skipped where there is none, or no root."""
    named = os.environ.get("DEPLOY_KIT")
    if not named:
        pytest.skip("skipped for want of a kit: DEPLOY_KIT names no folder with engine.sh and kube.sh")
    folder = Path(named).resolve()
    if not (folder / "engine.sh").is_file():
        pytest.skip(f"skipped for want of a kit: {folder} (DEPLOY_KIT) holds no engine.sh")
    if os.geteuid():
        pytest.skip("skipped for want of root: a Docker engine of our own can be started by root only")
    return folder


@pytest.fixture(scope="session")
def engine(kit: Path, figures: Figures) -> Iterator[Engine]:
    """A Docker engine for this run."""
    if running := os.environ.get("DEPLOY_ENGINE"):
        yield Engine(Path(running), engines.environment(Path(running)))
        return
    # Not below pytest's folder: its name is long, and a socket's path has at most 107 characters.
    work = Path(tempfile.mkdtemp(prefix="deploy-"))
    try:
        begun = time.monotonic()
        made = engines.start(kit, work)
        figures.add("engine_start_s", round(time.monotonic() - begun, 1))
        yield made
    finally:
        engines.stop(kit, work)
        shutil.rmtree(work, ignore_errors=True)


@dataclass(frozen=True)
class Images:
    """Names of the images that were built."""

    service: str = SERVICE_IMAGE
    training: str = TRAINING_IMAGE


@pytest.fixture(scope="session")
def images(engine: Engine, figures: Figures) -> Images:
    """Both images, built from this working tree."""
    if os.environ.get("DEPLOY_ENGINE") and engine.docker("images", "-q", TRAINING_IMAGE):
        return Images()
    begun = time.monotonic()
    # The stage that both share first, so that it is built once; then as compose does.
    engine.docker(
        *("build", "-q", "-f", "docker/Dockerfile", "--target", "dependencies", "."),
        timeout_s=BUILD_TIMEOUT_S,
    )
    # What the base image finds wheels in stands for the index of torch without CUDA.
    build = ["docker", "compose", "-f", ROOT / "compose.yaml", "build"]
    run(build, env={**engine.env, "TORCH_INDEX": ""}, timeout_s=BUILD_TIMEOUT_S)
    figures.add("images_build_s", round(time.monotonic() - begun, 1))
    return Images()
