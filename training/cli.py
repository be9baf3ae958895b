"""`ctr-train`: prepare data, train, evaluate, compare, report.

Commands only parse arguments, call one function of the package each, and print. They import what they call
when they are called, so that `--help` does not wait for torch. Invariant: an expected error (bad config, bad
data, an unusable folder, a full disk) ends in one line on stderr and exit code 1, a wrong command line in
exit code 2; neither shows a traceback.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from training.cli_ab import ab_app
from training.cli_data import prepared_data
from training.cli_join import join_command
from training.cli_onboard import onboard_command, pretrain_command
from training.cli_print import (
    out_console,
    print_columns,
    print_dataset,
    print_metrics,
    print_source,
    print_study,
)
from training.cli_sequence import sequence_app
from training.track import Quiet, bars

INTERRUPTED = 130

app = typer.Typer(
    name="ctr-train", help="Train click models over many domains.", no_args_is_help=True, add_completion=False
)
data_app = typer.Typer(help="Make, prepare and describe data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")
data_app.command("join")(join_command)
app.add_typer(ab_app, name="ab")
app.command("pretrain")(pretrain_command)
app.command("onboard")(onboard_command)
app.add_typer(sequence_app, name="sequence")

error_console = Console(stderr=True)

RunArgument = Annotated[Path, typer.Argument(help="A run folder, the OUT of `ctr-train run`.")]
ConfigOption = Annotated[Path, typer.Option(help="YAML config, e.g. training/configs/synthetic_mmoe.yaml.")]
DataOption = Annotated[
    Path | None, typer.Option(help="Raw data: a folder with dataset.yaml, or the one the recipe reads.")
]
PreparedOption = Annotated[
    Path | None,
    typer.Option(help="Prepared data: used if it is there, else made from --data. Default: OUT/prepared."),
]
OverrideOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a config key; repeatable."),
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on from the folder's last checkpoint.")]


@app.callback()
def start(context: typer.Context) -> None:
    """Train click models over many domains."""
    if "RANK" in os.environ and context.invoked_subcommand != "run":
        from training.engine.distributed import refuse_ranks

        refuse_ranks(f"ctr-train {context.invoked_subcommand}")


@app.command()
def run(
    config: ConfigOption,
    out: Annotated[Path, typer.Option(help="Run folder to fill; made if missing.")],
    data: DataOption = None,
    prepared: PreparedOption = None,
    override: OverrideOption = None,
    rank_timeout: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="Under torchrun: how long a process waits for the others, and for data to be prepared.",
        ),
    ] = 1800.0,
    *,
    resume: ResumeOption = False,
) -> None:
    """Train one model, calibrate and evaluate it, and write the run folder with its report.

    Several processes: torchrun --nproc-per-node 2 -m training.cli run ... (training/README.md).
    """
    from training.config import load_config
    from training.engine.artefacts import RunFolder
    from training.engine.distributed import joined
    from training.engine.fit import run_training
    from training.report import write_report

    settings = load_config(config, override or ())
    with joined(device=settings.training.device, timeout_s=rank_timeout) as group:
        with bars(error_console) if group.is_first else nullcontext(Quiet()) as watcher:
            dataset = prepared_data(
                settings, data=data, cache=prepared, out=out, watcher=watcher, group=group
            )
            # What torchrun starts anew after a failure goes on, whatever the first start was told.
            going_on = resume or group.restarts > 0
            run_training(settings, dataset, out, resume=going_on, watcher=watcher, group=group)
        if group.is_first:
            write_report(out)
            print_metrics(RunFolder(out))
            out_console.print(f"run folder {out}, report {RunFolder(out).report}", highlight=False)


@app.command()
def cluster(
    config: Annotated[Path, typer.Option(help="YAML config, e.g. training/configs/synthetic_cdc.yaml.")],
    out: Annotated[Path, typer.Option(help="Folder for the clusters; made if missing.")],
    data: DataOption = None,
    prepared: PreparedOption = None,
    override: OverrideOption = None,
    *,
    resume: ResumeOption = False,
) -> None:
    """Find which domains belong together; `run --set clustering.assignment=OUT/assignment.json` uses it."""
    from training.clustering.cluster_run import Job, find_clusters
    from training.config import load_config
    from training.engine.artefacts import RunFolder
    from training.engine.run import refuse_taken
    from training.report_clusters import write_cluster_report

    settings = load_config(config, override or ())
    if not resume:
        refuse_taken(RunFolder(out))
    with bars(error_console) as watcher:
        dataset = prepared_data(settings, data=data, cache=prepared, out=out, watcher=watcher)
        assignment = find_clusters(Job(settings, dataset, resume=resume, watcher=watcher), out)
    table = Table("cluster", "domains", "sources", box=None)
    for k, names in enumerate(assignment.targets):
        table.add_row(str(k), ", ".join(names), str(len(assignment.sources[k])))
    out_console.print(table)
    out_console.print(f"clusters {out}, report {write_cluster_report(out)}", highlight=False, soft_wrap=True)


@app.command()
def evaluate(
    run_folder: RunArgument,
    split: Annotated[str, typer.Option(help="valid or test.")] = "test",
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print all metrics, domains too, as JSON.")] = False,
) -> None:
    """Score a split again with the stored model and calibrator, and print the metrics."""
    from training.engine.fit import EVALUATED_SPLITS, evaluate_run

    if split not in EVALUATED_SPLITS:
        raise typer.BadParameter(
            f"{split!r} is not one of {', '.join(EVALUATED_SPLITS)}", param_hint="--split"
        )
    with bars(error_console) as watcher:
        metrics = evaluate_run(run_folder, split, watcher=watcher)
    if as_json:
        sys.stdout.write(json.dumps(metrics, indent=2) + "\n")
    else:
        print_columns({split: metrics})


@app.command()
def report(run_folder: RunArgument) -> None:
    """Write report.html again from the run folder."""
    from training.report import write_report

    out_console.print(str(write_report(run_folder)), highlight=False, soft_wrap=True)


@app.command()
def study(
    study: Annotated[
        Path, typer.Option(help="Study file, e.g. training/configs/studies/cdc_kuairand_tag.yaml.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the study; made if missing.")],
    data: DataOption = None,
    seeds: Annotated[int | None, typer.Option(help="Only the first N seeds of the file.", min=1)] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only this variant; repeatable.")] = None,
    jobs: Annotated[int, typer.Option(help="Runs at a time, each in a process of its own.", min=1)] = 1,
    *,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep finished runs of OUT and go on with begun ones.")
    ] = False,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Make the tables and the report again; train nothing.")
    ] = False,
) -> None:
    """Compare models, paired by seed: every variant of a study file against its references."""
    from training.study.plan import load_plan
    from training.study.report import REPORT_FILE, write_study
    from training.study.run import run_study

    plan = load_plan(study)
    if report_only:
        tables = write_study(plan, out)
    else:
        with bars(error_console) as watcher:
            tables = run_study(
                plan, out, data, num_seeds=seeds, only=only or (), jobs=jobs, resume=resume, watcher=watcher
            )
    print_study(tables)
    out_console.print(f"study {out}, report {out / REPORT_FILE}", highlight=False, soft_wrap=True)
    if tables["failed"]:
        raise typer.Exit(1)


@app.command()
def tune(
    config: ConfigOption,
    space: Annotated[Path, typer.Option(help="YAML file of dotted keys with their ranges or choices.")],
    out: Annotated[Path, typer.Option(help="Folder of the search; made if missing.")],
    trials: Annotated[int, typer.Option(help="Trials in all, those of earlier sittings included.", min=1)],
    data: DataOption = None,
    prepared: PreparedOption = None,
    override: OverrideOption = None,
    seed: Annotated[int, typer.Option(help="Seed of the draws.", min=0)] = 0,
    *,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the search in OUT.")] = False,
) -> None:
    """Search a config's values by validation, with the same number of trials for every model."""
    from training.config import load_config
    from training.tune.report import write_search_report
    from training.tune.search import BEST_FILE, Search, run_search
    from training.tune.space import load_space

    given, axes = override or [], load_space(space)
    settings = load_config(config, given)
    with bars(error_console) as watcher:
        dataset = prepared_data(settings, data=data, cache=prepared, out=out, watcher=watcher)
        search = Search(config, given, axes, dataset, out, seed)
        found = run_search(search, trials, resume=resume, watcher=watcher)
    out_console.print(
        f"best validation {settings.training.monitor} {found.best_value:.5f}: {out / BEST_FILE}, report "
        f"{write_search_report(search, found)}",
        highlight=False,
        soft_wrap=True,
    )


@data_app.command()
def synthetic(
    out: Annotated[Path, typer.Option(help="Folder to fill; made if missing.")],
    preset: Annotated[str, typer.Option(help="small or demo or large.")] = "demo",
    seed: Annotated[
        int | None, typer.Option(help="Seed of every draw; the preset's own if left out.")
    ] = None,
) -> None:
    """Write a seeded synthetic multi-domain data set whose true click probabilities are known."""
    from training.data.synthetic import PRESETS, generate

    if preset not in PRESETS:
        raise typer.BadParameter(f"{preset!r} is not one of {', '.join(PRESETS)}", param_hint="--preset")
    settings = PRESETS[preset]
    if seed is not None:
        settings = type(settings).model_validate(settings.model_dump() | {"seed": seed})
    with bars(error_console) as watcher:
        summary = generate(settings, out, lambda done, total: watcher.reach("generate", done, total))
    rows = ", ".join(f"{split} {count:,}" for split, count in summary.rows_per_split.items())
    out_console.print(f"{out}: {rows}; click rate {summary.click_rate:.4f}", highlight=False, soft_wrap=True)


@data_app.command("prepare")
def prepare_command(
    data: Annotated[Path, typer.Option(help="Raw data folder, or a dataset.yaml.")],
    out: Annotated[Path, typer.Option(help="Folder for the prepared data.")],
    recipe: Annotated[
        str | None,
        typer.Option(help="Shipped description to read the folder by, e.g. kuairand_tag."),
    ] = None,
) -> None:
    """Encode a raw data set once: schema, statistics, row files per split."""
    from training.data.prepare import prepare
    from training.data.prepared import PreparedDataset
    from training.data.source import open_data

    with bars(error_console) as watcher:
        prepare(open_data(data, recipe), out, progress=watcher.reach)
    print_dataset(PreparedDataset.open(out))


@data_app.command()
def describe(
    prepared: Annotated[Path | None, typer.Option(help="Prepared data folder.")] = None,
    data: Annotated[Path | None, typer.Option(help="Raw data folder, or a dataset.yaml.")] = None,
    *,
    domains: Annotated[bool, typer.Option("--domains", help="List every domain with its rows.")] = False,
) -> None:
    """Show what a prepared data set holds, or how raw data will be read."""
    from training.data.prepared import PreparedDataset

    if data is not None and prepared is None:
        print_source(data)
        return
    if prepared is None or data is not None:
        raise typer.BadParameter("give one of --prepared and --data", param_hint="--prepared")
    dataset = PreparedDataset.open(prepared)
    print_dataset(dataset)
    if domains:
        table = Table("domain", *dataset.domain_rows, box=None)
        for name in dataset.schema.domains:
            table.add_row(name, *(f"{rows.get(name, 0):,}" for rows in dataset.domain_rows.values()))
        out_console.print(table)


def main() -> None:
    """Entry point of the console script."""
    sys.exit(guarded(lambda: app(prog_name="ctr-train", standalone_mode=False)))


def guarded(command: Callable[[], Any]) -> int:
    """Run a command line and give its exit code, with expected errors as one line on stderr."""
    try:
        code = command()
    except typer.Exit as stop:
        return int(stop.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        error_console.print("interrupted; the same command with --resume goes on from the last checkpoint")
        return INTERRUPTED
    except Exception as error:
        if isinstance(error, expected_errors()):
            error_console.print(f"error: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
            return 1
        # The usage errors of typer's parser, whose class is not public.
        if not (hasattr(error, "show") and hasattr(error, "exit_code")):
            raise
        error.show()
        return int(error.exit_code)
    return code if isinstance(code, int) else 0


def expected_errors() -> tuple[type[Exception], ...]:
    """Errors that mean wrong input or a wrong world, not a wrong program."""
    from service.contract.errors import ContractError
    from training.ab.errors import AbError
    from training.clustering.errors import ClusteringError
    from training.config import ConfigError
    from training.data.errors import DataError
    from training.engine.errors import EngineError
    from training.hier.errors import HierError
    from training.metrics import MetricError
    from training.sequences.errors import SequenceError
    from training.study.errors import StudyError
    from training.tune.errors import TuneError

    return (
        AbError,
        ConfigError,
        ClusteringError,
        EngineError,
        DataError,
        HierError,
        MetricError,
        ContractError,
        SequenceError,
        StudyError,
        TuneError,
        OSError,
    )


if __name__ == "__main__":
    main()
