"""Holds load runs to the objectives of slo.yaml.

    python -m loadtests.slo RUN [RUN ...] [--slo loadtests/slo.yaml] [--json OUT]

Reads folders that `loadtests.record` wrote. Prints every objective with what was measured; exits with 1 and
names objective, value and limit where one is not kept, with 2 where there is no run to judge. What a run has
nothing of (no experiment, no parity compared) is told, not judged.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.console import Console
from rich.table import Table

from loadtests.arms import check_arms
from loadtests.record import ROUTING_FILE, Call, Run, RunError, read_run
from service.routing.config import RoutingConfig, parse_routing

SLO_FILE = Path(__file__).with_name("slo.yaml")
ALL = "all"
OK, TOO_MANY = 200, 429


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LeastRatio(_Strict):
    """A share that must be reached."""

    min_ratio: float = Field(gt=0, le=1)


class MostRatio(_Strict):
    """A share that must not be exceeded."""

    max_ratio: float = Field(ge=0, le=1)


class Percentiles(_Strict):
    """Bounds of a latency, ms."""

    p50: float = Field(gt=0)
    p99: float = Field(gt=0)


class ParityLimit(_Strict):
    """Bound of a difference of scores."""

    max_abs_difference: float = Field(gt=0)


class ArmsLimit(_Strict):
    """Bound of a sample-ratio test."""

    min_p_value: float = Field(gt=0, lt=1)


class Objectives(_Strict):
    """The whole file; see its comments."""

    version: Literal[1]
    window_days: int = Field(ge=1)
    availability: LeastRatio
    latency_ms: dict[str, Percentiles]
    shed: MostRatio
    degraded: MostRatio
    parity: ParityLimit
    arms: ArmsLimit


class SloError(ValueError):
    """A file of objectives that cannot be used."""


@dataclass(frozen=True)
class Verdict:
    """One objective.

    Attributes:
        objective: Its name, as a path into slo.yaml.
        value: What was measured; None where the run has nothing of it.
        limit: What is allowed.
        better: Whether `more` or `less` is better.
        note: What else to know.
    """

    objective: str
    value: float | None
    limit: float
    better: Literal["more", "less"]
    note: str = ""

    @property
    def kept(self) -> bool | None:
        """None where there is nothing to judge."""
        if self.value is None:
            return None
        return self.value >= self.limit if self.better == "more" else self.value <= self.limit

    def __str__(self) -> str:
        bound = "at least" if self.better == "more" else "at most"
        measured = "not measured" if self.value is None else f"{self.value:.6g}"
        return f"{self.objective}: {measured}, {bound} {self.limit:g}" + (
            f" ({self.note})" if self.note else ""
        )


def read_objectives(path: Path) -> Objectives:
    """The objectives of a file.

    Raises:
        SloError: It cannot be read, or holds a key or value that is none; the message names the first.
    """
    try:
        return Objectives.model_validate(yaml.safe_load(path.read_text()))
    except ValidationError as error:
        first = error.errors()[0]
        raise SloError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (OSError, yaml.YAMLError) as error:
        raise SloError(f"{path}: {' '.join(str(error).split())}") from None


def judge(run: Run, objectives: Objectives, routing: RoutingConfig | None) -> list[Verdict]:
    """Every objective, in the order of the file."""
    calls = [call for call in run.calls if call.kind == "score"]
    good = [call for call in calls if call.status == OK]
    verdicts = [
        Verdict("availability", _availability(run.calls), objectives.availability.min_ratio, "more"),
        *_latencies(good, objectives.latency_ms),
        Verdict(
            "shed",
            _share(calls, [c for c in calls if c.status == TOO_MANY]),
            objectives.shed.max_ratio,
            "less",
        ),
        Verdict(
            "degraded", _share(good, [c for c in good if c.degraded]), objectives.degraded.max_ratio, "less"
        ),
    ]
    rows = run.parity.get("num_rows", 0)
    verdicts.append(
        Verdict(
            "parity",
            run.parity.get("max_abs_difference"),
            objectives.parity.max_abs_difference,
            "less",
            f"{rows:g} rows compared" if rows else "nothing was compared",
        )
    )
    return verdicts + _arms(good, objectives.arms.min_p_value, routing)


def _availability(calls: Sequence[Call]) -> float | None:
    """Share of all calls, feedback included, that are not our failures."""
    failed = [call for call in calls if call.status >= 500 or call.status == 0]
    share = _share(calls, failed)
    return None if share is None else 1 - share


def _share(of: Sequence[Call], part: Sequence[Call]) -> float | None:
    return len(part) / len(of) if of else None


def _latencies(good: Sequence[Call], limits: dict[str, Percentiles]) -> list[Verdict]:
    verdicts = []
    for profile, bounds in limits.items():
        own = [call.latency_ms for call in good if profile in (ALL, call.profile)]
        for name, limit in (("p50", bounds.p50), ("p99", bounds.p99)):
            percent = float(name[1:])
            enough = len(own) >= 100 / (100 - percent)
            value = percentile([ms for ms in own if ms is not None], percent) if enough else None
            note = f"{len(own)} replies" + ("" if enough else ": too few to judge")
            verdicts.append(Verdict(f"latency_ms.{profile}.{name}", value, limit, "less", note))
    return verdicts


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The smallest value that so many percent do not exceed; None of none."""
    if not values:
        return None
    return float(np.sort(np.asarray(values))[max(math.ceil(percent / 100 * len(values)) - 1, 0)])


def _arms(good: Sequence[Call], least: float, routing: RoutingConfig | None) -> list[Verdict]:
    """One verdict a problem, or one for each experiment without any."""
    verdicts = []
    for check in [] if routing is None else check_arms(good, routing):
        name = f"arms.{check.experiment}"
        problems = check.problems(least)
        units = ", ".join(f"{arm} {count}" for arm, count in check.units.items())
        if check.num_switched or check.strangers:
            verdicts.append(Verdict(name, 0.0, least, "more", "; ".join(problems)))
        else:
            why = "" if check.p_value is not None else ": too few to judge"
            verdicts.append(Verdict(name, check.p_value, least, "more", f"units {units}{why}"))
    return verdicts


def routing_of(folder: Path) -> RoutingConfig | None:
    """Routing of the service of a run; None where it had none."""
    file = folder / ROUTING_FILE
    return parse_routing(file.read_bytes(), file) if file.exists() else None


def check(folder: Path, objectives: Objectives) -> tuple[Run, list[Verdict]]:
    """Read and judge one run.

    Raises:
        RunError: The folder holds none, or one without any request.
    """
    run = read_run(folder)
    if not run.calls:
        raise RunError(f"{folder} holds a load run without any request")
    return run, judge(run, objectives, routing_of(folder))


def show(console: Console, title: str, verdicts: Sequence[Verdict]) -> None:
    """Print a run's verdicts as a table."""
    table = Table(title=title)
    for name in ("objective", "measured", "limit", ""):
        table.add_column(name, no_wrap=True)
    table.add_column("")
    marks = {True: "[green]kept[/green]", False: "[red]not kept[/red]", None: "not judged"}
    for verdict in verdicts:
        sign = ">=" if verdict.better == "more" else "<="
        measured = "-" if verdict.value is None else f"{verdict.value:.5g}"
        table.add_row(
            verdict.objective, measured, f"{sign} {verdict.limit:g}", marks[verdict.kept], verdict.note
        )
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge, print, write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of load runs")
    parser.add_argument("--slo", type=Path, default=SLO_FILE, help="objectives")
    parser.add_argument("--json", type=Path, help="where to write the verdicts")
    chosen = parser.parse_args(arguments)
    console, document, broken = Console(), {}, []
    try:
        objectives = read_objectives(chosen.slo)
        for folder in chosen.runs:
            run, verdicts = check(folder, objectives)
            show(console, f"{folder.name}: {run.title}", verdicts)
            document[str(folder)] = [_entry(verdict) for verdict in verdicts]
            broken += [f"{folder.name}: {verdict}" for verdict in verdicts if verdict.kept is False]
    except (RunError, SloError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(document, indent=1) + "\n")
    for text in broken:
        sys.stdout.write(f"not kept: {text}\n")
    return 1 if broken else 0


def _entry(verdict: Verdict) -> dict[str, Any]:
    return asdict(verdict) | {"kept": verdict.kept}


if __name__ == "__main__":
    sys.exit(main())
