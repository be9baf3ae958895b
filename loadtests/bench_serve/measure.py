"""Measurements of one round: saturation, a fixed rate, the cost of a scrape."""

from __future__ import annotations

import http.client
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests.bench_serve import host
from loadtests.bench_serve.servers import Server
from loadtests.bench_serve.wrk import CONNECTIONS, Saturated, saturate

RATE_CONNECTIONS = 32


@dataclass(frozen=True)
class Run:
    """One saturated run.

    Attributes:
        load: What wrk saw.
        cpu_us: CPU microseconds per request of the whole process tree.
        balance_cpu: CPU of the busiest worker over that of the least busy one.
        balance_requests: The same of answered requests; None where they are not counted by worker.
        noise: Of the run.
    """

    load: Saturated
    cpu_us: float
    balance_cpu: float
    balance_requests: float | None
    noise: host.Noise


def saturated(server: Server, script: Path, seconds: float) -> Run:
    """Load a server with all connections."""
    before = server.answered_by_worker()
    meter = host.Meter(server.pids())
    load = saturate(server.url, script, seconds=seconds, connections=CONNECTIONS)
    used, noise = meter.stop(load.seconds)
    answered = {pid: count - before.get(pid, 0.0) for pid, count in server.answered_by_worker().items()}
    workers = list(answered) or _serving(used)
    return Run(
        load=load,
        cpu_us=1e6 * sum(used.values()) / load.num_requests,
        balance_cpu=_ratio([used.get(pid, 0.0) for pid in workers]),
        balance_requests=_ratio(list(answered.values())) if len(answered) > 1 else None,
        noise=noise,
    )


def _serving(used: dict[int, float]) -> list[int]:
    """Processes that did a noticeable part of the work."""
    most = max(used.values())
    return [pid for pid, seconds in used.items() if seconds > most / 50]


def _ratio(values: list[float]) -> float:
    return max(values) / max(min(values), 1e-9) if values else 1.0


@dataclass(frozen=True)
class AtRate:
    """Latency at a fixed rate, from the intended starts."""

    rate: float
    p50_ms: float
    p99_ms: float
    num_other: int
    noise: host.Noise


def at_rate(server: Server, bodies: Path, rate: float, seconds: float) -> AtRate:
    """Open loop in a process of its own; anything but a 200 counts as other."""
    meter = host.Meter(server.pids())
    figures = open_loop(server.port, bodies, rate, seconds, connections=RATE_CONNECTIONS)
    _, noise = meter.stop(seconds)
    other = sum(count for status, count in figures["statuses"].items() if status != "200")
    return AtRate(
        rate=rate,
        p50_ms=figures["latency_ms"]["p50"],
        p99_ms=figures["latency_ms"]["p99"],
        num_other=other + figures["num_broken"] + figures["num_unanswered"],
        noise=noise,
    )


def open_loop(port: int, bodies: Path, rate: float, seconds: float, *, connections: int) -> dict[str, Any]:
    """Run the generator; returns what it prints."""
    command = [sys.executable, "-m", "loadtests.open_loop", "--port", str(port), "--rate", str(rate)]
    command += ["--seconds", str(seconds), "--bodies", str(bodies), "--connections", str(connections)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


@dataclass(frozen=True)
class Scrape:
    """What a scrape does to its worker.

    Attributes:
        took_ms: Median time of a scrape.
        stop_ms: Median over scrapes of the longest pause of the event loop meanwhile, beyond its median
            answer without a scrape.
    """

    took_ms: float
    stop_ms: float


def scrape(server: Server, *, repeats: int = 10) -> Scrape:
    """Probe one worker's liveness back to back on one connection while another connection scrapes it.

    Both connections must sit on the same worker, which the kernel decides: several are opened, and the
    slowest probe among all of them is taken, so whichever worker renders, its pause is seen.
    """
    probes = [http.client.HTTPConnection("127.0.0.1", server.port) for _ in range(4)]
    quiet = statistics.median(_probe(probe) for _ in range(50) for probe in probes)
    took, stops = [], []
    for _ in range(repeats):
        scraper = http.client.HTTPConnection("127.0.0.1", server.port)
        scraper.request("GET", "/metrics")
        begun, longest = time.perf_counter(), 0.0
        scraper.sock.setblocking(False)  # noqa: FBT003 - of the socket module
        while not _has_data(scraper):
            longest = max(longest, *(_probe(probe) for probe in probes))
        took.append(time.perf_counter() - begun)
        scraper.sock.setblocking(True)  # noqa: FBT003
        scraper.getresponse().read()
        scraper.close()
        stops.append(max(longest - quiet, 0.0))
    for probe in probes:
        probe.close()
    return Scrape(1000 * statistics.median(took), 1000 * statistics.median(stops))


def _has_data(connection: http.client.HTTPConnection) -> bool:
    import socket

    try:
        return bool(connection.sock.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


def _probe(connection: http.client.HTTPConnection) -> float:
    begun = time.perf_counter()
    connection.request("GET", "/health/live")
    connection.getresponse().read()
    return time.perf_counter() - begun
