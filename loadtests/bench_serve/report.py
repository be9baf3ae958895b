"""From rounds to figures, and from figures to a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from loadtests.bench_serve.bare import Bare
from loadtests.bench_serve.measure import AtRate, Run
from loadtests.bench_serve.plan import TARGETS

Figures = dict[str, float]


def case_figures(
    bare: Sequence[Bare], runs: Sequence[Run], baseline: Sequence[Run], batched: Sequence[Run]
) -> Figures:
    """Medians over rounds of one case; ratios are of medians.

    Args:
        bare: The graph alone.
        runs: The service.
        baseline: The plain app; empty where it is not measured.
        batched: The service with batching; empty where it is not measured.
    """
    graph_us, cpu_us = median(b.cpu_us for b in bare), median(r.cpu_us for r in runs)
    rate = median(r.load.rate for r in runs)
    figures = {
        "rate": rate,
        "cpu_us": cpu_us,
        "bare_rate": median(b.rate for b in bare),
        "bare_cpu_us": graph_us,
        "overhead_us": cpu_us - graph_us,
        "num_failed": float(sum(r.load.num_failed for r in (*runs, *baseline, *batched))),
        "foreign_cores": max(r.noise.foreign_cores for r in runs),
    }
    figures["of_bare"] = rate / figures["bare_rate"]
    if baseline:
        figures["baseline_rate"] = median(r.load.rate for r in baseline)
        figures["baseline_cpu_us"] = median(r.cpu_us for r in baseline)
        figures["of_baseline"] = rate / figures["baseline_rate"]
    if batched:
        figures["batched_rate"] = median(r.load.rate for r in batched)
        figures["batched_cpu_us"] = median(r.cpu_us for r in batched)
    return figures


def rate_figures(runs: Sequence[AtRate]) -> Figures:
    """Medians of latencies at a fixed rate."""
    p50, p99 = median(r.p50_ms for r in runs), median(r.p99_ms for r in runs)
    return {
        "fixed_rate": median(r.rate for r in runs),
        "p50_ms": p50,
        "p99_ms": p99,
        "p99_over_p50": p99 / p50,
        "num_other": float(sum(r.num_other for r in runs)),
    }


def balance_figures(runs: Sequence[Run]) -> Figures:
    """The worst run of all; requests where workers count them."""
    counted = [r.balance_requests for r in runs if r.balance_requests is not None]
    figures = {"worst_cpu": max(r.balance_cpu for r in runs), "num_runs": float(len(runs))}
    if counted:
        figures["worst_requests"] = max(counted)
    return figures


def verdicts(figures: Mapping[str, Figures]) -> list[dict[str, Any]]:
    """One entry per target whose figure was measured."""
    found = []
    for target in TARGETS:
        case, _, name = target.figure.rpartition(".")
        value = figures.get(case, {}).get(name)
        if value is not None:
            found.append({**asdict(target), "value": value, "passed": target.passed(value)})
    return found


def show(console: Console, figures: Mapping[str, Figures], judged: Sequence[Mapping[str, Any]]) -> None:
    """Print cases and targets."""
    names = ("rate", "bare_rate", "of_bare", "cpu_us", "bare_cpu_us", "overhead_us")
    names += ("baseline_rate", "of_baseline", "batched_rate", "p50_ms", "p99_ms", "foreign_cores")
    table = Table("case", *names, title="Medians of rounds; rates in requests/s, CPU us per request")
    for case, values in figures.items():
        if "rate" in values:
            table.add_row(case, *(f"{values[n]:.4g}" if n in values else "" for n in names))
    console.print(table)
    table = Table("figure", "measured", "target", "", title="Targets")
    for entry in judged:
        sign = "at least" if entry["better"] == "more" else "at most"
        mark = "[green]pass[/green]" if entry["passed"] else "[red]fail[/red]"
        table.add_row(entry["says"], f"{entry['value']:.3g}", f"{sign} {entry['limit']:g}", mark)
    console.print(table)
