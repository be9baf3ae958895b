"""Reloads of the default bundle under load: time, longest stop of the event loop, memory.

    python -m loadtests.bench_reload --store models --first stable --second canary [--reloads 50]

Alternates between two bundles of a store (through links in a folder of its own; the store is not touched)
while callers keep asking the app within this process. Prints seconds of a reload, the longest time that the
event loop stood still in it, next to the longest in as much time without reloads, resident memory, and how
many requests were answered with what status.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from loadtests.bench_features import make_bodies
from service.app import Application, create_app
from service.bundles.pool import GIVE_BACK_AFTER_S
from service.contract.store import ALIASES_FILE, ModelStore
from service.server import keep_heap
from service.settings import Settings
from service.telemetry.log import configure_logging

ALIAS = "moving"
CALLERS = 4
TICK_S = 0.001
PAGE_BYTES = 4096


@dataclass
class Seen:
    """What callers and ticker note."""

    statuses: Counter[int] = field(default_factory=Counter)
    gap_s: float = 0.0
    done: bool = False


def main() -> int:
    """Measure and print; returns the exit status: 0 when every request was answered 200."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("models"))
    parser.add_argument("--first", default="stable")
    parser.add_argument("--second", default="canary")
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--reloads", type=int, default=50)
    options = parser.parse_args()
    configure_logging("error")
    with tempfile.TemporaryDirectory() as folder:
        links = Path(folder)
        store = ModelStore(options.store)
        ids = [store.resolve(name) for name in (options.first, options.second)]
        for bundle_id in set(ids):
            (links / bundle_id).symlink_to((options.store / bundle_id).resolve())
        return uvloop.run(measure(links, ids, options.items, options.reloads))


async def measure(store: Path, ids: list[str], num_items: int, num_reloads: int) -> int:
    """Run the reloads and print."""
    point(store, ids[0])
    app = create_app(Settings(store=store, alias=ALIAS, alias_poll_s=0, max_items=max(1000, num_items)))
    app.serving.before_ready = keep_heap
    await app.serving.load()
    scorer, _ = app.serving.require()
    bodies = make_bodies(scorer.loaded.bundle, num_items)
    size = scorer.loaded.num_bytes
    del scorer
    seen = Seen()
    tasks = [asyncio.create_task(tick(seen))]
    tasks += [asyncio.create_task(keep_asking(app, bodies, seen)) for _ in range(CALLERS)]
    await asyncio.sleep(1.0)
    quiet_s, took_s, gaps_s = seen.gap_s, [], []
    for number in range(1, num_reloads + 1):
        point(store, ids[number % 2])
        seen.gap_s = 0.0
        done = await app.serving.reload()
        took_s.append(done.took_s)
        gaps_s.append(seen.gap_s)
        if done.result != "loaded":
            raise SystemExit(f"reload {number}: {done.result} {done.reason}; give two different bundles")
        await asyncio.sleep(0.05)
        if number in (10, num_reloads):
            await asyncio.sleep(GIVE_BACK_AFTER_S + 0.2)
            say(f"after {number:3d} reloads  resident {resident_bytes() / 2**20:.1f} MiB")
    seen.done = True
    await asyncio.gather(*tasks)
    app.serving.close()
    say(f"bundle            {size / 2**20:.1f} MiB")
    say(f"reload            median {statistics.median(took_s):.3f} s, longest {max(took_s):.3f} s")
    say(f"longest gap       median {statistics.median(gaps_s) * 1000:.0f} ms of each reload")
    say(f"                  {max(gaps_s) * 1000:.0f} ms of all, {quiet_s * 1000:.0f} ms in a quiet second")
    say(f"requests          {dict(seen.statuses)}")
    return 0 if set(seen.statuses) == {200} else 1


def point(store: Path, bundle_id: str) -> None:
    """Move the alias."""
    (store / ALIASES_FILE).write_text(json.dumps({ALIAS: bundle_id}))


async def tick(seen: Seen) -> None:
    """Note by how much the loop is late."""
    last = time.perf_counter()
    while not seen.done:
        await asyncio.sleep(TICK_S)
        now = time.perf_counter()
        seen.gap_s = max(seen.gap_s, now - last - TICK_S)
        last = now


async def keep_asking(app: Application, bodies: list[bytes], seen: Seen) -> None:
    """Ask one request after another."""
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/score",
        "headers": [(b"content-type", b"application/json")],
    }
    for body in itertools.cycle(bodies):
        if seen.done:
            return

        async def receive(body: bytes = body) -> dict[str, object]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, object]) -> None:
            if message["type"] == "http.response.start":
                seen.statuses[int(str(message["status"]))] += 1

        await app(scope, receive, send)
        await asyncio.sleep(0)


def resident_bytes() -> int:
    """Memory of this process in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


def say(line: str) -> None:
    """Print one line."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
