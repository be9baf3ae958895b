"""`ctr-serve`: run the service, check it, pull bundles, print the OpenAPI document, load features, replay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service import cli_features
from service.cli_check import check, check_before_serving
from service.cli_pull import pull
from service.cli_replay import replay
from service.cli_settings import fail, option, read_settings
from service.contract.errors import ContractError
from service.errors import RuntimeMissingError, StartupError
from service.settings import Settings
from service.telemetry.log import configure_logging

if TYPE_CHECKING:
    from service.bundles.registry import LoadedBundle
    from service.features.opening import FeatureSources

app = typer.Typer(
    help="Score click-through over many domains: POST /score, one user and N items in, N probabilities out.",
    no_args_is_help=True,
    add_completion=False,
)
app.add_typer(cli_features.app, name="features")
app.command()(check)
app.command()(pull)
app.command()(replay)


@app.command()
def run(
    store: Annotated[Path | None, option("store")] = None,
    alias: Annotated[str | None, option("alias")] = None,
    alias_poll_s: Annotated[float | None, option("alias_poll_s")] = None,
    max_bundles_bytes: Annotated[int | None, option("max_bundles_bytes")] = None,
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
    tokens_file: Annotated[Path | None, option("tokens_file")] = None,
    admin_tokens_file: Annotated[Path | None, option("admin_tokens_file")] = None,
    admin_host: Annotated[str | None, option("admin_host")] = None,
    admin_port: Annotated[int | None, option("admin_port")] = None,
    drain_pause_s: Annotated[float | None, option("drain_pause_s")] = None,
    log_level: Annotated[str | None, option("log_level")] = None,
) -> None:
    """Serve until SIGTERM (drains first) or Ctrl-C; SIGHUP reloads bundle and routing.

    Further settings have no option of their own and are read from CTR_... variables; see service/settings.py.
    """
    settings = read_settings(
        store=store,
        alias=alias,
        alias_poll_s=alias_poll_s,
        max_bundles_bytes=max_bundles_bytes,
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
        tokens_file=tokens_file,
        admin_tokens_file=admin_tokens_file,
        admin_host=admin_host,
        admin_port=admin_port,
        drain_pause_s=drain_pause_s,
        log_level=log_level,
    )
    try:
        check_before_serving(settings)
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


def _sources(settings: Settings) -> FeatureSources:
    from service.features.opening import FeatureSources
    from service.telemetry.metrics import Metrics

    return FeatureSources(settings, Metrics().features)


def main() -> None:
    """Entry point of the console script; what a command prints must not be mixed with log records."""
    configure_logging("warning")
    app()


if __name__ == "__main__":
    main()
