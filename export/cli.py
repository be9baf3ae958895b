"""`ctr-export`: build, verify, inspect, compare, recalibrate and name bundles."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from export.errors import ExportError
from service.contract.errors import ContractError
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


class ExpertsOption(StrEnum):
    """How a graph computes the experts that its rows chose."""

    AUTO = "auto"
    GROUPED = "grouped"
    DENSE = "dense"
    FUSED = "fused"


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
        typer.Option(help="Graphs: one, one per cluster, own ones of hot domains, or the fastest."),
    ] = None,
    precision: Annotated[
        PrecisionOption, typer.Option(help="Of the graphs; lower ones only behind the gate of the card.")
    ] = PrecisionOption.FP32,
    experts: Annotated[
        ExpertsOption | None,
        typer.Option(help="How experts that rows chose are computed; with --form auto the fastest."),
    ] = None,
    *,
    expert_masks: Annotated[
        bool, typer.Option(help="Let domains choose only the experts that hold nearly all their routing.")
    ] = False,
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
        experts=None if experts is None else experts.value,
        expert_masks=expert_masks,
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
    """Check every digest; replay the golden rows on this machine, by domain and in several batches."""
    from export.show import parity_table
    from export.verify import verify_graphs

    opened = ModelStore(store).open(bundle)
    console.print(parity_table(opened, verify_graphs(opened)))
    console.print(f"bundle {opened.bundle_id[:12]}: {len(opened.manifest.files)} files verified")


@app.command()
def inspect(bundle: BundleArgument = "stable", store: StoreOption = Path("models")) -> None:
    """Print what a bundle holds."""
    from export.show import choice_table, cluster_table, domain_table, graph_table

    opened = ModelStore(store).open(bundle, verify=False)
    console.print(f"[bold]{opened.manifest.name}[/bold] {opened.manifest.model} {opened.bundle_id}")
    console.print(graph_table(opened))
    if (choices := choice_table(opened.manifest)) is not None:
        console.print(choices)
    if opened.manifest.clustering is not None:
        console.print(cluster_table(opened.manifest, opened.manifest.clustering))
    console.print(domain_table(opened.manifest))


@app.command()
def diff(
    first: BundleArgument,
    second: BundleArgument,
    store: StoreOption = Path("models"),
) -> None:
    """Print what differs between two bundles: schema, domains, figures, graphs, scores of golden rows."""
    from export.diff import compare
    from export.show import diff_lines

    where = ModelStore(store)
    for line in diff_lines(compare(where.open(first), where.open(second))):
        console.print(line, highlight=False, soft_wrap=True)


@app.command()
def recalibrate(
    calibration: Annotated[Path, typer.Option(help="A `calibration.json` with the lines of its domains.")],
    bundle: BundleArgument = "stable",
    store: StoreOption = Path("models"),
    alias: Annotated[str, typer.Option(help="Alias to move onto the new bundle; '' moves none.")] = "stable",
) -> None:
    """Make a new bundle with other calibrators and nothing else new."""
    from export.recalibrate import recalibrate as make
    from training.engine.calibrate import Calibrator

    where = ModelStore(store)
    made = make(where.open(bundle), Calibrator.load(calibration), where, alias=alias or None)
    console.print(f"bundle {made.bundle_id[:12]} in {store}: calibrators of {calibration}")


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
