"""Which penalty of open gates: by decades, the largest that costs the sources next to nothing.

`python -m training.hier.gate_scan --config CONFIG --data DIR --out OUT [--set hold_out=NAME]` pre-trains once
for each and prints a table. A penalty is stated for each gate, as in `loss.open_gates`; with other numbers of
intents and exemplars, penalty times gates is what to keep. Invariant: a held-out domain and the test part are
not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from training.data.prepared import PreparedDataset
from training.hier.config import PretrainConfig, load_pretrain_config
from training.hier.pretrain import silent
from training.hier.source import SourceData, open_prepared, train_network

PENALTIES = (0.0, 1e-4, 1e-3, 1e-2)
TOLERANCE = 0.002
"""NDCG@10 that a larger penalty may cost."""


@dataclass(frozen=True)
class Trial:
    """A penalty: best mean NDCG@10 of the sources' validation clicks, its step, gates open there."""

    penalty: float
    ndcg: float
    step: int
    open_share: float


def scan(prepared: PreparedDataset, config: PretrainConfig, data: Path | None) -> list[Trial]:
    """Pre-train with each penalty; all else is the config's."""
    source = SourceData(prepared, config, data)
    trials = []
    for penalty in PENALTIES:
        loss = config.loss.model_copy(update={"open_gates": penalty})
        source.config = config.model_copy(update={"loss": loss})
        _, found = train_network(source, silent)
        trials.append(Trial(penalty, found.ndcg, found.step, found.open_share))
    return trials


def choose(trials: Sequence[Trial]) -> Trial:
    """The largest penalty whose NDCG is within `TOLERANCE` of the best."""
    best = max(trial.ndcg for trial in trials)
    return max((t for t in trials if t.ndcg >= best - TOLERANCE), key=lambda trial: trial.penalty)


def main(
    config: Annotated[Path, typer.Option(help="YAML config of the pre-training.")],
    data: Annotated[Path, typer.Option(help="Raw data.")],
    out: Annotated[Path, typer.Option(help="Folder for prepared data.")],
    override: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a config key; repeatable."),
    ] = None,
) -> None:
    """Scan penalties of open gates by decades and print which one to take."""
    settings = load_pretrain_config(config, override or ())
    trials = scan(open_prepared(out / "prepared", settings, data), settings, data)
    typer.echo("open_gates  NDCG@10  step  gates open")
    for trial in trials:
        typer.echo(f"{trial.penalty:10g}  {trial.ndcg:7.4f}  {trial.step:4d}  {trial.open_share:10.1%}")
    typer.echo(f"take {choose(trials).penalty:g}")


if __name__ == "__main__":
    typer.run(main)
