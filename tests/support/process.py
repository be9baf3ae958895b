"""A real `ctr-serve run` in a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

START_TIMEOUT_S = 60.0


@dataclass
class Running:
    """A started service."""

    process: subprocess.Popen[bytes]
    url: str
    log_file: Path

    def terminate(self, timeout_s: float = 30.0) -> int:
        """SIGTERM, then its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def log(self) -> str:
        """What it wrote so far."""
        return self.log_file.read_text()

    def wait_until(self, path: str, status: int) -> httpx.Response:
        """Poll a path until it answers with a status."""
        until = time.monotonic() + START_TIMEOUT_S
        last = "no answer"
        while time.monotonic() < until:
            try:
                response = httpx.get(self.url + path, timeout=5)
            except httpx.TransportError as error:
                last = repr(error)
            else:
                if response.status_code == status:
                    return response
                last = f"{response.status_code} {response.text}"
            time.sleep(0.05)
        raise AssertionError(f"{path} did not answer {status}: {last}\n{self.log()}")


def free_port() -> int:
    """A port nobody listens on right now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def running(store: Path, folder: Path, *options: str, **variables: str) -> Iterator[Running]:
    """Start `ctr-serve run` on a free port; killed at the end if still there."""
    port = free_port()
    log_file = folder / f"serve-{port}.log"
    command = [
        sys.executable,
        "-m",
        "service.cli",
        "run",
        "--store",
        str(store),
        "--port",
        str(port),
        *options,
    ]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CTR_")} | variables
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        yield Running(process, f"http://127.0.0.1:{port}", log_file)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
