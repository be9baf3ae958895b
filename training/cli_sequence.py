"""`ctr-train sequence`: next-item models over event logs, and what click models make of them.

Commands only parse arguments, call one function of the package each, and print.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from training.cli_print import out_console
from training.track import bars

if TYPE_CHECKING:
    from training.sequences.clicks import HistoryNames

sequence_app = typer.Typer(help="Models over sequences of events.", no_args_is_help=True)
error_console = Console(stderr=True)

HistoryOption = Annotated[
    str,
    typer.Option(
        metavar="FEATURE.ITEM.DOMAIN",
        help="Sequence feature of the user, and its fields of items and domains.",
    ),
]
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
    deviations: Annotated[
        float | None,
        typer.Option(
            min=0, help="Serve by the single view where the mixed one is worse by so many standard errors."
        ),
    ] = None,
) -> None:
    """Print HR@5, NDCG@5 and MRR of finished runs by domain, and what serving loses to single views."""
    from training.sequences.report import compared, losses_to_single, read_metrics, served_at

    if split not in ("valid", "test"):
        raise typer.BadParameter(f"{split!r} is not one of valid, test", param_hint="--split")
    found = [read_metrics(run) for run in runs]
    if deviations is not None:
        found = [served_at(metrics, deviations=deviations) for metrics in found]
    heads, rows = compared(found, split=split)
    table = Table(*heads, box=None)
    for row in rows:
        table.add_row(*row)
    out_console.print(table)
    for run, metrics in zip(runs, found, strict=True):
        for name, change in losses_to_single(metrics, split=split).items():
            view = "single" if metrics["use_single"][name] else "mixed"
            out_console.print(
                f"{run}: {name} served by its {view} view: HR@5 less single {change:+.4f}",
                highlight=False,
                soft_wrap=True,
            )


@sequence_app.command()
def histories(
    data: Annotated[Path, typer.Option(help="Impressions: a folder with dataset.yaml.")],
    out: Annotated[Path, typer.Option(help="Folder for the same data with histories; made if missing.")],
    feature: Annotated[str, typer.Option(help="Sequence feature of the user that lists items.")],
    recipe: Annotated[str | None, typer.Option(help="Shipped description to read the data by.")] = None,
) -> None:
    """Give lists of items their domains by the table of items, for `fit`, `calibrate` and `features`."""
    from training.data.source import open_data
    from training.sequences.histories import write_histories

    told = write_histories(open_data(data, recipe), out, feature=feature)
    out_console.print(
        f"{out}: {told.num_events:,} events of {told.num_users:,} users, {told.num_left_out:,} left out for "
        "want of a domain",
        highlight=False,
        soft_wrap=True,
    )


@sequence_app.command()
def calibrate(
    run: Annotated[Path, typer.Argument(help="Run folder of `ctr-train sequence fit`.")],
    data: Annotated[Path, typer.Option(help="Logged impressions: a folder with dataset.yaml.")],
    out: Annotated[Path, typer.Option(help="Run folder to fill; `ctr-export build` takes it.")],
    recipe: Annotated[str | None, typer.Option(help="Shipped description to read the data by.")] = None,
    name: Annotated[str, typer.Option(help="Name of the run.")] = "syncrec",
    history: HistoryOption = "history.item.domain",
    item: Annotated[str, typer.Option(help="Id feature of the item.")] = "item_id",
    *,
    content: Annotated[bool, typer.Option(help="Give new items vectors by their attributes.")] = True,
) -> None:
    """Fit click probabilities of a sequence model on impressions, and write a run that can be exported."""
    from training.cli_print import print_metrics
    from training.data.prepare import prepare
    from training.data.prepared import MANIFEST_FILE, PreparedDataset
    from training.data.source import open_data
    from training.engine.artefacts import RunFolder
    from training.report import write_report
    from training.sequences.clicks import calibrate_clicks
    from training.sequences.run import load_sequence_model, trained_until_ms

    model = load_sequence_model(run)
    folder = RunFolder(out)
    with bars(error_console) as watcher:
        if not (folder.prepared / MANIFEST_FILE).is_file():
            prepare(open_data(data, recipe), folder.prepared, progress=watcher.reach)
        calibrate_clicks(
            model,
            PreparedDataset.open(folder.prepared),
            out,
            name=name,
            names=history_names(history, item),
            trained_until_ms=trained_until_ms(run, model),
            content=content,
            watcher=watcher,
        )
    write_report(out)
    print_metrics(folder)
    out_console.print(f"run folder {out}, report {folder.report}", highlight=False, soft_wrap=True)


@sequence_app.command()
def features(
    run: Annotated[Path, typer.Argument(help="Run folder of `ctr-train sequence fit`.")],
    data: Annotated[Path, typer.Option(help="Impressions: a folder with dataset.yaml.")],
    out: Annotated[Path, typer.Option(help="Folder for the same data with vectors; made if missing.")],
    recipe: Annotated[str | None, typer.Option(help="Shipped description to read the data by.")] = None,
    history: HistoryOption = "history.item.domain",
) -> None:
    """Give click models a sequence model's score as a feature, and its vectors: `ctr-train run --data OUT`.

    Models read score and vectors unless `model.inputs.exclude` names sequence_user and sequence_item.
    """
    from training.data.source import open_data
    from training.sequences.features import write_features
    from training.sequences.run import load_sequence_model, trained_until_ms

    model = load_sequence_model(run)
    told = write_features(
        model,
        open_data(data, recipe),
        out,
        names=history_names(history, "item_id"),
        trained_until_ms=trained_until_ms(run, model),
    )
    out_console.print(
        f"{out}: vectors of {told.num_users:,} users, {told.num_items:,} of {told.num_all_items:,} items",
        highlight=False,
        soft_wrap=True,
    )


def history_names(history: str, item: str) -> HistoryNames:
    """Read FEATURE.ITEM_FIELD.DOMAIN_FIELD."""
    from training.sequences.clicks import HistoryNames

    parts = history.split(".")
    if len(parts) != 3 or not all(parts):
        raise typer.BadParameter(
            f"{history!r} is not FEATURE.ITEM_FIELD.DOMAIN_FIELD", param_hint="--history"
        )
    return HistoryNames(history=parts[0], item_field=parts[1], domain_field=parts[2], item=item)
