"""What serving costs beside the bare graph: rates, CPU, latency, balance, each with its target.

    python -m loadtests.bench_serve [--json OUT] [--quick] [--only CASE ...]      (make bench-serve)

Builds the reference bundles once, starts `ctr-serve run --workers 2` for each, and goes round after
round through all cases: the bare graph in two processes, the service under wrk, the plain FastAPI app
where it is the baseline, the service with batching where that may pay. So whatever disturbs the machine
disturbs all of them. wrk, its 16 connections and the open-loop generator share the cores with what they
measure. Figures are medians of the rounds. `foreign_cores` says how many cores other programs kept busy;
above 0.1, measure again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from loadtests.bench_serve.bare import Bare, BareGraph
from loadtests.bench_serve.bundles import reference_store
from loadtests.bench_serve.load import bodies, check_replies, draw
from loadtests.bench_serve.measure import AtRate, Run, at_rate, saturated, scrape
from loadtests.bench_serve.plan import (
    BASELINE_CASES,
    BATCH_MAX_ROWS,
    BATCHED_CASES,
    CASES,
    RATE_CASES,
    SMALL_100,
    Case,
)
from loadtests.bench_serve.report import balance_figures, case_figures, rate_figures, show, verdicts
from loadtests.bench_serve.servers import Server, baseline, service
from loadtests.bench_serve.wrk import WrkMissingError, require_wrk, write_script
from service.contract.store import ModelStore

WORKERS = 2
HALF = 0.5
EXTRA_BALANCE_RUNS = 2  # with three rounds of a case, five


class Bench:
    """Servers and bodies of the chosen cases, measured in rounds.

    Args:
        work: Folder of bundles, bodies and logs.
        cases: To measure.
        console: Told what goes on.
    """

    def __init__(self, work: Path, cases: tuple[Case, ...], console: Console) -> None:
        self._work = work
        self._cases = cases
        self._console = console
        self._stack = contextlib.ExitStack()
        self._stores: dict[str, ModelStore] = {}
        self._servers: dict[str, Server] = {}
        self._baselines: dict[str, Server] = {}
        self._batching: dict[str, Server] = {}
        self._bare: dict[Case, BareGraph] = {}
        self._scripts: dict[Case, Path] = {}
        self.bare: dict[Case, list[Bare]] = defaultdict(list)
        self.runs: dict[Case, list[Run]] = defaultdict(list)
        self.baseline: dict[Case, list[Run]] = defaultdict(list)
        self.batched: dict[Case, list[Run]] = defaultdict(list)
        self.at_rate: dict[Case, list[AtRate]] = defaultdict(list)

    def __enter__(self) -> Bench:
        self._work.mkdir(parents=True, exist_ok=True)
        try:
            for case in self._cases:
                self._prepare(case)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _prepare(self, case: Case) -> None:
        model = case.model
        if model not in self._stores:
            self._console.print(f"bundle '{model}' (built once, in {self._work})")
            self._stores[model] = reference_store(self._work, model)
            self._servers[model] = self._stack.enter_context(
                service(self._stores[model].path, self._work, workers=WORKERS)
            )
        store = self._stores[model]
        if case in BASELINE_CASES and model not in self._baselines:
            self._baselines[model] = self._stack.enter_context(baseline(store.path, self._work))
        if case in BATCHED_CASES and model not in self._batching:
            batching = {"CTR_BATCH_MAX_ROWS": str(BATCH_MAX_ROWS)}
            self._batching[model] = self._stack.enter_context(
                service(store.path, self._work, workers=WORKERS, variables=batching)
            )
        bundle, asks = store.open("stable", verify=False), draw(case.num_items)
        made = bodies(bundle, asks, case.form)
        self._scripts[case] = write_script(self._work / "bodies" / case.name, made, "/score")
        asked = [self._servers[model]]
        asked += [self._baselines[model]] if case in BASELINE_CASES else []
        asked += [self._batching[model]] if case in BATCHED_CASES else []
        for server in asked:
            check_replies(bundle, asks, [server.post(body) for body in made])
        self._bare[case] = BareGraph(store.path, case.num_items, WORKERS)
        self._stack.callback(self._bare[case].close)

    def round(self, seconds: float) -> None:
        """One round over all cases."""
        for case in self._cases:
            self.bare[case].append(self._bare[case].measure(seconds))
            run = saturated(self._servers[case.model], self._scripts[case], seconds)
            self.runs[case].append(run)
            if case in BASELINE_CASES:
                other = saturated(self._baselines[case.model], self._scripts[case], seconds)
                self.baseline[case].append(other)
            if case in BATCHED_CASES:
                batched = saturated(self._batching[case.model], self._scripts[case], seconds)
                self.batched[case].append(batched)
            self._console.print(
                f"{case.name}: {run.load.rate:.0f}/s, bare {self.bare[case][-1].rate:.0f}/s, "
                f"{run.cpu_us:.0f} us, foreign {run.noise.foreign_cores} cores"
            )

    def rates(self, seconds: float) -> None:
        """One run at half of the measured capacity for each case that asks for it."""
        for case in self._cases:
            if case in RATE_CASES:
                capacity = sorted(r.load.rate for r in self.runs[case])[len(self.runs[case]) // 2]
                folder = self._scripts[case].parent
                self.at_rate[case].append(
                    at_rate(self._servers[case.model], folder, HALF * capacity, seconds)
                )

    def balance(self, seconds: float) -> list[Run]:
        """All runs of the first case, with some more."""
        case = self._cases[0]
        more = [
            saturated(self._servers[case.model], self._scripts[case], seconds)
            for _ in range(EXTRA_BALANCE_RUNS)
        ]
        return [*self.runs[case], *more]

    def scrape(self) -> dict[str, float]:
        """Cost of a scrape."""
        return asdict(scrape(self._servers[self._cases[0].model]))


def main() -> int:
    """Measure, print, write; returns the exit status: 0 when every target is met."""
    options = read_options()
    console = Console(width=180)
    try:
        require_wrk()
    except WrkMissingError as error:
        console.print(f"[red]error:[/red] {error}")
        return 2
    cases = tuple(case for case in CASES if not options.only or case.name in options.only)
    if options.quick:
        cases = (SMALL_100,)
    begun = time.time()
    with Bench(options.work, cases, console) as bench:
        for _ in range(options.rounds):
            bench.round(options.seconds)
        for _ in range(options.rounds):
            bench.rates(options.seconds)
        figures = {
            case.name: case_figures(
                bench.bare[case], bench.runs[case], bench.baseline[case], bench.batched[case]
            )
            | (rate_figures(bench.at_rate[case]) if case in bench.at_rate else {})
            for case in cases
        }
        figures["balance"] = balance_figures(bench.balance(options.seconds))
        figures["scrape"] = bench.scrape()
        judged = verdicts(figures)
        show(console, figures, judged)
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(document(bench, figures, judged, options, begun), indent=1))
    return 0 if options.quick or all(entry["passed"] for entry in judged) else 1


def document(
    bench: Bench,
    figures: dict[str, dict[str, float]],
    judged: list[dict[str, Any]],
    options: argparse.Namespace,
    begun: float,
) -> dict[str, Any]:
    """Everything that was measured, run by run."""
    return {
        "begun": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(begun)),
        "cores": os.cpu_count(),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "figures": figures,
        "targets": judged,
        "runs": {
            kind: {case.name: [asdict(run) for run in runs] for case, runs in all_runs.items()}
            for kind, all_runs in (
                ("bare", bench.bare),
                ("service", bench.runs),
                ("baseline", bench.baseline),
                ("batched", bench.batched),
                ("at_rate", bench.at_rate),
            )
        },
    }


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--work", type=Path, default=Path("runs/bench-serve"), help="bundles, bodies, logs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement")
    parser.add_argument("--only", nargs="+", choices=[case.name for case in CASES], help="cases")
    parser.add_argument("--quick", action="store_true", help="one short round of one case: does it run?")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = 1, 1.0
    return options


if __name__ == "__main__":
    sys.exit(main())
