"""`make bench-export`: rows a second of compiled graphs beside a plain exporter's, parity, and memory.

One run, one thread, medians over turns. Writes a table of figures, each with its target, and JSON beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from export.admission import judge
from export.graph import ScoringGraph
from export.half import halve_tables
from export.onnx_export import write_graph
from export.parity import check_parity
from export.precision import value_ranges
from export.quantise import measured_values, quantise
from export.rows import GraphArrays
from export.timing import rows_per_second
from export.validation import LabelledRows
from export.weights import WeightFiles
from loadtests.bench_export import memory
from loadtests.bench_export.models import (
    HOT_DOMAIN,
    NUM_DOMAINS,
    compiled_proto,
    make_model,
    make_sampler,
    make_schema,
    plain_lines,
    plain_proto,
)
from service.scoring.predictor import Predictor
from training.models.base import CtrModel

SIZES = (1, 10, 100, 500)
PARTS = ("aread", "small", "memory")
DRAWS = 16
LABELLED_ROWS_PER_DOMAIN = 1500
SCHEMA = make_schema()
TARGETS = {
    ("aread", "domain"): {1: 1.2, 10: 1.2, 100: 2.0, 500: 1.2},
    ("aread", "whole"): {1: 1.2, 10: 1.2, 100: 2.0, 500: 1.2},
    ("aread", "domain int8"): {100: 4.0},
    ("aread", "whole int8"): {100: 4.0},
    ("small", "whole"): {100: 1.3},
}


class Opened:
    """Graphs of one checkpoint, open side by side.

    Args:
        folder: Where they are written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.predictors: dict[str, Predictor] = {}
        self._weights = WeightFiles(folder / "graphs")

    def add(self, name: str, proto: onnx.ModelProto) -> None:
        """Write and open one."""
        own = onnx.ModelProto()
        own.CopyFrom(proto)
        key = name.replace(", ", "-").replace(" ", "-")
        entry = write_graph(own, SCHEMA, self.folder, name=key, form="whole", weights=self._weights)
        self.predictors[name] = Predictor(self.folder / entry.file, entry)

    def run(self, name: str, inputs: GraphArrays) -> NDArray[np.float32]:
        """Scores (N,) of one graph."""
        predictor = self.predictors[name]
        return predictor.run({spec.name: inputs[spec.name] for spec in predictor.graph.inputs})

    def rates(self, rounds: int) -> dict[int, dict[str, float]]:
        """Rows a second by N and graph."""
        sampler, found = make_sampler(SCHEMA, seed=1), {}
        for size in SIZES:
            inputs = [sampler.draw(domain=HOT_DOMAIN, num_rows=size, unknown_rate=0.0) for _ in range(DRAWS)]
            runs = {name: _fed(predictor) for name, predictor in self.predictors.items()}
            found[size] = rows_per_second(runs, inputs, rounds=rounds)
        return found


def _fed(predictor: Predictor) -> Callable[[GraphArrays], object]:
    names = [spec.name for spec in predictor.graph.inputs]
    return lambda inputs: predictor.run({name: inputs[name] for name in names})


def labelled(opened: Opened, domains: range) -> LabelledRows:
    """Rows whose labels are drawn by the probabilities of the fp32 graph."""
    sampler, rng, parts = make_sampler(SCHEMA, seed=2), np.random.default_rng(3), []
    for domain in domains:
        count = LABELLED_ROWS_PER_DOMAIN
        parts.append(sampler.draw(domain=domain, num_rows=count, num_requests=count))
        parts[-1]["request_index"] = np.arange(count, dtype=np.int64)
    inputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    inputs["request_index"] = np.arange(len(inputs["domain"]), dtype=np.int64)
    rows = LabelledRows(inputs, np.zeros(len(inputs["domain"]), np.float32), inputs["domain"])
    chances = rows.scores(lambda batch: opened.run("whole", batch))
    labels = (rng.random(len(chances)) < chances).astype(np.float32)
    return LabelledRows(inputs, labels, inputs["domain"])


def measure(name: str, folder: Path, rounds: int) -> dict[str, Any]:
    """Everything about one checkpoint."""
    model, opened = make_model(name, SCHEMA), Opened(folder / name)
    protos = {"plain": plain_proto(model, SCHEMA), "whole": compiled_proto(model, SCHEMA)}
    if name == "aread":
        protos["domain"] = compiled_proto(model, SCHEMA, hot=True)
    for key, proto in protos.items():
        opened.add(key, proto)
    rows = labelled(opened, range(NUM_DOMAINS))
    verdicts = {}
    for key in [key for key in protos if key != "plain"]:
        own = rows.of_domains([HOT_DOMAIN]) if key == "domain" else rows
        ranges = value_ranges(protos[key], measured_values(protos[key]), own)
        small = quantise(protos[key], ranges)
        opened.add(f"{key} int8", small)
        halved = halve_tables(small)
        if halved is not None:
            opened.add(f"{key} int8, fp16 tables", halved)
        for variant in [made for made in opened.predictors if made.startswith(f"{key} int8")]:
            verdicts[variant] = asdict(
                judge(
                    labels=own.labels,
                    domains=own.domains,
                    names=SCHEMA.domains,
                    reference=own.scores(lambda batch, key=key: opened.run(key, batch)),
                    scores=own.scores(lambda batch, variant=variant: opened.run(variant, batch)),
                    overall=key != "domain",
                )
            )
    return {
        "rows_per_s": opened.rates(rounds),
        "work": {key: p.graph.options for key, p in opened.predictors.items()},
        "parity": parity(model, opened, list(protos)),
        "verdicts": verdicts,
    }


def parity(model: CtrModel, opened: Opened, names: list[str]) -> dict[str, float]:
    """Largest |dp| against torch over every domain that a graph serves."""
    reference = ScoringGraph(model, SCHEMA, plain_lines())
    found = {}
    for name in names:
        domains = [HOT_DOMAIN] if name == "domain" else list(range(NUM_DOMAINS + 1))
        sampler = make_sampler(SCHEMA, seed=4)

        def scores(inputs: GraphArrays, name: str = name) -> NDArray[np.float32]:
            # The plain graph sums over axis -1, which the runtime gets wrong where there is no row.
            if name == "plain" and not len(inputs["request_index"]):
                return np.zeros(0, np.float32)
            return opened.run(name, inputs)

        report = check_parity(reference, scores, sampler, domains=domains)
        found[name] = report.max_error
    return found


def memory_figures(folder: Path) -> dict[str, Any]:
    """Graphs and processes against memory and opening time."""
    proto = compiled_proto(make_model("aread", SCHEMA), SCHEMA, hot=True)
    memory.write_graphs(proto, folder, 50)
    found = {}
    for graphs in (1, 10, 50):
        for processes in (1, 4):
            found[f"{graphs} graphs, {processes} processes"] = asdict(memory.held(folder, graphs, processes))
    return found


def table(figures: dict[str, Any]) -> list[str]:
    """Markdown of what was measured."""
    lines: list[str] = []
    for name in [part for part in PARTS if part in figures and part != "memory"]:
        rates = figures[name]["rows_per_s"]
        lines += [f"### {name}", "", "| graph | " + " | ".join(f"N={n}" for n in SIZES) + " |"]
        lines.append("|---|" + "---:|" * len(SIZES))
        for graph in rates[SIZES[0]]:
            cells = [f"{rates[n][graph]:,.0f} ({rates[n][graph] / rates[n]['plain']:.2f}x)" for n in SIZES]
            lines.append(f"| {graph} | {' | '.join(cells)} |")
        lines += ["", *_verdict_lines(name, figures[name])]
    if "memory" in figures:
        lines += ["### Memory", "", "| | opens in s | PSS MiB |", "|---|---:|---:|"]
        lines += [f"| {k} | {v['open_s']:.2f} | {v['pss_mib']:.0f} |" for k, v in figures["memory"].items()]
    return lines


def _verdict_lines(name: str, found: dict[str, Any]) -> list[str]:
    lines = [
        f"- parity of {graph}: |dp| <= {error:.1e} (target 1e-05)" for graph, error in found["parity"].items()
    ]
    for variant, verdict in found["verdicts"].items():
        lines.append(
            f"- {variant}: {'admitted' if verdict['admitted'] else 'refused'}, {verdict['reason']}; AUC "
            f"{verdict['auc_fp32']:.5f} -> {verdict['auc']:.5f}, "
            f"worst domain {verdict['worst_domain_loss']:+.1e}, "
            f"ECE {verdict['ece_fp32']:.5f} -> {verdict['ece']:.5f}, |dp| <= {verdict['max_change']:.1e}"
        )
    for (model, graph), targets in TARGETS.items():
        if model == name:
            for n, target in targets.items():
                gain = found["rows_per_s"][n][graph] / found["rows_per_s"][n]["plain"]
                met = "met" if gain >= target else "MISSED"
                lines.append(f"- {graph} at N={n}: {gain:.2f}x, target {target}x: {met}")
    return [*lines, ""]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("runs/bench-export/figures.json"))
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="measure these only")
    args = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in args.parts:
            if part == "memory":
                figures[part] = memory_figures(folder / part)
            else:
                figures[part] = measure(part, folder, args.rounds)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(figures, indent=1) + "\n")
    sys.stdout.write("\n".join(table(figures)) + "\n")


if __name__ == "__main__":
    main()
