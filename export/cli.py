"""`ctr-export`: build, verify, inspect and name bundles."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from export.card import cluster_graphs, clustering_line, graph_work
from export.errors import ExportError
from service.contract.bundle import Bundle
from service.contract.errors import ContractError
from service.contract.manifest import Clustering, Manifest
from service.contract.store import ModelStore

app = typer.Typer(
    name="ctr-export",
    help="Turn a training run into a bundle that the service loads.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console()
errors = Console(stderr=True)


class UnknownDomainPolicy(StrEnum):
    """What a request for an unlisted domain gets."""

    REJECT = "reject"
    ZERO_SHOT = "zero_shot"


class FormOption(StrEnum):
    """Which graphs a bundle gets."""

    AUTO = "auto"
    WHOLE = "whole"
    CLUSTER = "cluster"
    DOMAIN = "domain"


class PrecisionOption(StrEnum):
    """Of weights and products."""

    FP32 = "fp32"
    INT8 = "int8"
    FP16 = "fp16"
    AUTO = "auto"


StoreOption = Annotated[Path, typer.Option(help="Model store: a folder of bundles and aliases.json.")]
BundleArgument = Annotated[
    str, typer.Argument(help="Alias, bundle id, or the id's first 6 or more characters.")
]


@app.command()
def build(
    run: Annotated[Path, typer.Argument(help="Folder of a finished `ctr-train run`.")],
    store: StoreOption = Path("models"),
    alias: Annotated[str, typer.Option(help="Alias to move onto the bundle; '' moves none.")] = "stable",
    name: Annotated[str, typer.Option(help="Name of the served model, in URLs and metrics.")] = "ctr",
    unknown_domain: Annotated[
        UnknownDomainPolicy, typer.Option(help="Requests for unlisted domains: 404, or the fallback row.")
    ] = UnknownDomainPolicy.REJECT,
    hot_domains: Annotated[
        int, typer.Option(min=0, help="How many of the largest domains (validation rows) get an own graph.")
    ] = 0,
    domain_graphs: Annotated[
        str, typer.Option(help="Names of domains that get a graph of their own, with commas between.")
    ] = "",
    form: Annotated[
        FormOption | None,
        typer.Option(
            help="Graphs: one, one per cluster, own ones of hot domains, or the fastest."
        ),
    ] = None,
    precision: Annotated[
        PrecisionOption, typer.Option(help="Of the graphs; lower ones only behind the gate of the card.")
    ] = PrecisionOption.FP32,
    *,
    snapshot: Annotated[bool, typer.Option(help="Put user and item rows into the bundle.")] = True,
) -> None:
    """Export a run, check it against torch for every domain, publish it as a bundle."""
    from export.package import BuildOptions, build_bundle
    from export.run_folder import RunFolder

    options = BuildOptions(
        alias=alias or None,
        name=name,
        unknown_domain=unknown_domain.value,
        snapshot=snapshot,
        hot_domains=hot_domains,
        domain_graphs=tuple(part.strip() for part in domain_graphs.split(",") if part.strip()),
        form=None if form is None else form.value,
        precision=precision.value,
    )
    with console.status("read the run") as status:
        bundle = build_bundle(RunFolder.open(run), ModelStore(store), options, progress=status.update)
    worst = max(graph.max_error or 0.0 for graph in bundle.manifest.graphs.values())
    size = sum(entry.num_bytes for entry in bundle.manifest.files.values())
    console.print(
        f"bundle {bundle.bundle_id[:12]} in {store}: {len(bundle.manifest.domains)} domains, "
        f"{len(bundle.manifest.graphs)} {'graph' if len(bundle.manifest.graphs) == 1 else 'graphs'}, "
        f"{size / 2**20:.1f} MiB, parity |dp| <= {worst:.1e}"
    )
    if alias:
        console.print(f"alias '{alias}' points at it; serve it with: ctr-serve run --store {store}")


@app.command()
def verify(bundle: BundleArgument = "stable", store: StoreOption = Path("models")) -> None:
    """Check every digest and replay the golden rows on this machine."""
    from export.package import verify_bundle

    opened = ModelStore(store).open(bundle)
    for graph, error in verify_bundle(opened).items():
        console.print(f"graph {graph}: golden rows agree, |dp| <= {error:.1e}")
    console.print(f"bundle {opened.bundle_id[:12]}: {len(opened.manifest.files)} files verified")


@app.command()
def inspect(bundle: BundleArgument = "stable", store: StoreOption = Path("models")) -> None:
    """Print what a bundle holds."""
    opened = ModelStore(store).open(bundle, verify=False)
    console.print(f"[bold]{opened.manifest.name}[/bold] {opened.manifest.model} {opened.bundle_id}")
    console.print(_graph_table(opened))
    if opened.manifest.clustering is not None:
        console.print(_cluster_table(opened.manifest, opened.manifest.clustering))
    console.print(_domain_table(opened.manifest))


@app.command()
def alias(
    name: Annotated[str, typer.Argument(help="Alias to move, e.g. stable or canary.")],
    bundle: BundleArgument,
    store: StoreOption = Path("models"),
) -> None:
    """Point an alias at a bundle, after verifying the bundle."""
    bundle_id = ModelStore(store).set_alias(name, bundle)
    console.print(f"alias '{name}' points at {bundle_id[:12]}")


@app.command()
def push(
    url: Annotated[
        str, typer.Argument(help="Address of a store: s3://, gs://, abfs://, ...: what fsspec writes.")
    ],
    bundle: BundleArgument = "stable",
    alias: Annotated[str, typer.Option(help="Alias to move there, e.g. stable or canary.")] = "stable",
    store: StoreOption = Path("models"),
) -> None:
    """Copy a bundle to an object store, after verifying it, and point an alias at it there."""
    from service.contract.remote import RemoteStore

    bundle_id = RemoteStore(url).push(ModelStore(store), bundle, alias=alias)
    console.print(f"alias '{alias}' of {url} points at {bundle_id[:12]}", soft_wrap=True)


def _graph_table(bundle: Bundle) -> Table:
    heads = ("graph", "form", "precision", "nodes", "MACs/row", "MACs/request", "experts", "MiB", "max |dp|")
    table = Table(*heads, title="Graphs", caption="A row is one candidate.")
    for name, graph in bundle.manifest.graphs.items():
        files = (graph.file, *graph.external_files)
        size = sum(bundle.manifest.files[file].num_bytes for file in files) / 2**20
        error = "" if graph.max_error is None else f"{graph.max_error:.1e}"
        table.add_row(name, graph.form, graph.precision, *graph_work(graph), f"{size:.1f}", error)
    return table


def _cluster_table(manifest: Manifest, clustering: Clustering) -> Table:
    table = Table(
        "cluster", "domains", "sources", "graph", title="Clusters", caption=clustering_line(clustering)
    )
    for k, cluster in enumerate(clustering.clusters):
        names = ", ".join(cluster.domains), ", ".join(cluster.sources)
        table.add_row(str(k), *names, ", ".join(cluster_graphs(manifest, k)))
    return table


def _domain_table(manifest: Manifest) -> Table:
    table = Table("domain", "graph", "train rows", "test AUC", "test ECE", "mean score", title="Domains")
    for name, entry in sorted(manifest.domains.items(), key=lambda pair: -pair[1].num_train_rows):
        figures = (entry.metrics.get("test.auc"), entry.metrics.get("test.ece"), entry.mean_score)
        cells = ["" if value is None else f"{value:.4f}" for value in figures]
        table.add_row(name, entry.graph, str(entry.num_train_rows), *cells)
    return table


def main() -> None:
    """Entry point: expected errors print one line and exit with 1."""
    from service.errors import StartupError
    from training.engine.errors import EngineError

    try:
        app()
    except (ExportError, ContractError, StartupError, EngineError) as error:
        errors.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
