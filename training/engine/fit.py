"""A training run: which models on which rows, by the version of the clustering part of its config.

    none         one model on all rows
    end_to_end   one model whose domains are re-clustered while it trains
    two_stage    clusters first, then one model with a tower per cluster
    split        clusters first, then one model per cluster (`split.py`)

Invariant: whatever the version, a run that was killed and goes on ends with the bits of an unbroken one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from training.clustering.assignment import ClusterAssignment
from training.clustering.cdc import CdcSteps
from training.clustering.cluster_run import (
    Job,
    LookaheadMaker,
    cdc_steps,
    choose_clusters,
    find_clusters,
    first_towers,
    model_lookahead,
    save_clusters,
)
from training.config import RunConfig, load_config
from training.data.prepared import PreparedDataset
from training.engine.artefacts import RunFolder, load_model
from training.engine.calibrate import Calibrator
from training.engine.companion import companion
from training.engine.distributed import ALONE, RankGroup
from training.engine.errors import RunError
from training.engine.finish import EVALUATED_SPLITS, measured
from training.engine.optim import OptimiserSet
from training.engine.run import (
    RunResult,
    pick_device,
    refuse_taken,
    train_model,
)
from training.engine.score import predict_split
from training.engine.split import cluster_rows, evaluate_split, train_split
from training.masks.mask_run import check_masks
from training.models.base import CtrModel
from training.models.config import AreadConfig, SyncrecConfig, wants_clusters
from training.track import Quiet, RunLog, Watcher

__all__ = [
    "EVALUATED_SPLITS",
    "RunResult",
    "evaluate_run",
    "load_model",
    "pick_device",
    "predict_split",
    "run_training",
    "tower_table",
]


def run_training(
    config: RunConfig,
    prepared: PreparedDataset,
    out: Path,
    *,
    resume: bool = False,
    watcher: Watcher | None = None,
    make_lookahead: LookaheadMaker = model_lookahead,
    group: RankGroup = ALONE,
) -> RunResult:
    """Train, calibrate, evaluate, and fill a run folder.

    Args:
        config: What to train.
        prepared: What to train on.
        out: The run folder.
        resume: Go on from the folder's checkpoint, where there is one.
        watcher: Shows progress.
        make_lookahead: How effects between domains are measured, where clusters are found.
        group: Whose ranks train; all call this with equal arguments.

    Raises:
        RunError: The folder holds a run and `resume` is not set, a split is empty, or the model's towers do
            not go with the clustering version.
        EngineError: Training diverged, a checkpoint is unusable, or calibration is impossible.
        ClusteringError: Clusters cannot be found.
        SchemaError: The model config names what the schema lacks.
    """
    job = Job(config, prepared, make_lookahead, resume=resume, watcher=watcher or Quiet(), group=group)
    version = config.clustering.version
    _check_trained_here(config)
    _check_towers(config)
    check_masks(config)
    if not resume:
        group.on_first(lambda: refuse_taken(RunFolder(out)))
    if version == "none":
        return _train_one(job, out)
    if version == "end_to_end":
        return _end_to_end(job, out)
    assignment = find_clusters(job, RunFolder(out).clusters)
    if version == "split":
        return train_split(config, prepared, out, assignment, resume=resume, watcher=job.watcher, group=group)
    return _train_one(job, out, assignment)


def _train_one(job: Job, out: Path, assignment: ClusterAssignment | None = None) -> RunResult:
    """One model on all rows, with what its method does beside; with clusters, it knows those of domains."""
    config, prepared = job.config, job.prepared
    towers = None if assignment is None else tower_table(assignment, prepared.schema.domains)
    beside = companion(config, prepared, out, clusters=towers)

    def on_trained() -> Mapping[str, Any]:
        told = {} if beside is None else dict(beside.on_trained())
        return told if assignment is None else told | {"clustering": summary(config, assignment)}

    return train_model(
        config,
        prepared,
        out,
        resume=job.resume,
        watcher=job.watcher,
        towers=towers,
        make_hook=None if beside is None else beside.make_hook,
        identity=None if assignment is None else {"clusters": assignment.digest},
        on_trained=on_trained,
        group=job.group,
    )


def tower_table(assignment: ClusterAssignment, domains: tuple[str, ...]) -> list[int]:
    """(D + 1,) tower of each domain; that of the default cluster for a domain not listed and the unknown."""
    return [*(assignment.cluster_of(name) for name in domains), assignment.default_cluster]


def summary(config: RunConfig, assignment: ClusterAssignment) -> dict[str, Any]:
    """What `metrics.json` says of the clusters."""
    return {
        "version": config.clustering.version,
        "method": assignment.method,
        "num_clusters": assignment.num_clusters,
        "num_updates": assignment.num_updates,
        "sizes": [len(names) for names in assignment.targets],
        "assignment": assignment.digest,
    }


def evaluate_run(run: Path, split: str, *, watcher: Watcher | None = None) -> dict[str, Any]:
    """Score a split with a finished run's model and calibrator.

    Args:
        run: A run folder.
        split: `valid` or `test`.
        watcher: Shows progress.

    Returns:
        The same record as `metrics.json` has under the split.

    Raises:
        RunError: The folder holds no finished run, or its data has changed.
    """
    folder = RunFolder(run)
    folder.require_finished()
    prepared = PreparedDataset.open(folder.prepared)
    config = load_config(folder.config)
    size = config.training.eval_batch_size
    if folder.parts:
        return evaluate_split(folder, prepared, split, batch_size=size, watcher=watcher)
    if folder.cluster.is_file():
        prepared = cluster_rows(folder, prepared)
    model = load_model(folder.model, prepared.schema)
    device = torch.device("cpu")
    rows = predict_split(model, prepared, split, batch_size=size, device=device, watcher=watcher)
    scores = Calibrator.load(folder.calibration).apply(rows.logit, rows.domain)
    return dict(measured(rows, scores, prepared).to_json_dict())


def _check_trained_here(config: RunConfig) -> None:
    if isinstance(config.model, SyncrecConfig):
        raise RunError(
            "model.type is syncrec, which does not learn from impressions: train it by "
            "`ctr-train sequence fit`, then fit its click probabilities by `ctr-train sequence calibrate`"
        )


def _check_towers(config: RunConfig) -> None:
    version = config.clustering.version
    by_cluster = wants_clusters(config.model)
    if version == "none" and by_cluster:
        named = "group is cluster" if isinstance(config.model, AreadConfig) else "towers is clusters"
        raise RunError(
            f"model.{named}, but clustering.version is none; set it to end_to_end, two_stage or split"
        )
    if version in ("end_to_end", "two_stage") and not by_cluster:
        raise RunError(f"clustering.version {version} needs a model with towers: clusters")
    if version == "end_to_end" and isinstance(config.model, AreadConfig):
        raise RunError("clustering.version end_to_end needs a model with towers; for aread use two_stage")


def _end_to_end(job: Job, out: Path) -> RunResult:
    config, prepared = job.config, job.prepared
    folder = RunFolder(out)
    rows = job.rows()
    num_clusters = choose_clusters(job, folder.clusters, rows)
    make = cdc_steps(job, rows, num_clusters)
    made: list[CdcSteps] = []

    def make_hook(model: CtrModel, optimisers: OptimiserSet, log: RunLog, watcher: Watcher) -> CdcSteps:
        made.append(make(model, optimisers, log, watcher))
        return made[-1]

    def on_trained() -> Mapping[str, Any]:
        assignment = save_clusters(job, folder.clusters, rows, made[-1].state)
        return {"clustering": summary(config, assignment)}

    return train_model(
        config,
        prepared,
        out,
        resume=job.resume,
        watcher=job.watcher,
        towers=first_towers(prepared.schema.num_domains, num_clusters),
        trained_on=job.trained_on(rows),
        make_hook=make_hook,
        identity={"num_clusters": str(num_clusters)},
        on_trained=on_trained,
        group=job.group,
    )
