"""Load at planned times, from the mix: latencies count from the intended start, whatever the service does.

    python -m loadtests.rate_run --store STORE --port 8000 --rate 200 --seconds 60 --out RUN
    python -m loadtests.rate_run --store STORE --rate 50:2000 --seconds 60 --out RUN     # where does it bend?

Speaks to a service on 127.0.0.1 and reads its store, for ids and to score replies again. Starts come as
people do (`--spacing poisson`) or evenly. Writes a folder for `loadtests.slo` and `loadtests.report`.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from loadtests.arrivals import PlanError, Spacing, arrivals, parse_plan
from loadtests.mix import as_text, mix_of
from loadtests.open_loop import OpenLoop, Told
from loadtests.record import Run
from loadtests.recorder import Recorder

MAX_BODIES = 5000
CONNECTIONS = 256  # more than two workers take at a time, so that refusing is theirs to do


def rate_run(
    *,
    store: Path,
    port: int,
    rate: str,
    seconds: float,
    out: Path,
    alias: str = "stable",
    spacing: Spacing = "poisson",
    connections: int = CONNECTIONS,
    routing: Path | None = None,
    seed: int = 0,
) -> Run:
    """Load a service and write the run.

    Args:
        store: That the service serves from.
        port: Of the service on 127.0.0.1.
        rate: A plan as `parse_plan` takes it.
        seconds: Of the plan.
        out: Folder to write.
        alias: Whose users, items and domains are asked for.
        spacing: Of the starts.
        connections: Most requests on their way at a time.
        routing: File of the service, for the check of its arms.
        seed: Of requests and starts.

    Raises:
        PlanError: As `parse_plan`.
    """
    plan = parse_plan(rate, seconds)
    starts = arrivals(plan, spacing, seed=seed)
    mix = mix_of(store, alias, seed=seed)
    asks = [mix.draw() for _ in range(min(max(len(starts), 1), MAX_BODIES))]
    recorder = Recorder(
        "open",
        f"{rate} requests/s, {spacing}",
        seconds=seconds,
        plan={
            "rate": rate,
            "spacing": spacing,
            "connections": connections,
            "seed": seed,
            "mix": as_text(mix),
        },
        seed=seed,
    )

    ended: list[Told] = []
    loop = OpenLoop(port, starts, [ask.body() for ask in asks], connections=connections, tell=ended.append)
    loop.run(seconds)
    for told in ended:
        recorder.scored(
            asks[told.number % len(asks)],
            intended_s=told.intended_s,
            sent_s=None if math.isnan(told.sent_s) else told.sent_s,
            done_s=None if math.isnan(told.done_s) or not told.status else told.done_s,
            status=told.status,
            body=told.body,
        )
    return recorder.finish(out, store=store, routing=routing)


def main() -> int:
    """Run and say where it is; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--store", type=Path, required=True, help="model store of the service")
    parser.add_argument("--alias", default="stable", help="whose users, items and domains are asked for")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--rate", required=True, help="requests per second, e.g. 200, or 50:400 to rise")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--spacing", choices=("poisson", "even"), default="poisson")
    parser.add_argument("--connections", type=int, default=CONNECTIONS)
    parser.add_argument("--routing", type=Path, help="routing file of the service, to check its arms")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    chosen = vars(parser.parse_args())
    try:
        run = rate_run(**chosen)
    except PlanError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    good = sum(call.status == 200 for call in run.calls)
    sys.stdout.write(f"{len(run.calls)} requests, {good} answered 200; {chosen['out']}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
