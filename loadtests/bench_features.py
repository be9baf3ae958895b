"""Rate of whole requests by feature source: embedded, Redis with an empty near cache, Redis with a warm one.

    python -m loadtests.bench_features --store models --redis-url redis://127.0.0.1:6379/0 [--items 100]

Loads the bundle's snapshot under a key prefix of its own (forgotten after an hour), then drives the
ASGI app of each source in turn, round after round, within this process: sources meet the same
disturbances. The empty cache is one without room, so every request reads all its rows. Prints requests
per second and CPU microseconds per request of this process (the server's own CPU comes on top, and
competes for the cores), each as the median of rounds, and the ratio of rates to the embedded source.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from service.app import Application, create_app
from service.contract.bundle import Bundle
from service.contract.schema import Entity
from service.contract.store import ModelStore
from service.features.jobs import make_cursor, make_writer, run_load, snapshot_parts
from service.features.load import Loader
from service.features.memory_source import MemorySource
from service.settings import Settings

PREFIX = "ctr-bench"
EXPIRE_S = 3600
NUM_BODIES = 500


@dataclass
class Figures:
    """Rounds of one source."""

    rates: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    num_degraded: int = 0


def main() -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("models"))
    parser.add_argument("--alias", default="stable")
    parser.add_argument("--redis-url", required=True)
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--callers", type=int, default=8, help="requests at a time")
    parser.add_argument("--seconds", type=float, default=1.0, help="per source and round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    figures = uvloop.run(measure(options))
    embedded = statistics.median(figures["embedded"].rates)
    report = {
        name: {
            "requests_per_s": round(statistics.median(each.rates), 1),
            "cpu_us": round(statistics.median(each.cpu_us), 1),
            "rate_ratio": round(statistics.median(each.rates) / embedded, 3),
            "num_degraded": each.num_degraded,
        }
        for name, each in figures.items()
    }
    for name, row in report.items():
        sys.stdout.write(f"{name:12s}" + "  ".join(f"{k} {v}" for k, v in row.items()) + "\n")
    if options.json:
        options.json.write_text(json.dumps({"items": options.items, "figures": report}, indent=1))
    return 0


async def measure(options: argparse.Namespace) -> dict[str, Figures]:
    """Figures of each source."""
    common = {"store": options.store, "alias": options.alias, "max_items": max(1000, options.items)}
    redis = {
        **common,
        "feature_source": "redis",
        "redis_url": options.redis_url,
        "redis_key_prefix": PREFIX,
        "feature_timeout_ms": 400,
        "near_cache_ttl_s": 1e6,
    }
    bundle = ModelStore(options.store).open(options.alias)
    await fill(bundle, Settings(**redis))
    bodies = make_bodies(bundle, options.items)
    variants = {
        "embedded": Settings(**common),
        "redis cold": Settings(**redis, near_cache_user_bytes=0, near_cache_item_bytes=0),
        "redis warm": Settings(**redis, near_cache_user_bytes=1 << 30, near_cache_item_bytes=1 << 30),
    }
    apps: dict[str, Application] = {}
    figures = {name: Figures() for name in variants}
    async with AsyncExitStack() as stack:
        for name, settings in variants.items():
            app = apps[name] = create_app(settings)
            await app.serving.load()
            stack.callback(app.serving.close)
            await drive(app, bodies, options.callers, options.seconds, Figures())
        for _ in range(options.rounds):
            for name, app in apps.items():
                await drive(app, bodies, options.callers, options.seconds, figures[name])
    return figures


async def fill(bundle: Bundle, settings: Settings) -> None:
    """Load the snapshot under the benchmark's own prefix."""
    parts = snapshot_parts(bundle, int(time.time() * 1000))
    loader = Loader(bundle.schema, PREFIX, make_writer(settings, expire_s=EXPIRE_S))
    cursor = make_cursor(None, settings, bundle, parts)
    await run_load(parts, loader, cursor, batch_rows=2000, on_rows=lambda *_: None)


def make_bodies(bundle: Bundle, num_items: int) -> list[bytes]:
    """Requests for stored users and items, by column, items of one request distinct."""
    source = MemorySource.from_bundle(bundle)
    users = source.first_ids(Entity.USER, len(source.users))
    items = source.first_ids(Entity.ITEM, len(source.items))
    domains = list(bundle.manifest.domains)
    draw = random.Random(0)
    return [
        json.dumps(
            {
                "domain": draw.choice(domains),
                "user": {"id": draw.choice(users)},
                "items": {"id": draw.sample(items, min(num_items, len(items)))},
            }
        ).encode()
        for _ in range(NUM_BODIES)
    ]


async def drive(
    app: Application, bodies: list[bytes], num_callers: int, seconds: float, figures: Figures
) -> None:
    """Ask for a while from several callers, and note the rate and the CPU."""
    count = 0
    end = time.perf_counter() + seconds

    async def caller(place: int) -> None:
        nonlocal count
        while time.perf_counter() < end:
            status, reply = await ask(app, bodies[place % len(bodies)])
            if status != 200:
                raise SystemExit(f"the reply was {status}: {reply!r}")
            figures.num_degraded += b'"degraded":[]' not in reply
            count += 1
            place += num_callers
            await asyncio.sleep(0)  # as between two requests of a server

    begun, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(caller(place) for place in range(num_callers)))
    figures.rates.append(count / (time.perf_counter() - begun))
    figures.cpu_us.append((time.process_time() - cpu) / count * 1e6)


async def ask(app: Application, body: bytes) -> tuple[int, bytes]:
    """Status and body of one reply."""
    sent: list[Mapping[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Mapping[str, Any]) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await app({"type": "http", "method": "POST", "path": "/score", "headers": headers}, receive, send)
    return sent[0]["status"], sent[1]["body"]


if __name__ == "__main__":
    sys.exit(main())
