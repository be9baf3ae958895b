"""`ctr-train pretrain` and `ctr-train onboard`: HIER from a log to a bundle, and a new domain into it.

The bundle is made by `ctr-export build` in a process of its own, since training knows nothing of export.
Invariant: an alias moves only to a bundle that passed the parity check.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from training.cli_print import out_console

StoreOption = Annotated[
    Path | None, typer.Option(help="Model store to publish a bundle to; without one nothing is published.")
]
AliasOption = Annotated[str, typer.Option(help="Alias to move onto the bundle.")]


def pretrain_command(
    config: Annotated[Path, typer.Option(help="YAML config, e.g. training/configs/hier/synthetic.yaml.")],
    out: Annotated[Path, typer.Option(help="Run folder to fill; made if missing.")],
    data: Annotated[Path | None, typer.Option(help="Raw data; triples are read from there too.")] = None,
    prepared: Annotated[
        Path | None,
        typer.Option(help="Prepared data: used if it is there, else made from --data. Default: OUT/source."),
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a config key; repeatable."),
    ] = None,
    store: StoreOption = None,
    alias: AliasOption = "hier",
) -> None:
    """Pre-train HIER over the domains of a data set; `onboard` then adds domains that have no clicks."""
    from training.data.prepare import prepare
    from training.data.prepared import MANIFEST_FILE, PreparedDataset
    from training.data.source import open_data
    from training.engine.errors import RunError
    from training.hier.config import load_pretrain_config
    from training.hier.run import run_pretraining
    from training.hier.serving import write_serving
    from training.track import bars

    settings = load_pretrain_config(config, override or ())
    folder = out / "source" if prepared is None else prepared
    with bars(Console(stderr=True)) as watcher:
        if not (folder / MANIFEST_FILE).is_file():
            if data is None:
                raise RunError(f"{folder}: no prepared data there; give --data to make it")
            prepare(open_data(data, settings.data.recipe), folder, progress=watcher.reach)
        representation = run_pretraining(
            PreparedDataset.open(folder),
            settings,
            out,
            data=data,
            told=lambda step, ndcg: watcher.say(f"step {step}: NDCG@10 of the sources {ndcg:.4f}"),
        )
    limit = settings.graph.max_entities
    write_serving(out, representation, settings.model, [], max_entities=limit)
    facts = representation.facts
    out_console.print(
        f"run folder {out}: {len(representation.sources)} source domains, "
        f"{len(representation.vocabulary.names)} entities, NDCG@10 {facts['ndcg']:.4f}, "
        f"{facts['open_gates']:.0%} of gates open",
        highlight=False,
        soft_wrap=True,
    )
    _publish(out, store, alias)


def onboard_command(
    domain: Annotated[str, typer.Option(metavar="NAME", help="Name of the new domain.")],
    items: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Its items: item_id and a column for each attribute; parquet, csv or jsonl.",
        ),
    ],
    run: Annotated[Path, typer.Option(help="Folder of a `ctr-train pretrain`.")] = Path("runs/hier"),
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Its labelled impressions so far: user_id, item_id, label, time_ms."
        ),
    ] = None,
    prior_ctr: Annotated[
        float | None, typer.Option(help="Click rate to expect; the median of the sources if left out.")
    ] = None,
    store: StoreOption = Path("models"),
    alias: AliasOption = "hier",
) -> None:
    """Score a domain without clicks: register its items, calibrate by a prior, publish a bundle.

    Give --labels as clicks arrive: the line and then the head are fitted to them. With features in Redis
    publish to an alias that nothing serves, `ctr-serve features load --alias` it, then move the alias.
    """
    from training.hier.onboard import onboard

    found = onboard(run, domain, items, prior_rate=prior_ctr, labels=labels)
    nearest = "" if found.nearest is None else f", most like '{found.nearest[0]}' ({found.nearest[1]:.2f})"
    out_console.print(
        f"domain {domain}: {len(found.items)} items, {found.coverage:.1%} with a known entity, "
        f"{found.num_rows} labelled rows, line from {found.stage}, mean score {found.mean_score:.4f}"
        f"{nearest}",
        highlight=False,
        soft_wrap=True,
    )
    _publish(run, store, alias)


def _publish(run: Path, store: Path | None, alias: str) -> None:
    """Build a bundle of a run and move the alias.

    Raises:
        OnboardError: The build failed; the message is its own.
    """
    from training.hier.errors import OnboardError

    if store is None:
        return
    command = [sys.executable, "-m", "export.cli", "build", str(run), "--store", str(store)]
    done = subprocess.run(  # noqa: S603 - our own module, arguments as a list
        [*command, "--alias", alias, "--name", "hier"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise OnboardError(f"ctr-export build of {run} failed: {lines[-1] if lines else 'no message'}")
    out_console.print(done.stdout.strip(), highlight=False, soft_wrap=True)
