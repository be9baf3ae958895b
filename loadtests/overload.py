"""Ten times more than a service can do: what it still does, and how it refuses the rest.

    python -m loadtests.overload --store STORE [--items 1000] [--factor 10] [--seconds 30] [--json OUT]

Starts `ctr-serve run`, measures its capacity by a closed loop, offers a multiple of that by an open loop,
and measures the capacity again. Exits with 1 unless the rate of good replies stays above 80 % of the lower
capacity, 99 of 100 good replies come within the deadline, every refusal is a 429 with Retry-After or a
504, and no connection breaks. Choose a store and a number of items whose run takes some milliseconds:
refusing costs CPU too, and the generator shares the cores.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loadtests.bench_serve.measure import open_loop
from loadtests.bench_serve.servers import Server, service
from service.contract.ids import read_ids
from service.contract.store import ModelStore

CAPACITY_CALLERS = 8
CONNECTIONS = 256
GOOD_RATIO = 0.8
REFUSALS = {"429", "504"}
NUM_BODIES = 16


@dataclass(frozen=True)
class Outcome:
    """What became of the requests.

    Attributes:
        capacity: Good replies per second of the closed loop, the lower of before and after.
        offered: Requests per second of the open loop.
        good: Its good replies per second.
        p99_ms: Of good replies, from their intended start.
        deadline_ms: Of the service.
        statuses: Number of replies by status.
        num_broken: Connections that broke, and requests without an answer.
        no_retry_after: 429 without Retry-After.
    """

    capacity: float
    offered: float
    good: float
    p99_ms: float
    deadline_ms: int
    statuses: dict[str, int]
    num_broken: int
    no_retry_after: int

    def failures(self) -> list[str]:
        """What was promised and not kept."""
        other = set(self.statuses) - {"200"} - REFUSALS
        kept = {
            f"good replies {self.good:.1f}/s, capacity {self.capacity:.1f}/s": self.good
            >= GOOD_RATIO * self.capacity,
            f"p99 {self.p99_ms:.0f} ms, deadline {self.deadline_ms} ms": self.p99_ms < self.deadline_ms,
            f"statuses {sorted(other)}": not other,
            "nothing was refused, so it was no overload": bool(self.statuses.keys() & REFUSALS),
            f"{self.num_broken} connections broke": not self.num_broken,
            f"{self.no_retry_after} refusals without Retry-After": not self.no_retry_after,
        }
        return [text for text, true in kept.items() if not true]


def overload(
    server: Server,
    bodies: Sequence[bytes],
    folder: Path,
    *,
    deadline_ms: int,
    seconds: float,
    factor: float = 10.0,
    capacity_s: float = 3.0,
) -> Outcome:
    """Measure a running service.

    Args:
        server: The service.
        bodies: Posted in turn.
        folder: For the bodies, read by the generator.
        deadline_ms: As the service has it.
        seconds: Of overload.
        factor: Times its capacity.
        capacity_s: Seconds of each measurement of the capacity.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, body in enumerate(bodies):
        (folder / f"{number}.json").write_bytes(body)
    before = capacity(server, bodies, capacity_s)
    seen = open_loop(server.port, folder, factor * before, seconds, connections=CONNECTIONS)
    after = capacity(server, bodies, capacity_s)
    return Outcome(
        capacity=min(before, after),
        offered=factor * before,
        good=seen["good_rate"],
        p99_ms=seen["latency_ms"]["p99"],
        deadline_ms=deadline_ms,
        statuses=seen["statuses"],
        num_broken=seen["num_broken"] + seen["num_unanswered"],
        no_retry_after=seen["no_retry_after"],
    )


def capacity(server: Server, bodies: Sequence[bytes], seconds: float) -> float:
    """Good replies per second to a few callers, each of which waits for its reply."""
    until = time.perf_counter() + seconds
    counts = [0] * CAPACITY_CALLERS

    def call(place: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        turn = place
        while time.perf_counter() < until:
            body = bodies[turn % len(bodies)]
            connection.request("POST", "/score", body, {"content-type": "application/json"})
            reply = connection.getresponse()
            reply.read()
            counts[place] += reply.status == http.HTTPStatus.OK
            turn += 1
        connection.close()

    callers = [threading.Thread(target=call, args=(place,)) for place in range(CAPACITY_CALLERS)]
    begun = time.perf_counter()
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    return sum(counts) / (time.perf_counter() - begun)


def stored_bodies(store: Path, num_items: int) -> list[bytes]:
    """Requests of N stored items for the domains of a store's bundle, in turn."""
    bundle = ModelStore(store).open("stable", verify=False)
    users, items = (read_ids(bundle.path / bundle.manifest.features[side].ids) for side in ("user", "item"))
    domains = list(bundle.manifest.domains)
    return [
        json.dumps(
            {
                "domain": domains[n % len(domains)],
                "user": {"id": users[n % len(users)]},
                "items": {"id": [items[(97 * n + k) % len(items)] for k in range(num_items)]},
            }
        ).encode()
        for n in range(NUM_BODIES)
    ]


def main() -> int:
    """Run, print, write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--deadline-ms", type=int, default=500)
    parser.add_argument("--factor", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    variables = {"CTR_DEADLINE_MS": str(options.deadline_ms), "CTR_MAX_ITEMS": str(options.items)}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        with service(options.store, work, workers=options.workers, variables=variables) as server:
            outcome = overload(
                server,
                stored_bodies(options.store, options.items),
                work / "bodies",
                deadline_ms=options.deadline_ms,
                seconds=options.seconds,
                factor=options.factor,
            )
    document: dict[str, Any] = asdict(outcome)
    sys.stdout.write(json.dumps(document, indent=1) + "\n")
    if options.json:
        options.json.write_text(json.dumps(document, indent=1))
    for failure in outcome.failures():
        sys.stdout.write(f"not kept: {failure}\n")
    return 1 if outcome.failures() else 0


if __name__ == "__main__":
    sys.exit(main())
