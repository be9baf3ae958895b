"""`ctr-serve check`: everything a start would need, tried without serving; for CI and init containers.

Reads what the settings name. Every check is made even where another fails, so that one run tells all.
Invariant: exit code 0 only if all that was checked is fit; 1 if something is not; 2 if the settings
themselves cannot be read, so that nothing was checked.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from service.cli_settings import complain, load_settings, option
from service.contract.errors import ContractError
from service.errors import SettingsError, StartupError
from service.settings import Settings

if TYPE_CHECKING:
    from service.bundles.registry import LoadedBundle
    from service.features.opening import FeatureSources
    from service.routing.table import RoutingTable

UNFIT = 1
UNREADABLE = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        check: What was checked.
        ok: Whether it is fit.
        detail: What it is, or why it is not fit.
    """

    check: str
    ok: bool
    detail: str


def check(
    *,
    store: Annotated[Path | None, option("store")] = None,
    alias: Annotated[str | None, option("alias")] = None,
    device: Annotated[str | None, option("device")] = None,
    routing: Annotated[Path | None, option("routing_file")] = None,
    feature_source: Annotated[str | None, option("feature_source")] = None,
    redis_url: Annotated[str | None, option("redis_url")] = None,
    tokens_file: Annotated[Path | None, option("tokens_file")] = None,
    connect: Annotated[
        bool, typer.Option("--connect", help="Also connect to Redis, where features come from there.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Check settings, CTR_ variables, token files, folders, the bundle, the routing file and all it names.

    A bundle is opened, every file verified, its golden rows replayed. Exit code 0: fit to serve; 1: unfit;
    2: the settings cannot be read.
    """
    try:
        settings = load_settings(
            store=store,
            alias=alias,
            device=device,
            routing_file=routing,
            feature_source=feature_source,
            redis_url=redis_url,
            tokens_file=tokens_file,
        )
    except SettingsError as error:
        _tell([Finding("settings", ok=False, detail=str(error))], [], as_json=as_json)
        raise typer.Exit(UNREADABLE) from None
    findings, tables = run_checks(settings, connect=connect)
    _tell(findings, tables, as_json=as_json)
    raise typer.Exit(0 if all(finding.ok for finding in findings) else UNFIT)


def run_checks(settings: Settings, *, connect: bool) -> tuple[list[Finding], list[Table]]:
    """Make all checks that the settings ask for.

    Args:
        settings: Of the service.
        connect: Whether to connect to a feature store.

    Returns:
        What each found, and tables of what was opened.
    """
    findings = [Finding("settings", ok=True, detail="all are known and in range")]
    tables: list[Table] = []

    def attempt(name: str, make: Callable[[], str]) -> None:
        try:
            findings.append(Finding(name, ok=True, detail=make()))
        except (ContractError, StartupError) as error:
            findings.append(Finding(name, ok=False, detail=str(error)))

    attempt("folders", lambda: check_writable(settings))
    for name in token_files(settings):
        attempt(name, lambda name=name: _tokens(getattr(settings, name)))  # type: ignore[misc]
    loaded: list[LoadedBundle] = []
    attempt("bundle", lambda: _bundle(settings, loaded, tables))
    if settings.routing_file is not None:
        attempt("routing", lambda: _routing(settings, loaded, tables))
    if connect and settings.feature_source != "memory":
        attempt("features", lambda: _connect(settings))
    return findings, tables


def check_writable(settings: Settings) -> str:
    """Try the folders that records go to, and whether what they need is installed.

    Raises:
        StartupError: A folder cannot be used, or a package is missing.
    """
    from service.events import check_folders
    from service.telemetry.trace import check_extra

    check_folders(settings)
    check_extra(settings.otlp_endpoint)
    used = [str(f) for f in (settings.exposure_dir, settings.feedback_dir) if f is not None]
    return f"{', '.join(used)} can be written to" if used else "none is needed"


def token_files(settings: Settings) -> list[str]:
    """Names of the settings that name a file of tokens."""
    return [
        name for name in Settings.model_fields if name.endswith("tokens_file") and getattr(settings, name)
    ]


def check_before_serving(settings: Settings) -> None:
    """What can be told before anything is opened.

    Raises:
        StartupError: A folder or a file of tokens cannot be used.
    """
    check_writable(settings)
    for name in token_files(settings):
        _tokens(getattr(settings, name))


def _tokens(path: Path) -> str:
    from service.api.auth import Tokens

    return f"{path}: {len(Tokens.read(path))} tokens"


def _sources(settings: Settings) -> FeatureSources:
    from service.features.opening import FeatureSources
    from service.telemetry.metrics import Metrics

    return FeatureSources(settings, Metrics().features)


def _bundle(settings: Settings, opened: list[LoadedBundle], tables: list[Table]) -> str:
    from service.app import load_bundle

    loaded = load_bundle(settings, _sources(settings))
    opened.append(loaded)
    tables.append(bundle_table(loaded))
    worst = max(loaded.golden_error.values())
    return f"{loaded.bundle.manifest.name} {loaded.bundle_id}: verified, golden rows within {worst:.2g}"


def _routing(settings: Settings, opened: list[LoadedBundle], tables: list[Table]) -> str:
    from service.app import check_routing

    if not opened:
        raise StartupError("not checked, since there is no default bundle to route to")
    table = check_routing(settings, _sources(settings), opened[0])
    tables.append(routing_table(settings, table))
    return f"{settings.routing_file}, digest {table.digest}: {table.describe()}"


def _connect(settings: Settings) -> str:
    if not asyncio.run(_sources(settings).probe()):
        raise StartupError("Redis does not answer; a service would start all the same, degraded")
    return "Redis answers"


def _tell(findings: list[Finding], tables: list[Table], *, as_json: bool) -> None:
    """One JSON object on stdout; or tables there, and what is unfit on stderr."""
    if as_json:
        whole: dict[str, Any] = {
            "ok": all(finding.ok for finding in findings),
            "checks": [asdict(finding) for finding in findings],
        }
        typer.echo(json.dumps(whole, indent=1))
        return
    console = Console()
    for table in tables:
        console.print(table)
    for finding in findings:
        if finding.ok:
            typer.echo(f"{finding.check}: {finding.detail}")
        elif finding.check == "settings":
            complain(finding.detail)
        else:
            complain(f"{finding.check}: {finding.detail}")


def routing_table(settings: Settings, table: RoutingTable) -> Table:
    """What a checked routing file decides, one line per arm."""
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


def bundle_table(loaded: LoadedBundle) -> Table:
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


__all__ = ["Finding", "check", "check_before_serving", "run_checks"]
