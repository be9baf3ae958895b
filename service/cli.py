"""`ctr-serve`: run the service, check it, print the OpenAPI document, load features, replay exposures."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from service import cli_features
from service.cli_replay import replay
from service.cli_settings import fail, option, read_settings
from service.contract.errors import ContractError
from service.errors import RuntimeMissingError, StartupError
from service.settings import Settings

if TYPE_CHECKING:
    from service.bundles.registry import LoadedBundle
    from service.features.opening import FeatureSources

app = typer.Typer(
    help="Score click-through over many domains: POST /score, one user and N items in, N probabilities out.",
    no_args_is_help=True,
    add_completion=False,
)
app.add_typer(cli_features.app, name="features")
app.command()(replay)


@app.command()
def run(
    store: Annotated[Path | None, option("store")] = None,
    alias: Annotated[str | None, option("alias")] = None,
    host: Annotated[str | None, option("host")] = None,
    port: Annotated[int | None, option("port")] = None,
    workers: Annotated[int | None, option("workers")] = None,
    device: Annotated[str | None, option("device")] = None,
    deadline_ms: Annotated[int | None, option("deadline_ms")] = None,
    max_items: Annotated[int | None, option("max_items")] = None,
    max_body_bytes: Annotated[int | None, option("max_body_bytes")] = None,
    max_inflight: Annotated[int | None, option("max_inflight")] = None,
    unknown_domain: Annotated[str | None, option("unknown_domain")] = None,
    routing: Annotated[Path | None, option("routing_file")] = None,
    feature_source: Annotated[str | None, option("feature_source")] = None,
    redis_url: Annotated[str | None, option("redis_url")] = None,
    drain_pause_s: Annotated[float | None, option("drain_pause_s")] = None,
    log_level: Annotated[str | None, option("log_level")] = None,
) -> None:
    """Serve until SIGTERM (drains first) or Ctrl-C.

    Further settings have no option of their own and are read from CTR_... variables; see service/settings.py.
    """
    settings = read_settings(
        store=store,
        alias=alias,
        host=host,
        port=port,
        workers=workers,
        device=device,
        deadline_ms=deadline_ms,
        max_items=max_items,
        max_body_bytes=max_body_bytes,
        max_inflight=max_inflight,
        unknown_domain=unknown_domain,
        routing_file=routing,
        feature_source=feature_source,
        redis_url=redis_url,
        drain_pause_s=drain_pause_s,
        log_level=log_level,
    )
    try:
        _check_folders(settings)
        if settings.workers > 1:
            from service.supervisor import Supervisor

            code = Supervisor(settings).run()
        else:
            from service.server import serve

            serve(settings)
            code = 0
    except (StartupError, OSError) as error:
        fail(f"cannot serve on {settings.host}:{settings.port}: {error}")
    raise typer.Exit(code)


@app.command()
def check(
    store: Annotated[Path | None, option("store")] = None,
    alias: Annotated[str | None, option("alias")] = None,
    device: Annotated[str | None, option("device")] = None,
    routing: Annotated[Path | None, option("routing_file")] = None,
    feature_source: Annotated[str | None, option("feature_source")] = None,
    redis_url: Annotated[str | None, option("redis_url")] = None,
) -> None:
    """Open a bundle, verify every file, replay its golden rows; exit 1 with the reason if it is unfit.

    With a routing file: also every bundle it names, and whether each can serve the domains it is to serve.
    """
    settings = read_settings(
        store=store,
        alias=alias,
        device=device,
        routing_file=routing,
        feature_source=feature_source,
        redis_url=redis_url,
    )
    try:
        _check_folders(settings)
    except StartupError as error:
        fail(str(error))
    loaded = _load(settings)
    Console().print(_report(loaded))
    if settings.routing_file is not None:
        Console().print(_routing_report(settings, loaded))
    if _store_answers(settings) is False:
        typer.secho(f"ctr-serve: no answer: {loaded.source.describe()}; requests would be degraded", err=True)


@app.command()
def openapi(
    store: Annotated[
        Path | None, typer.Option(help="Model store whose bundle gives the examples; generic ones without.")
    ] = None,
    alias: Annotated[str | None, option("alias")] = None,
) -> None:
    """Print the OpenAPI document as JSON."""
    loaded = None if store is None else _load(read_settings(store=store, alias=alias))
    try:
        from service.app import openapi_document
    except RuntimeMissingError as error:
        fail(str(error))
    typer.echo(json.dumps(openapi_document(loaded), indent=1))


def _load(settings: Settings) -> LoadedBundle:
    try:
        from service.app import load_bundle

        return load_bundle(settings, _sources(settings))
    except (ContractError, StartupError) as error:
        fail(str(error))


def _check_folders(settings: Settings) -> None:
    """Try the folders of exposures and feedback, and read the tokens, before anything is served."""
    from service.api.auth import Tokens
    from service.events import check_folders
    from service.telemetry.trace import check_extra

    check_folders(settings)
    check_extra(settings.otlp_endpoint)
    if settings.tokens_file is not None:
        Tokens.read(settings.tokens_file)


def _sources(settings: Settings) -> FeatureSources:
    from service.features.opening import FeatureSources
    from service.telemetry.metrics import Metrics

    return FeatureSources(settings, Metrics().features)


def _store_answers(settings: Settings) -> bool | None:
    """Whether the feature store can be reached; None where there is none."""
    return asyncio.run(_sources(settings).probe())


def _routing_report(settings: Settings, loaded: LoadedBundle) -> Table:
    """What a checked routing file decides, one line per arm."""
    from service.app import check_routing

    try:
        table = check_routing(settings, _sources(settings), loaded)
    except StartupError as error:
        fail(str(error))
    shown = Table(title=f"{settings.routing_file}, digest {table.digest}", caption=table.describe())
    for column in ("experiment", "domains", "unit", "arm", "share", "bundle"):
        shown.add_column(column)
    for experiment in table.config.experiments:
        domains = "all" if experiment.domains == "all" else str(len(experiment.domains))
        for arm, spans in zip(experiment.arms, experiment.spans, strict=True):
            share = sum(end - start for start, end in spans)
            control = " (control)" if arm.name == experiment.control_arm else ""
            shown.add_row(
                experiment.name,
                domains,
                experiment.unit,
                arm.name + control,
                f"{share:.4g}",
                arm.bundle or "default",
            )
    return shown


def _report(loaded: LoadedBundle) -> Table:
    """What a checked bundle holds, one line per graph."""
    manifest = loaded.bundle.manifest
    table = Table(
        title=f"{manifest.name} ({manifest.model}), bundle {loaded.version}, alias {loaded.alias}",
        caption=f"{len(manifest.domains)} domains; {loaded.source.describe()}; "
        f"verified and warm in {loaded.load_s:.2f} s",
    )
    for column in ("graph", "form", "precision", "domains", "golden max error", "ms at 100 rows"):
        table.add_column(column)
    for key, graph in manifest.graphs.items():
        domains = sum(entry.graph == key for entry in manifest.domains.values())
        run_ms = loaded.predictors[key].clock.expected_ms(100)
        error = loaded.golden_error[key]
        table.add_row(key, graph.form, graph.precision, str(domains), f"{error:.2g}", f"{run_ms:.3f}")
    return table


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
