"""The model card: a manifest as a page that people read."""

from __future__ import annotations

from service.contract.manifest import Clustering, DomainEntry, Graph, Manifest
from training.metrics import HEADLINE

GRAPH_HEADS = (
    *("graph", "form", "precision", "inputs", "nodes", "MACs per candidate", "MACs per request", "experts"),
    "largest error against torch",
)


def render_card(manifest: Manifest) -> str:
    """Markdown text of the card. It does not hold the bundle's id, which depends on the card."""
    return "\n".join(
        [
            f"# {manifest.name}: {manifest.model}",
            "",
            *_headline(manifest),
            "",
            "## Domains",
            "",
            "Calibrated figures of the test part; AUC is empty where a domain has one class only.",
            "",
            "| domain | graph | train rows | AUC | ECE | mean score |",
            "|---|---|---:|---:|---:|---:|",
            *(_domain_row(name, entry) for name, entry in _by_size(manifest)),
            "",
            f"Unknown domains: {manifest.unknown_domain.policy}.",
            "",
            *_clusters(manifest),
            "## Graphs",
            "",
            "MACs: multiply-adds of matrix products. Experts: those in the graph, of those in the model.",
            "",
            f"| {' | '.join(GRAPH_HEADS)} |",
            "|---|---|---|---:|---:|---:|---:|---|---:|",
            *(_graph_row(name, graph) for name, graph in manifest.graphs.items()),
            "",
            "## Provenance",
            "",
            *(
                f"- {key}: `{value}`"
                for key, value in manifest.provenance.model_dump(exclude={"libraries"}).items()
                if value
            ),
            *(f"- {key}: `{value}`" for key, value in manifest.provenance.libraries.items()),
            "",
        ]
    )


def _by_size(manifest: Manifest) -> list[tuple[str, DomainEntry]]:
    return sorted(manifest.domains.items(), key=lambda pair: -pair[1].num_train_rows)


def _headline(manifest: Manifest) -> list[str]:
    parts = list(manifest.metrics)
    lines = [f"| | {' | '.join(parts)} |", f"|---|{'---:|' * len(parts)}"]
    lines += [
        f"| {key} | {' | '.join(_number(manifest.metrics[part].get(key), '.4f') for part in parts)} |"
        for key in HEADLINE
    ]
    return lines


def _domain_row(name: str, entry: DomainEntry) -> str:
    auc, ece = entry.metrics.get("test.auc"), entry.metrics.get("test.ece")
    cells = (_number(auc, ".4f"), _number(ece, ".4f"), _number(entry.mean_score, ".4f"))
    return f"| {name} | {entry.graph} | {entry.num_train_rows} | {' | '.join(cells)} |"


def _graph_row(name: str, graph: Graph) -> str:
    cells = (graph.form, graph.precision, str(len(graph.inputs)), *graph_work(graph))
    return f"| {name} | {' | '.join(cells)} | {_number(graph.max_error, '.1e')} |"


def graph_work(graph: Graph) -> tuple[str, str, str, str]:
    """Nodes, multiply-adds per candidate and per request, experts by level; empty where not known."""
    told = graph.options
    counts = (told.get(key) for key in ("num_nodes", "macs_per_row", "macs_per_request"))
    nodes, row, request = (f"{count:,}" if isinstance(count, int) else "" for count in counts)
    experts = told.get("experts")
    levels = experts.items() if isinstance(experts, dict) else ()
    shown = (f"{level}: {kept[0]}/{kept[1]}" for level, kept in levels if isinstance(kept, list))
    return nodes, row, request, ", ".join(shown)


def cluster_graphs(manifest: Manifest, k: int) -> list[str]:
    """Graphs that serve cluster k, the unknown domain's among them."""
    used = {entry.graph for entry in manifest.domains.values() if entry.cluster == k}
    if manifest.clustering is not None and manifest.clustering.default_cluster == k:
        used.add(manifest.unknown_domain.graph)
    return sorted(used)


def clustering_line(clustering: Clustering) -> str:
    """How the clusters were found, in one sentence."""
    return (
        f"Version {clustering.version}, method {clustering.method}, {clustering.num_updates} updates, "
        f"assignment {clustering.assignment[:12]}; unlisted domains belong to cluster "
        f"{clustering.default_cluster}."
    )


def _clusters(manifest: Manifest) -> list[str]:
    if manifest.clustering is None:
        return []
    rows = (
        f"| {k} | {', '.join(cluster.domains)} | {', '.join(cluster.sources)} "
        f"| {', '.join(cluster_graphs(manifest, k))} |"
        for k, cluster in enumerate(manifest.clustering.clusters)
    )
    return [
        "## Clusters",
        "",
        clustering_line(manifest.clustering),
        "",
        "| cluster | domains | source set | graph |",
        "|---:|---|---|---|",
        *rows,
        "",
    ]


def _number(value: float | None, spec: str) -> str:
    return "" if value is None else format(value, spec)
