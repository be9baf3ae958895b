"""What differs between two bundles: schema, domains, offline figures, graphs, and scores of the same rows.

Reads two published bundles and writes nothing. Invariant: score shifts are of rows that both schemas encode
alike; where schemas differ, it says so and compares no scores.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.verify import domain_of_rows, rows_of
from service.contract.bundle import GOLDEN_FILE, Bundle
from service.contract.manifest import Graph
from service.scoring.golden import GoldenRows, read_golden
from service.scoring.predictor import Predictor

METRICS = ("test.auc", "test.ece", "valid.auc")


@dataclass(frozen=True)
class ScoreShift:
    """Golden rows of one domain of the first bundle, scored by the second.

    Attributes:
        num_rows: Compared.
        mean, largest: Of p2 - p1 and of |p2 - p1|.
    """

    num_rows: int
    mean: float
    largest: float


@dataclass(frozen=True)
class BundleDiff:
    """Differences from a first bundle to a second.

    Attributes:
        same_schema: Whether rows are encoded alike.
        features: Names of stored features that one of them lacks or that differ.
        domains_gone, domains_new: Names.
        figures: By domain and metric: both values, where they differ.
        graphs: By domain: graph, form, precision before and after, where they differ.
        shifts: By domain in both; empty where schemas differ.
        not_compared: Domains whose golden rows lack an input of the second's graph.
    """

    same_schema: bool
    features: tuple[str, ...]
    domains_gone: tuple[str, ...]
    domains_new: tuple[str, ...]
    figures: dict[str, dict[str, tuple[float | None, float | None]]]
    graphs: dict[str, tuple[str, str]]
    shifts: dict[str, ScoreShift] = field(default_factory=dict)
    not_compared: tuple[str, ...] = ()


def compare(first: Bundle, second: Bundle) -> BundleDiff:
    """Everything that differs."""
    one, two = first.manifest.domains, second.manifest.domains
    both = [name for name in one if name in two]
    same = first.manifest.schema_digest == second.manifest.schema_digest
    shifts, missed = _shifts(first, second, both) if same else ({}, ())
    figures = {
        name: {
            metric: (one[name].metrics.get(metric), two[name].metrics.get(metric))
            for metric in METRICS
            if one[name].metrics.get(metric) != two[name].metrics.get(metric)
        }
        for name in both
    }
    graphs = {name: (_graph_line(first, name), _graph_line(second, name)) for name in both}
    return BundleDiff(
        same_schema=same,
        features=_odd_features(first, second),
        domains_gone=tuple(name for name in one if name not in two),
        domains_new=tuple(name for name in two if name not in one),
        figures={name: found for name, found in figures.items() if found},
        graphs={name: pair for name, pair in graphs.items() if pair[0] != pair[1]},
        shifts=shifts,
        not_compared=missed,
    )


def _odd_features(first: Bundle, second: Bundle) -> tuple[str, ...]:
    one = {feature.name: feature for feature in first.schema.features}
    two = {feature.name: feature for feature in second.schema.features}
    return tuple(name for name in {**one, **two} if one.get(name) != two.get(name))


def _graph_line(bundle: Bundle, domain: str) -> str:
    entry = bundle.manifest.domains[domain]
    graph = bundle.manifest.graphs[entry.graph]
    return f"{entry.graph} ({graph.form}, {graph.precision}, {graph.options.get('num_nodes')} nodes)"


def _shifts(
    first: Bundle, second: Bundle, domains: list[str]
) -> tuple[dict[str, ScoreShift], tuple[str, ...]]:
    golden = read_golden(first.file(GOLDEN_FILE))
    opened: dict[str, Predictor] = {}
    found: dict[str, ScoreShift] = {}
    missed = []
    for name in domains:
        entry, other = first.manifest.domains[name], second.manifest.domains[name]
        rows = golden[entry.graph]
        graph = first.manifest.graphs[entry.graph]
        places = np.flatnonzero(domain_of_rows(entry.graph, first, graph, rows) == entry.index)
        target = second.manifest.graphs[other.graph]
        inputs = _translated(graph, target, rows, places, other.index)
        if inputs is None or not len(places):
            missed.append(name)
            continue
        if other.graph not in opened:
            opened[other.graph] = Predictor(second.file(target.file), target)
        change = opened[other.graph].run(inputs).astype(np.float64) - rows.expected[places]
        found[name] = ScoreShift(len(places), float(change.mean()), float(np.abs(change).max()))
    return found, tuple(missed)


def _translated(
    graph: Graph, target: Graph, rows: GoldenRows, places: NDArray[np.int64], domain: int
) -> dict[str, NDArray[Any]] | None:
    """Golden rows as another graph takes them; None where they lack what it reads."""
    chosen = rows_of(graph, rows.inputs, places.tolist())
    by_source = {spec.source: chosen[spec.name] for spec in graph.inputs}
    requests = next((len(v) for s, v in by_source.items() if not s.startswith(("item", "request_index"))), 1)
    by_source.setdefault("domain", np.full(requests, domain, np.int64))
    if any(spec.source not in by_source for spec in target.inputs):
        return None
    return {spec.name: by_source[spec.source] for spec in target.inputs}
