"""The report of clusters: affinities, causal distance, who is with whom, churn, and why K.

Reads a folder of clusters (`assignment.json` and, where there was a lookahead, `matrices.npz`, `state.npz`,
`choice.json`) and, of a run, its metrics; writes `report.html` beside them. Invariant: nothing is measured
anew; J alone is computed here, from the stored matrices, by the formula of the updates.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from training.clustering.archive import load_state
from training.clustering.arrays import FloatArray, IntArray
from training.clustering.assignment import MATRICES_FILE, ClusterAssignment, load_assignment
from training.clustering.choice_file import CHOICE_FILE
from training.clustering.cluster_run import STATE_FILE
from training.clustering.gain import Matrices, pair_gains
from training.clustering.state import CdcState
from training.engine.files import write_text
from training.report_page import image, number, page, plot, table

CLUSTER_REPORT = "report.html"
TICK_LIMIT = 60
"""Domains up to which a heat map names each."""


def write_cluster_report(folder: Path, metrics: Mapping[str, Any] | None = None) -> Path:
    """Write `report.html` into a folder of clusters and give its path.

    Args:
        folder: Holds assignment.json.
        metrics: Content of the `metrics.json` of a run with these clusters, for the table by domain.

    Raises:
        AssignmentError: there is no assignment.
        StateError: the state cannot be read.
    """
    assignment = load_assignment(folder)
    title = f"{assignment.num_clusters} clusters by {assignment.method}"
    sections = [_facts(assignment), "<h2>Clusters</h2>" + _cluster_map(assignment, metrics)]
    state_file, choice_file = folder / STATE_FILE, folder / CHOICE_FILE
    if choice_file.is_file():
        sections.append(_choice(json.loads(choice_file.read_text(encoding="utf-8"))))
    if state_file.is_file():
        state = load_state(state_file)
        sections.append("<h2>Updates</h2>" + _updates(state))
        sections.append("<h2>Matrices</h2>" + _heat_maps(folder, assignment, state))
    if metrics is not None:
        sections.append("<h2>Domains, test rows</h2>" + _domains(assignment, metrics))
    write_text(folder / CLUSTER_REPORT, page(title, sections))
    return folder / CLUSTER_REPORT


def _facts(assignment: ClusterAssignment) -> str:
    attached = f"; too small to be measured: {len(assignment.attached)}" if assignment.attached else ""
    return (
        f"<p>{len(assignment.domains)} domains, {assignment.num_updates} updates; unknown domains go to "
        f"cluster {assignment.default_cluster}{attached}. Assignment {assignment.digest[:12]}, data "
        f"{assignment.data_digest[:12]}.</p>"
    )


def _cluster_map(assignment: ClusterAssignment, metrics: Mapping[str, Any] | None) -> str:
    tested = {} if metrics is None else metrics["test"]["domains"]

    def named(names: Sequence[str]) -> str:
        marked = (f"{name} ({tested[name]['rows']:,})" if name in tested else name for name in names)
        return ", ".join(marked)

    rows = [
        [
            str(k),
            str(len(targets)),
            assignment.centres[k] if assignment.centres else "-",
            named(targets),
            f"{len(assignment.sources[k])}: {', '.join(assignment.sources[k])}",
        ]
        for k, targets in enumerate(assignment.targets)
    ]
    note = " (test rows)" if tested else ""
    return table(["cluster", "domains", "centre", f"serves{note}", "sources"], rows)


def _choice(choice: Mapping[str, Any]) -> str:
    rows = [
        [
            f"{line['num_clusters']}{' (chosen)' if line['num_clusters'] == choice['num_clusters'] else ''}",
            number(line["stability"]),
            number(line["silhouette"]),
            f"{line['mean_gain']:.3g}",
            number(line["smallest"]),
        ]
        for line in choice["evidence"]
    ]
    note = (
        "<p class='note'>Stability: adjusted Rand index of the clusters of redrawn treatments; of the stable "
        "and well shaped K the lowest is taken. The gain takes no part.</p>"
    )
    heads = ["K", "stability", "silhouette", "gain per source", "smallest cluster"]
    return "<h2>Number of clusters</h2>" + table(heads, rows) + note


def _updates(state: CdcState) -> str:
    rows = [
        [
            str(number_ + 1),
            record.skipped or f"{len(record.moved)} moved",
            f"{record.churn_ratio:.1%}",
            f"{record.churn_rows_ratio:.1%}",
            ("signed instead of depcon" if record.fell_back else record.distance) or "-",
            f"{record.clipped_ratio:.1%}",
            " ".join(map(str, record.cluster_sizes)),
            " ".join(map(str, record.source_sizes)),
        ]
        for number_, record in enumerate(state.history)
    ]
    heads = ["update", "", "churn, domains", "churn, rows", "distance", "clipped", "clusters", "sources"]
    figure, axes = plot(columns=1)
    steps = np.arange(1, len(state.history) + 1)
    axes[0].plot(steps, [r.churn_ratio for r in state.history], "o-", label="domains")
    axes[0].plot(steps, [r.churn_rows_ratio for r in state.history], "o-", label="training rows")
    axes[0].set(xlabel="update", ylabel="share that changed cluster")
    axes[0].legend()
    return image(figure, "churn by update") + table(heads, rows)


def _heat_maps(folder: Path, assignment: ClusterAssignment, state: CdcState) -> str:
    with np.load(folder / MATRICES_FILE, allow_pickle=False) as stored:
        matrices = {name: stored[name] for name in ("mi", "mh", "mc")}
    measured = np.flatnonzero(~np.isnan(matrices["mc"]).all(axis=1))
    gain = np.full_like(matrices["mi"], np.nan)
    gain[np.ix_(measured, measured)] = _gain(state)
    labels = assignment.labels
    order = measured[np.argsort(labels[measured], kind="stable")]
    maps = (
        ("MI: gain of v (column) by a step on u (row)", matrices["mi"], "coolwarm"),
        ("MH: gain that u adds to the sources of its cluster", matrices["mh"], "coolwarm"),
        ("J: gain with the cluster of v, what an update decides by", gain, "coolwarm"),
        ("MC: causal distance, radians", matrices["mc"], "viridis"),
    )
    names = np.array(assignment.domains, dtype=object)[order]
    shown = [
        image(_heat_map(title, values[np.ix_(order, order)], names, labels[order], colours), title)
        for title, values, colours in maps
    ]
    note = "<p class='note'>Rows and columns go by cluster; black lines part clusters.</p>"
    return note + "".join(shown)


def _gain(state: CdcState) -> FloatArray:
    """(n, n) J(u -> v | S_k) with k the cluster of v."""
    clusters = state.require_clusters()
    matrices = Matrices(mi=clusters.mi, mh=clusters.mh, mc=clusters.mc, shares=state.shares)
    gain = np.empty_like(clusters.mi)
    for k, sources in enumerate(clusters.sources):
        served = clusters.labels == k
        gain[:, served] = pair_gains(matrices, sources, rule=state.rules.source.interaction)[:, served]
    return gain


def _heat_map(title: str, values: FloatArray, names: IntArray, labels: IntArray, colours: str) -> Figure:
    figure = Figure(figsize=(9.0, 8.0), layout="constrained")
    axes = figure.add_subplot(1, 1, 1)
    # A few large entries, mostly on the diagonal, would bleach the rest.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        high = float(np.nanquantile(np.abs(values), 0.98)) if values.size else 1.0
    low = -high if colours == "coolwarm" else 0.0
    shown = axes.imshow(values, cmap=colours, vmin=low, vmax=high or 1.0, interpolation="nearest")
    figure.colorbar(shown, ax=axes, shrink=0.7)
    for edge in np.flatnonzero(np.diff(labels)):
        axes.axhline(edge + 0.5, color="black", lw=0.8)
        axes.axvline(edge + 0.5, color="black", lw=0.8)
    if len(names) <= TICK_LIMIT:
        axes.set_xticks(range(len(names)), names.tolist(), rotation=90, fontsize=6)
        axes.set_yticks(range(len(names)), names.tolist(), fontsize=6)
    axes.set_title(title, fontsize=10)
    return figure


def _domains(assignment: ClusterAssignment, metrics: Mapping[str, Any]) -> str:
    domains = sorted(metrics["test"]["domains"].items(), key=lambda item: -item[1]["rows"])
    rows = [
        [
            name,
            str(assignment.cluster_of(name)),
            f"{domain['rows']:,}",
            f"{domain['positives']:,}",
            number(domain["auc"]),
            "" if domain["auc"] is None else f"{domain['auc_low']:.3f} to {domain['auc_high']:.3f}",
        ]
        for name, domain in domains
    ]
    return table(["domain", "cluster", "rows", "clicks", "AUC", "95 % interval"], rows)
