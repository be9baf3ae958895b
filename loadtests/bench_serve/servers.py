"""Servers under test: started on a free port, watched process by process, stopped at the end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from loadtests.bench_serve import host
from service.telemetry.metrics import SLOTS_VARIABLE
from service.telemetry.slots import KEYS_SUFFIX, Claim, SlotFiles

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0


class ServerError(RuntimeError):
    """A server did not come up."""


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        url: Base address.
        port: Its port.
        pid: Of the process that was started; others are below it.
        log_file: What it writes.
    """

    url: str
    port: int
    pid: int
    log_file: Path

    def pids(self) -> list[int]:
        """All its processes."""
        return host.tree(self.pid)

    def get(self, path: str) -> bytes:
        """One GET."""
        with urllib.request.urlopen(self.url + path, timeout=10) as reply:  # noqa: S310 - our own address
            body: bytes = reply.read()
            return body

    def post(self, body: bytes) -> list[float]:
        """Scores of one request."""
        request = urllib.request.Request(  # noqa: S310 - our own address
            self.url + "/score", data=body, headers={"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as reply:  # noqa: S310
            scores: list[float] = json.load(reply)["scores"]
            return scores

    def answered_by_worker(self) -> dict[int, float]:
        """Requests that each worker has answered so far, from its own numbers; {} for one worker."""
        owner: dict[Path, int] = {}
        for pid in sorted(self.pids(), key=lambda pid: host.cpu_s([pid])):  # helpers inherit the variable
            file = _metrics_file(pid)
            if file is not None and file.with_suffix(KEYS_SUFFIX).exists():
                owner[file] = pid
        return {pid: _answered(file) for file, pid in owner.items()}


def _answered(file: Path) -> float:
    """Sum over the series of good replies in a worker's file."""
    slots = SlotFiles(file)
    claims: list[Claim] = []
    while records := slots.records():
        claims += [record for record in records if isinstance(record, Claim)]
    numbers = slots.numbers()
    good = [c for c in claims if c.name == "ctr_score_requests_total" and c.labels[-1] == "ok"]
    return sum(numbers[claim.start] for claim in good)


def _metrics_file(pid: int) -> Path | None:
    """Where a worker keeps its numbers, by its environment; the supervisor has none."""
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    names = (variable.partition(b"=") for variable in variables)
    return next((Path(value.decode()) for name, _, value in names if name == SLOTS_VARIABLE.encode()), None)


def free_port() -> int:
    """A port nobody listens on right now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def service(
    store: Path, folder: Path, *, workers: int = 2, variables: dict[str, str] | None = None
) -> Iterator[Server]:
    """`ctr-serve run` on a store; ready and with all workers there when handed out.

    Args:
        store: Folder of the store.
        folder: For the log.
        workers: Processes.
        variables: Settings, as `CTR_...` variables.
    """
    port = free_port()
    command = [sys.executable, "-m", "service.cli", "run", "--store", str(store), "--port", str(port)]
    command += ["--workers", str(workers), "--drain-pause-s", "0", "--log-level", "warning"]
    with _started(command, port, folder / f"service-{port}.log", variables or {}) as server:
        _wait(server, "/health/ready", lambda: _ready_workers(server) == workers)
        yield server


@contextlib.contextmanager
def baseline(store: Path, folder: Path, *, processes: int = 2) -> Iterator[Server]:
    """The plain FastAPI app on the same store."""
    port = free_port()
    command = [sys.executable, "-m", "loadtests.baseline_app", "--store", str(store), "--port", str(port)]
    command += ["--processes", str(processes)]
    with _started(command, port, folder / f"baseline-{port}.log", {}) as server:
        _wait(server, "/health", lambda: _num_listening(port) == processes)
        yield server


@contextlib.contextmanager
def _started(command: list[str], port: int, log_file: Path, variables: dict[str, str]) -> Iterator[Server]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("CTR_")}
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=inherited | variables)
    try:
        yield Server(f"http://127.0.0.1:{port}", port, process.pid, log_file)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(server: Server, path: str, complete: Callable[[], bool]) -> None:
    """Until a path answers and all processes are there.

    Raises:
        ServerError: It takes too long, or the process ended.
    """
    until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until:
        with contextlib.suppress(OSError, urllib.error.URLError):
            server.get(path)
            if complete():
                return
        if _has_ended(server.pid):
            break
        time.sleep(0.1)
    log = server.log_file.read_text()[-800:]
    ended = ", its process ended" if _has_ended(server.pid) else ""
    raise ServerError(f"{server.url}{path} did not come up{ended}; its log ends: {log}")


def _has_ended(pid: int) -> bool:
    """Whether a child of ours is over; it stays a zombie until it is waited for."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"


def _ready_workers(server: Server) -> int:
    for line in server.get("/metrics").decode().splitlines():
        if line.startswith("ctr_ready_workers "):
            return round(float(line.split()[1]))
    return 0


def _num_listening(port: int) -> int:
    """Listening sockets on a port, from the kernel's table."""
    wanted, listening = f":{port:04X}", "0A"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(wanted) and row[3] == listening for row in rows)
