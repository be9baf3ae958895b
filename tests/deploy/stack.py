"""The compose stack as a newcomer starts it, on free ports and with the small data set.

Invariant: what a stack started is gone after `down(forget=True)`: containers, network and volumes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.deploy.engine import ROOT, Engine, run
from tests.support.process import free_port

FILES = ("compose.yaml", "tests/deploy/compose.kit.yaml")
UP_TIMEOUT_S = 900


@dataclass
class Stack:
    """A project of compose.

    Attributes:
        engine: Where it runs.
        project: Its name.
        url: Of the service, through the gateway.
        prometheus: URL of Prometheus.
        env: Environment of all commands.
    """

    engine: Engine
    project: str
    url: str
    prometheus: str
    env: dict[str, str] = field(repr=False)

    def compose(self, *words: str, timeout_s: float = 120) -> str:
        """Run a compose command on the project; returns its stdout."""
        named = [word for file in FILES for word in ("-f", str(ROOT / file))]
        return run(["docker", "compose", *named, *words], env=self.env, timeout_s=timeout_s).stdout

    def up(self) -> float:
        """Start all that does not run and wait until it is healthy; returns the seconds it took."""
        begun = time.monotonic()
        self.compose(
            "up",
            "-d",
            "--no-build",
            "--wait",
            "--wait-timeout",
            str(UP_TIMEOUT_S),
            timeout_s=UP_TIMEOUT_S + 60,
        )
        return time.monotonic() - begun

    def down(self, *, forget: bool) -> None:
        """Stop and remove all containers; forget also what volumes hold."""
        self.compose("down", *(["--volumes"] if forget else []), timeout_s=180)

    def containers(self, service: str) -> list[str]:
        """Ids of a service's containers, ended ones included."""
        return self.compose("ps", "--all", "--quiet", service).split()

    def redis(self, *words: str) -> str:
        """Ask Redis."""
        return self.compose("exec", "-T", "redis", "redis-cli", *words).strip()

    def copy(self, service: str, source: str, to: Path) -> Path:
        """Copy a path out of a service's container; returns where it is."""
        self.engine.docker("cp", f"{self.containers(service)[0]}:{source}", to)
        return to

    def ask(self, query: str) -> list[dict[str, Any]]:
        """Samples that answer an instant query, without those that are no number."""
        reply = httpx.get(f"{self.prometheus}/api/v1/query", params={"query": query}, timeout=30)
        assert reply.status_code == httpx.codes.OK, f"{query}: {reply.text}"
        result = reply.json()["data"]["result"]
        return [sample for sample in result if sample["value"][1] not in {"NaN"}]

    def report(self) -> str:
        """What its containers wrote last."""
        return self.compose("ps", "--all") + self.compose("logs", "--tail", "40")


def make_stack(engine: Engine, project: str, **variables: str) -> Stack:
    """A stack that is not started, with ports of its own."""
    ports = {"SCORE_PORT": free_port(), "PROMETHEUS_PORT": free_port()}
    chosen = {"COMPOSE_PROJECT_NAME": project, **{k: str(v) for k, v in ports.items()}, **variables}
    return Stack(
        engine,
        project,
        url=f"http://127.0.0.1:{ports['SCORE_PORT']}",
        prometheus=f"http://127.0.0.1:{ports['PROMETHEUS_PORT']}",
        env={**engine.env, **chosen},
    )


def wait_for(what: str, found: Callable[[], Any], *, timeout_s: float, every_s: float = 1.0) -> Any:
    """The first answer that counts as true.

    Raises:
        AssertionError: There is none in time; says what was waited for and the last answer.
    """
    end = time.monotonic() + timeout_s
    while not (answer := found()):
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {timeout_s:g} s; last answer {json.dumps(answer)}")
        time.sleep(every_s)
    return answer
