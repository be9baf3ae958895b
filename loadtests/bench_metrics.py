"""What metrics cost a request, and how long a scrape stops the event loop.

    python -m loadtests.bench_metrics [--domains 100] [--bundles 4] [--arms 2] [--workers 2] [--json out.json]

Makes the metrics of several workers in this process, on files as the supervisor gives them, and fills every
series. Writes CPU microseconds of all updates of one request, and over some scrapes of one worker: the
longest CPU time between two turns of its loop, the longest wall time (on a busy machine others' time is in
it), and the size of the text.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

from service.telemetry.metrics import BundleMetrics, Metrics

ROUNDS = 7
REQUESTS = 5000
SCRAPES = 20
READS = {"user_reads": (1, 0, 0, 0, 0), "item_reads": (90, 0, 10, 0, 0)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--domains", type=int, default=100)
    parser.add_argument("--bundles", type=int, default=4)
    parser.add_argument("--arms", type=int, default=2, help="of each bundle")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workers = [Metrics(file=Path(folder) / f"worker-{number}") for number in range(options.workers)]
        means = {f"domain-{number}": 0.1 for number in range(options.domains)}
        for metrics in workers:
            for bundle in range(options.bundles):
                for arm in range(options.arms):
                    fill(metrics, f"v{bundle}", f"experiment-{arm}/arm", means)
        figures: dict[str, Any] = {"request_cpu_us": request_us(workers[0], means)}
        first = uvloop.run(scrape(workers[0]))
        later = [uvloop.run(scrape(workers[0])) for _ in range(SCRAPES)]
    figures |= {
        "text_lines": first["lines"],
        "first_scrape_ms": first["took_ms"],
        "first_scrape_longest_cpu_turn_ms": first["cpu_turn_ms"],
        "scrape_ms": sorted(row["took_ms"] for row in later)[SCRAPES // 2],
        "longest_cpu_turn_ms": max(row["cpu_turn_ms"] for row in later),
        "longest_wall_turn_ms": max(row["wall_turn_ms"] for row in later),
        "median_of_longest_wall_turns_ms": sorted(row["wall_turn_ms"] for row in later)[SCRAPES // 2],
    }
    for name, figure in figures.items():
        print(f"{name:36} {figure:.3f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


def fill(metrics: Metrics, version: str, arm: str, means: dict[str, float]) -> BundleMetrics:
    """One scored request of each domain, in one arm."""
    mine = metrics.for_bundle(model="m", version=version, alias=version, mean_scores=means, arm=arm)
    for domain in means:
        update(mine, domain)
    return mine


def update(mine: BundleMetrics, domain: str) -> None:
    """All that is counted of one request."""
    for stage in (mine.decode, mine.features, mine.infer, mine.reply, mine.total):
        stage.observe(0.0002)
    mine.scored(domain=domain, score_sum=2.5, num_items=100, **READS)


def request_us(metrics: Metrics, means: dict[str, float]) -> float:
    """CPU microseconds of all updates of one request, the least of some rounds."""
    mine = fill(metrics, "v0", "experiment-0/arm", means)
    least = float("inf")
    for _ in range(ROUNDS):
        begun = time.process_time()
        for _ in range(REQUESTS):
            metrics.inflight.inc()
            update(mine, "domain-1")
            metrics.inflight.dec()
        least = min(least, (time.process_time() - begun) / REQUESTS * 1e6)
    return least


async def scrape(metrics: Metrics) -> dict[str, float]:
    """One scrape, with the loop's longest turn while it lasts."""
    begun = time.perf_counter()
    scraping = asyncio.ensure_future(metrics.render_in_turns())
    cpu_turn = wall_turn = 0.0
    cpu, wall = time.thread_time(), begun
    while not scraping.done():
        await asyncio.sleep(0)
        now_cpu, now = time.thread_time(), time.perf_counter()
        cpu_turn, wall_turn = max(cpu_turn, now_cpu - cpu), max(wall_turn, now - wall)
        cpu, wall = now_cpu, now
    return {
        "took_ms": (wall - begun) * 1000,
        "cpu_turn_ms": cpu_turn * 1000,
        "wall_turn_ms": wall_turn * 1000,
        "lines": float(scraping.result().count(b"\n")),
    }


if __name__ == "__main__":
    main()
