"""Train a finished CESAA run on with its masks of experts on.

`python -m training.routing.fine_tune RUN --out OUT` starts from the run's weights, holds each domain to the
experts that the run found to carry nearly all of its routing, trains for an epoch and leaves a whole run
folder, whose model has the masks in it. Invariant: no row chooses an expert outside of its domain's mask, in
training or after.

Source: CESAA, arXiv 2411.06826; masks are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from training.config import RunConfig, load_config
from training.data.prepared import PreparedDataset
from training.engine.artefacts import RunFolder, load_json, load_model
from training.engine.optim import OptimiserSet
from training.engine.run import RunResult, train_model
from training.models.base import CtrModel
from training.models.config import CesaaConfig
from training.routing.errors import RoutingError
from training.routing.routing_run import RoutingRun
from training.routing.warmup import InformationWarmup, cesaa_of
from training.track import Quiet, RunLog, Watcher


class MaskedRoutingRun(RoutingRun):
    """Starts a model from given weights, with masks.

    Args:
        config: Of the new run.
        prepared: Whose rows it is trained on.
        start: The trained model.
        routing: The `routing` part of its run's metrics.
    """

    def __init__(
        self, config: RunConfig, prepared: PreparedDataset, start: CtrModel, routing: Mapping[str, Any]
    ) -> None:
        super().__init__(config, prepared)
        self._start = start
        every = range(int(routing["num_experts"]))
        self._allowed = [routing["domains"][name]["allowed"] for name in prepared.schema.domains]
        self._allowed.append(every)

    def make_hook(
        self, model: CtrModel, optimisers: OptimiserSet, log: RunLog, watcher: Watcher
    ) -> InformationWarmup:
        """Put weights and masks into the model, then go on as any run does."""
        model.load_state_dict(self._start.state_dict())
        cesaa_of(model).gate.allow(self._allowed)
        return super().make_hook(model, optimisers, log, watcher)


def fine_tune(run: Path, out: Path, *, epochs: int = 1, watcher: Watcher | None = None) -> RunResult:
    """Train on with masks.

    Args:
        run: Folder of a finished run of one CESAA model.
        out: Folder of the new run.
        epochs: Passes.
        watcher: Shows progress.

    Raises:
        RoutingError: The run measured no routing.
        RunError: The run is not finished, or `out` is taken.
    """
    folder = RunFolder(run)
    folder.require_finished()
    metrics = load_json(folder.metrics)
    config = load_config(folder.config)
    if "routing" not in metrics or not isinstance(config.model, CesaaConfig):
        raise RoutingError(f"{run}: its metrics have no routing; only runs of type cesaa have")
    prepared = PreparedDataset.open(folder.prepared)
    training = config.training.model_copy(update={"epochs": epochs})
    model = config.model.model_copy(update={"mi_warmup_steps": 0})
    config = config.model_copy(update={"training": training, "model": model})
    start = load_model(folder.model, prepared.schema)
    routing = MaskedRoutingRun(config, prepared, start, metrics["routing"])
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "prepared").exists():
        (out / "prepared").symlink_to(folder.prepared.resolve())
    return train_model(
        config,
        prepared,
        out,
        watcher=watcher or Quiet(),
        make_hook=routing.make_hook,
        identity={"start": metrics["digests"]["weights"]},
        on_trained=routing.on_trained,
    )


def main(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run of a cesaa model.")],
    out: Annotated[Path, typer.Option(help="Folder of the new run.")],
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training rows.")] = 1,
) -> None:
    """Train a run on with each domain held to the experts that carry nearly all of its routing."""
    before = load_json(RunFolder(run).metrics)
    after = fine_tune(run, out, epochs=epochs).metrics
    for name in ("domain_auc", "total_auc", "gauc"):
        typer.echo(f"test {name:11s} {before['test'][name]:.4f} -> {after['test'][name]:.4f}")


if __name__ == "__main__":
    typer.run(main)
