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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from loadtests.bench_serve import host

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0
METRICS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


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
        """Requests that each worker has answered so far, from its own counters; {} for one worker."""
        from prometheus_client.mmap_dict import MmapedDict

        counts: dict[int, float] = {}
        for pid in self.pids():
            file = _metrics_folder(pid) / f"counter_{pid}.db"
            if not file.exists():
                continue
            values = MmapedDict.read_all_values_from_file(str(file))  # type: ignore[no-untyped-call]
            counts[pid] = sum(
                value
                for key, value, *_ in values
                if key.startswith('["ctr_score_requests') and '"outcome": "ok"' in key
            )
        return counts


def _metrics_folder(pid: int) -> Path:
    """Where a worker keeps its counters, by its environment."""
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return Path("/nonexistent")
    for variable in variables:
        name, _, value = variable.partition(b"=")
        if name == METRICS_VARIABLE.encode():
            return Path(value.decode())
    return Path("/nonexistent")


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


def _wait(server: Server, path: str, complete: object) -> None:
    """Until a path answers and all processes are there.

    Raises:
        ServerError: It takes too long, or the process ended.
    """
    until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until:
        with contextlib.suppress(OSError, urllib.error.URLError):
            server.get(path)
            if callable(complete) and complete():
                return
        if not Path(f"/proc/{server.pid}/cmdline").read_bytes():  # a zombie has none
            break
        time.sleep(0.1)
    log = server.log_file.read_text()[-800:]
    raise ServerError(f"{server.url}{path} did not come up; its log ends: {log}")


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
