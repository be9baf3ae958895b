"""`ctr-train ab`: plan an experiment, read one, and see by simulation what its error levels are worth.

Commands parse arguments, call one function each and print; they import when they are called.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from training.cli_print import out_console
from training.track import bars

ab_app = typer.Typer(help="Plan and read A/B tests.", no_args_is_help=True)

AlphaOption = Annotated[float, typer.Option(help="Error level, two-sided.")]
PowerOption = Annotated[float, typer.Option(help="Chance of seeing the planned lift.")]
PlannedOption = Annotated[
    float, typer.Option(help="Relative lift the experiment was planned for, chosen before its start.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@ab_app.command()
def analyse(
    data: Annotated[Path, typer.Option(help="Folder of `ctr-train data join`.")],
    out: Annotated[Path, typer.Option(help="Folder for report.html and analysis.json.")],
    experiment: Annotated[str | None, typer.Option(help="Its name, when there are several.")] = None,
    control: Annotated[str, typer.Option(help="Arm that others are compared with.")] = "control",
    share: Annotated[
        list[str] | None,
        typer.Option(metavar="ARM=SHARE", help="Share in the routing config; repeatable. Default: equal."),
    ] = None,
    alpha: AlphaOption = 0.05,
    power: PowerOption = 0.8,
    planned_lift: PlannedOption = 0.02,
    looks: Annotated[int, typer.Option(help="Equal parts of the time for the sequential results.")] = 20,
) -> None:
    """Check the sample ratio, and give lifts, sequential results and calibration per arm and domain."""
    from training.ab.analyse import analyse as read
    from training.ab.report import sentences, write_analysis

    analysis = read(
        data,
        experiment=experiment,
        control=control,
        shares=_shares(share or ()),
        alpha=alpha,
        power=power,
        planned_lift=planned_lift,
        looks=looks,
    )
    report = write_analysis(analysis, out)
    for line in sentences(analysis):
        out_console.print(f"- {line}", highlight=False, markup=False, soft_wrap=True)
    out_console.print(f"report {report}", highlight=False, soft_wrap=True)


@ab_app.command()
def power(
    ctr: Annotated[float, typer.Option(help="Click rate of the control arm.")],
    lift: Annotated[
        list[float] | None, typer.Option(help="Relative lift to show; repeatable. Default: 1, 2, 5, 10 %.")
    ] = None,
    units: Annotated[int | None, typer.Option(help="Give the lift that so many units show.")] = None,
    rows_per_unit: Annotated[float, typer.Option(help="Mean rows of a unit over the experiment.")] = 1.0,
    rows_cv: Annotated[float, typer.Option(help="Deviation of rows per unit / mean.")] = 1.0,
    icc: Annotated[float, typer.Option(help="Correlation of two rows of one unit.")] = 0.05,
    effect: Annotated[
        float | None,
        typer.Option("--design-effect", help="Of an earlier experiment's report; instead of cv and icc."),
    ] = None,
    treatment_share: Annotated[float, typer.Option(help="Share of units in the treatment.")] = 0.5,
    alpha: AlphaOption = 0.05,
    power: Annotated[float, typer.Option("--power", help="Chance of seeing the lift.")] = 0.8,
    *,
    as_json: JsonOption = False,
) -> None:
    """Say how many units an experiment needs before it starts, or what a number of units can show."""
    from training.ab.power import Test, Traffic, design_effect, detectable, required

    if effect is None:
        effect = design_effect(rows_per_unit=rows_per_unit, rows_cv=rows_cv, icc=icc)
    traffic = Traffic(ctr, rows_per_unit, effect)
    test = Test(alpha=alpha, power=power, treatment_share=treatment_share)
    lifts = [detectable(traffic, test, units)] if units is not None else lift or [0.01, 0.02, 0.05, 0.1]
    needs = [required(traffic, test, value) for value in lifts]
    if as_json:
        document = {"design_effect": effect, "needs": [asdict(need) for need in needs]}
        sys.stdout.write(json.dumps(document, indent=1) + "\n")
        return
    table = Table("lift", "units", "rows", "always-valid width", box=None)
    for need in needs:
        table.add_row(
            f"{100 * need.lift:.3g} %",
            f"{need.units:,}",
            f"{need.rows:,}",
            f"{need.always_valid_width_ratio:.2f} x fixed",
        )
    out_console.print(f"design effect {effect:.3f}; units and rows of both arms together", highlight=False)
    out_console.print(table)


@ab_app.command()
def simulate(
    experiments: Annotated[int, typer.Option(help="Experiments to simulate.", min=1)] = 1000,
    ctr: Annotated[float, typer.Option(help="Click rate of the control arm.")] = 0.05,
    lift: Annotated[float, typer.Option(help="True relative lift; 0: A/A tests.")] = 0.0,
    icc: Annotated[float, typer.Option(help="Correlation of two rows of one unit.")] = 0.05,
    units_per_arm: Annotated[int, typer.Option(help="Units of each arm.")] = 1000,
    rows_per_unit: Annotated[float, typer.Option(help="Mean rows of a unit.")] = 20.0,
    looks: Annotated[int, typer.Option(help="Times at which results are read.")] = 20,
    alpha: AlphaOption = 0.05,
    planned_lift: PlannedOption = 0.1,
    seed: Annotated[int, typer.Option(help="Seed of every draw.", min=0)] = 0,
    *,
    as_json: JsonOption = False,
) -> None:
    """Simulate experiments with returning users: false-positive rates (A/A), or power with a lift."""
    from training.ab.simulate import World
    from training.ab.simulate import simulate as run

    world = World(ctr, lift, icc, units_per_arm, rows_per_unit, looks)
    with bars(Console(stderr=True)) as watcher:
        found = run(
            world,
            experiments=experiments,
            alpha=alpha,
            planned_lift=planned_lift,
            seed=seed,
            progress=lambda done, total: watcher.reach("simulate", done, total),
        )
    shares = asdict(found)
    if as_json:
        sys.stdout.write(json.dumps({"world": asdict(world), "alpha": alpha, **shares}, indent=1) + "\n")
        return
    table = Table("reading", "significant", "share", "95 % interval", box=None)
    for name, share in shares.items():
        interval = f"[{share['low']:.4f}, {share['high']:.4f}]"
        table.add_row(name.replace("_", " "), str(share["significant"]), f"{share['share']:.4f}", interval)
    out_console.print(table)


def _shares(given: list[str] | tuple[()]) -> dict[str, float] | None:
    """ARM=SHARE options as numbers."""
    shares: dict[str, float] = {}
    for text in given:
        arm, _, value = text.rpartition("=")
        try:
            shares[arm] = float(value)
        except ValueError:
            arm = ""
        if not arm:
            raise typer.BadParameter(f"{text!r} is not ARM=SHARE, e.g. control=0.5", param_hint="--share")
    return shares or None
