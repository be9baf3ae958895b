"""A Docker engine of our own for one test run, started and ended by the kit's `engine.sh`.

Reads the kit's folder; writes below a work folder. Invariant: commands reach this engine only, never one
that the machine has anyway, and the engine ends with the run.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SERVICE_IMAGE = "ctr-service:0.1.0"
TRAINING_IMAGE = "ctr-training:0.1.0"
START_TIMEOUT_S = 400


class CommandError(AssertionError):
    """A command ended with another exit code than 0; says what it wrote."""


def run(
    command: list[str | Path],
    *,
    env: dict[str, str] | None = None,
    timeout_s: float = 120,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run a command in the repository root.

    Raises:
        CommandError: It fails, unless `check` is off.
    """
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout_s)
    if check and done.returncode:
        said = f"{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
        raise CommandError(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{said}")
    return done


@dataclass(frozen=True)
class Engine:
    """A running engine.

    Attributes:
        work: Its folder.
        env: Environment in which `docker` and `docker compose` reach it.
    """

    work: Path
    env: dict[str, str] = field(repr=False)

    def docker(self, *words: str | Path, timeout_s: float = 120, check: bool = True) -> str:
        """Run a docker command; returns its stdout."""
        return run(["docker", *words], env=self.env, timeout_s=timeout_s, check=check).stdout

    def inspect(self, name: str) -> dict[str, Any]:
        """What the engine knows of a container or image."""
        found: list[dict[str, Any]] = json.loads(self.docker("inspect", name))
        return found[0]


def environment(work: Path) -> dict[str, str]:
    """Variables with which commands reach the engine of a work folder."""
    ours = {"DOCKER_HOST": f"unix://{work}/docker.sock", "DOCKER_CONFIG": str(work / "cfg")}
    # Proxies and the like stay; settings of a service and of compose do not.
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("CTR_", "COMPOSE_", "DOCKER_"))}
    return {**kept, **ours}


def start(kit: Path, work: Path) -> Engine:
    """Start an engine with its stand-ins for public images."""
    # To a file: the engine stays behind, and a pipe that it inherits would never end.
    log = work / "engine.log"
    with log.open("w") as out:
        done = subprocess.run(
            ["bash", kit / "engine.sh", "up", work], stdout=out, stderr=out, timeout=START_TIMEOUT_S
        )
    if done.returncode:
        raise CommandError(f"engine.sh up: exit code {done.returncode}\n{log.read_text()[-6000:]}")
    return Engine(work, environment(work))


def stop(kit: Path, work: Path) -> None:
    """End the engine of a work folder and all that runs in it."""
    subprocess.run(["bash", kit / "engine.sh", "down", work], timeout=120, capture_output=True)
