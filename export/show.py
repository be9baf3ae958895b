"""Tables that `ctr-export` prints of bundles."""

from __future__ import annotations

from pydantic import JsonValue
from rich.table import Table

from export.card import cluster_graphs, clustering_line, graph_work
from export.diff import BundleDiff
from export.verify import GraphParity
from service.contract.bundle import Bundle
from service.contract.manifest import Clustering, Graph, Manifest


def graph_table(bundle: Bundle) -> Table:
    """Work and size of every graph; bytes of weights count where they are stored first."""
    heads = (
        "graph",
        "form",
        "precision",
        "nodes",
        "MACs/row",
        "MACs/request",
        "experts",
        "MiB",
        "max |dp|",
        "GPU",
    )
    caption = (
        "A row is one candidate. MiB: not stored by graphs above. GPU: providers, where the service has one."
    )
    table = Table(*heads, title="Graphs", caption=caption)
    seen: set[str] = set()
    for name, graph in bundle.manifest.graphs.items():
        files = [file for file in (graph.file, *graph.external_files) if file not in seen]
        seen.update(files)
        size = sum(bundle.manifest.files[file].num_bytes for file in files) / 2**20
        error = "" if graph.max_error is None else f"{graph.max_error:.1e}"
        cells = (*graph_work(graph), f"{size:.1f}", error, gpu_line(graph))
        table.add_row(name, graph.form, graph.precision, *cells)
    return table


def gpu_line(graph: Graph) -> str:
    """Providers in order, and whether runs are recorded; empty where the graph is made for processors."""
    if graph.gpu is None:
        return ""
    names = ", ".join(provider.name.removesuffix("ExecutionProvider") for provider in graph.gpu.providers)
    return f"{names}; recorded" if graph.gpu.captures else names


def choice_table(manifest: Manifest) -> Table | None:
    """Why graphs have their form and precision; None where nothing was measured."""
    table = Table("graph", "form", "precision", title="Measured at export")
    for name, graph in manifest.graphs.items():
        form, precision = _form(graph.options.get("form_evidence")), _precision(graph)
        if form or precision:
            table.add_row(name, form, precision)
    return table if table.row_count else None


def _form(told: JsonValue) -> str:
    if not isinstance(told, dict):
        return ""
    if "gain" in told:
        return (
            f"{told['gain']}x: {told['rows_per_s']:,} rows/s instead of {told['rows_per_s_without']:,}, "
            f"{told['memory_mib']} MiB"
        )
    return str(told.get("reason", ""))


def _precision(graph: Graph) -> str:
    told = graph.options.get("precision_evidence")
    return str(told.get("reason", "")) if isinstance(told, dict) else ""


def cluster_table(manifest: Manifest, clustering: Clustering) -> Table:
    """Target and source set of every cluster."""
    table = Table(
        "cluster", "domains", "sources", "graph", title="Clusters", caption=clustering_line(clustering)
    )
    for k, cluster in enumerate(clustering.clusters):
        names = ", ".join(cluster.domains), ", ".join(cluster.sources)
        table.add_row(str(k), *names, ", ".join(cluster_graphs(manifest, k)))
    return table


def domain_table(manifest: Manifest) -> Table:
    """Offline figures of every domain, the largest first."""
    heads = ("domain", "graph", "experts", "train rows", "test AUC", "test ECE", "mean score")
    table = Table(*heads, title="Domains")
    for name, entry in sorted(manifest.domains.items(), key=lambda pair: -pair[1].num_train_rows):
        figures = (entry.metrics.get("test.auc"), entry.metrics.get("test.ece"), entry.mean_score)
        cells = ["" if value is None else f"{value:.4f}" for value in figures]
        kept = "" if entry.experts_kept is None else str(len(entry.experts_kept))
        table.add_row(name, entry.graph, kept, str(entry.num_train_rows), *cells)
    return table


def parity_table(bundle: Bundle, found: dict[str, GraphParity]) -> Table:
    """Largest differences of every graph and of its worst domain."""
    table = Table("graph", "form", "precision", "domains", "batches", "max |dp|", "worst domain")
    names = {entry.index: name for name, entry in bundle.manifest.domains.items()}
    for key, parity in found.items():
        worst = max(parity.domain_errors, key=lambda d: parity.domain_errors[d])
        table.add_row(
            key,
            parity.form,
            parity.precision,
            str(len(parity.domain_errors)),
            str(parity.num_batches),
            f"{parity.max_error:.1e}",
            names.get(worst, "(unknown)"),
        )
    return table


def diff_lines(found: BundleDiff) -> list[str]:
    """One line for each thing that differs."""
    lines = ["schema: the same" if found.same_schema else "schema: differs, so scores are not compared"]
    lines += [f"feature {name}: differs" for name in found.features]
    lines += [f"domain {name}: gone" for name in found.domains_gone]
    lines += [f"domain {name}: new" for name in found.domains_new]
    lines += [f"domain {name}: {before} -> {after}" for name, (before, after) in found.graphs.items()]
    for name, figures in found.figures.items():
        told = ", ".join(f"{key} {_figure(a)} -> {_figure(b)}" for key, (a, b) in figures.items())
        lines.append(f"domain {name}: {told}")
    for name, shift in found.shifts.items():
        if shift.largest > 0:
            lines.append(
                f"domain {name}: scores of {shift.num_rows} golden rows shift by {shift.mean:+.2e} on "
                f"average, by {shift.largest:.2e} at most"
            )
    if found.not_compared:
        lines.append(f"golden rows lack inputs for: {', '.join(found.not_compared)}")
    return lines


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
