"""`ctr-train sequence`: next-item models over event logs, and what click models make of them.

Commands only parse arguments, call one function of the package each, and print.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from training.cli_print import out_console
from training.track import bars

sequence_app = typer.Typer(help="Models over sequences of events.", no_args_is_help=True)
error_console = Console(stderr=True)

RunsArgument = Annotated[list[Path], typer.Argument(help="Run folders of `ctr-train sequence fit`.")]


@sequence_app.command()
def fit(
    config: Annotated[
        Path, typer.Option(help="YAML config, e.g. training/configs/sequences/amazon5_syncrec.yaml.")
    ],
    data: Annotated[Path, typer.Option(help="Folder with the event table.")],
    out: Annotated[Path, typer.Option(help="Run folder to fill; made if missing.")],
    override: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a config key; repeatable."),
    ] = None,
    *,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the folder's last checkpoint.")
    ] = False,
) -> None:
    """Train one model on an event log, rank held-out events by domain, and write the run folder."""
    from training.config import load_tree
    from training.sequences.build import open_log
    from training.sequences.config import SequenceConfig
    from training.sequences.report import HEADS, read_metrics, view_rows, write_run_report
    from training.sequences.run import train_sequences

    settings = load_tree(config, override or (), SequenceConfig)
    with bars(error_console) as watcher:
        train_sequences(settings, open_log(settings.events, data), out, resume=resume, watcher=watcher)
    report = write_run_report(out)
    for view, found in read_metrics(out)["test"].items():
        table = Table(*HEADS, title=f"test, {view} view", box=None, title_justify="left")
        for row in view_rows(found):
            table.add_row(*row)
        out_console.print(table)
    out_console.print(f"run folder {out}, report {report}", highlight=False, soft_wrap=True)


@sequence_app.command()
def compare(
    runs: RunsArgument,
    split: Annotated[str, typer.Option(help="valid or test.")] = "test",
) -> None:
    """Print HR@5, NDCG@5 and MRR of finished runs by domain, and what serving loses to single views."""
    from training.sequences.report import compared, losses_to_single, read_metrics

    if split not in ("valid", "test"):
        raise typer.BadParameter(f"{split!r} is not one of valid, test", param_hint="--split")
    heads, rows = compared(runs, split=split)
    table = Table(*heads, box=None)
    for row in rows:
        table.add_row(*row)
    out_console.print(table)
    for run in runs:
        for name, change in losses_to_single(read_metrics(run), split=split).items():
            out_console.print(f"{run}: {name}: served HR@5 less single {change:+.4f}", highlight=False)
