"""One model from config to run folder.

Builds model, optimisers, loop and calibrator from flat arguments, runs them, and writes the artefacts listed
in `artefacts.py`. Which model on which rows is `fit.py`'s to say. Where several ranks train, the first alone
writes. Invariant: with equal config, data, seed and numbers of threads and ranks on one machine, a run that
was killed and resumed ends with the bits of an unbroken one.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training.config import RunConfig
from training.data.augmented import AugmentedTrain, augment_train
from training.data.dataset import Batch, RowReader
from training.data.prepared import PreparedDataset
from training.engine.artefacts import RunFolder, save_json
from training.engine.average import WeightAverage
from training.engine.checkpoint import CheckpointFile
from training.engine.distributed import ALONE, RankGroup, own_gpu
from training.engine.errors import RunError
from training.engine.evaluate import Predictions
from training.engine.files import write_text
from training.engine.finish import EVALUATED_SPLITS, measured, write_judged
from training.engine.hook import LoopHook
from training.engine.loop import Plan, TrainLoop
from training.engine.monitor import EarlyStop
from training.engine.optim import OptimiserSet, Schedule, build_optimisers
from training.engine.platt import sigmoid
from training.engine.score import predict_split
from training.engine.seed import reseed, seed_everything
from training.engine.shared_hook import HookOnFirst
from training.engine.shared_steps import SharedSteps
from training.metrics import Evaluation
from training.models.base import CtrModel
from training.models.build import build_model
from training.track import NoLog, Quiet, RunLog, Watcher

HookMaker = Callable[[CtrModel, OptimiserSet, RunLog, Watcher], LoopHook]
"""Makes the hook of a run from its model, optimisers, log and watcher."""


@dataclass(frozen=True)
class RunResult:
    """What a finished run is judged by.

    Attributes:
        folder: Where everything lies.
        metrics: The content of `metrics.json`.
    """

    folder: RunFolder
    metrics: dict[str, Any]


def train_model(
    config: RunConfig,
    prepared: PreparedDataset,
    out: Path,
    *,
    resume: bool = False,
    watcher: Watcher | None = None,
    towers: Sequence[int] | None = None,
    trained_on: PreparedDataset | None = None,
    make_hook: HookMaker | None = None,
    identity: Mapping[str, str] | None = None,
    on_trained: Callable[[], Mapping[str, Any]] | None = None,
    group: RankGroup = ALONE,
) -> RunResult:
    """Train, calibrate, evaluate, and fill a run folder.

    Args:
        config: What to train.
        prepared: What to train and judge on.
        out: The run folder.
        resume: Go on from the folder's checkpoint, where there is one.
        watcher: Shows progress.
        towers: (D + 1,) tower of each domain, for models whose towers go by clusters.
        trained_on: Whose train rows to take instead of those of `prepared`.
        make_hook: Makes what takes part in training.
        identity: What else must agree for a checkpoint to be gone on from.
        on_trained: Called where files are written, when the best weights are back; what it gives goes into
            the metrics.
        group: Whose ranks train.

    Raises:
        EngineError: The folder is taken, a split is empty, training diverged, or calibration is impossible.
        SchemaError: The model config names what the schema lacks.
        AugmentError: Copies are to be trained on, and there is no row to copy.
    """
    folder, watcher = RunFolder(out), watcher or Quiet()
    _check_splits(prepared)
    copies = _with_copies(config, trained_on or prepared) if config.augment.in_training else None
    group.on_first(lambda: claim(folder, config, prepared, resume=resume))
    device = settle(config, group)
    whole = run_identity(config, prepared) | dict(identity or {})
    checkpoint = CheckpointFile(folder.checkpoint, identity=whole)
    going_on = group.on_first(lambda: resume and checkpoint.exists())
    # The log is cut to what the checkpoint knows of, once that is read.
    with open_log(folder.log, keep=going_on, group=group) as log:
        loop = build_loop(
            config,
            prepared,
            trained_on=copies or trained_on or prepared,
            epochs=config.training.epochs,
            towers=towers,
            make_hook=make_hook,
            checkpoint=checkpoint,
            log=log,
            watcher=watcher,
            device=device,
            group=group,
        )
        if not going_on:
            log.event("start", name=config.name, world_size=group.world_size, **whole)
        run_loop(loop, going_on=going_on, watcher=watcher)
        _require_judged(loop, out)
        size = config.training.eval_batch_size
        predictions = {
            split: predict_split(
                loop.model, prepared, split, batch_size=size, device=device, watcher=watcher, group=group
            )
            for split in EVALUATED_SPLITS
        }

        def finish() -> dict[str, Any]:
            more = dict(on_trained()) if on_trained is not None else {}
            more |= {} if copies is None else {"augment": copies.summary()}
            return _finish(config, prepared, folder, loop=loop, predictions=predictions, more=more)

        metrics = group.on_first(finish)
        log.event("metrics", **headline(metrics))
    return RunResult(folder, metrics)


def _with_copies(config: RunConfig, trained_on: PreparedDataset) -> AugmentedTrain:
    return augment_train(trained_on, rules=config.augment.rules(), seed=config.training.seed)


def run_loop(loop: TrainLoop, *, going_on: bool, watcher: Watcher) -> None:
    """Train to the end, from the checkpoint on where there is one."""
    if going_on:
        loop.resume()
        watcher.say(f"going on from step {loop.position.step}")
    loop.run()


def _require_judged(loop: TrainLoop, out: Path) -> None:
    if not loop.stop.best_state:
        raise RunError(
            f"{out}: training ended after {loop.position.step} steps before the model could be validated; "
            "lower clustering.warmup_batches or raise training.epochs"
        )


def run_identity(config: RunConfig, prepared: PreparedDataset) -> dict[str, str]:
    """What must agree for a checkpoint to be gone on from."""
    return {"config": config.digest, "data": prepared.data_digest, "schema": prepared.schema.digest}


def open_log(path: Path, *, keep: bool, group: RankGroup) -> RunLog:
    """The log of a run, which the first rank writes."""
    return RunLog(path, keep=keep) if group.is_first else NoLog()


def settle(config: RunConfig, group: RankGroup = ALONE) -> torch.device:
    """Set threads and seeds as a run wants them, equal on all ranks; gives this rank's device."""
    if config.training.num_threads is not None:
        torch.set_num_threads(config.training.num_threads)
    device = pick_device(config.training.device)
    if device.type == "cuda" and not group.is_alone:
        device = torch.device("cuda", own_gpu(group))
    seed_everything(config.training.seed)
    return device


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` is CUDA where there is one.

    Raises:
        RunError: CUDA was asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise RunError("training.device is cuda, but torch sees no CUDA device")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _check_splits(prepared: PreparedDataset) -> None:
    for split in ("train", *EVALUATED_SPLITS):
        if RowReader(prepared, split).num_rows == 0:
            raise RunError(f"{prepared.path}: split '{split}' has no rows; a run needs train, valid and test")


def claim(folder: RunFolder, config: RunConfig, prepared: PreparedDataset, *, resume: bool) -> None:
    """Make the folder this run's own.

    Raises:
        RunError: It is another's.
    """
    if not resume:
        refuse_taken(folder)
    if resume and folder.checkpoint.exists():
        return  # whether it is this run is for the checkpoint's identity to say
    folder.metrics.unlink(missing_ok=True)  # a folder with metrics is a finished run
    write_text(folder.config, config.to_yaml())
    write_text(folder.schema, prepared.schema.model_dump_json(indent=2) + "\n")


def refuse_taken(folder: RunFolder) -> None:
    """Refuse a folder that a run has begun to fill.

    Raises:
        RunError: It is one.
    """
    if folder.config.exists() or folder.checkpoint.exists():
        raise RunError(
            f"{folder.root}: already holds a run; pass --resume to go on, or choose another folder"
        )


def build_loop(
    config: RunConfig,
    prepared: PreparedDataset,
    *,
    trained_on: PreparedDataset,
    epochs: int,
    towers: Sequence[int] | None,
    make_hook: HookMaker | None,
    checkpoint: CheckpointFile,
    log: RunLog,
    watcher: Watcher,
    device: torch.device,
    group: RankGroup = ALONE,
) -> TrainLoop:
    """Compose the loop that trains on the train rows of `trained_on` and validates on those of `prepared`.

    On ranks after the first, random draws go their own way from here on.
    """
    settings = config.training
    model = build_model(config.model, prepared.schema, towers).to(device)
    reader = RowReader(trained_on, "train")
    plan = Plan(
        epochs=epochs,
        batches_per_epoch=reader.num_batches(settings.batch_size),
        evaluations_per_epoch=settings.evaluations_per_epoch,
        checkpoint_every=settings.checkpoint_every_batches,
        log_every=settings.log_every_batches,
        precision=settings.precision,
    )

    def read(epoch: int, start_batch: int) -> Iterator[Batch]:
        return reader.batches(
            settings.batch_size,
            seed=settings.seed,
            epoch=epoch,
            shuffle=True,
            start_batch=start_batch,
            rank=group.rank,
            world_size=group.world_size,
        )

    def validate() -> Evaluation:
        size = settings.eval_batch_size
        rows = predict_split(model, prepared, "valid", batch_size=size, device=device, group=group)
        return group.on_first(lambda: measured(rows, sigmoid(rows.logit), prepared))

    decay = settings.ema_decay
    total_steps = max(epochs, settings.epochs) * plan.batches_per_epoch
    optimisers = _optimisers(config, model, total_steps=total_steps)
    hook = None if make_hook is None else make_hook(model, optimisers, log, watcher)
    steps = None
    if not group.is_alone:
        hook = None if hook is None else HookOnFirst(hook, model, group=group)
        steps = SharedSteps(model, group=group, precision=settings.precision, device=device)
    if not group.is_first:
        reseed(settings.seed, group.rank)
    return TrainLoop(
        model=model,
        optimisers=optimisers,
        read=read,
        validate=validate,
        stop=EarlyStop(monitor=settings.monitor, patience=settings.patience),
        plan=plan,
        checkpoint=checkpoint,
        log=log,
        watcher=watcher,
        device=device,
        average=None if decay is None else WeightAverage(model.dense_parameters(), decay=decay),
        hook=hook,
        steps=steps,
        group=group,
    )


def _optimisers(config: RunConfig, model: CtrModel, *, total_steps: int) -> OptimiserSet:
    settings = config.optimiser
    return build_optimisers(
        dense=model.dense_parameters(),
        tables=model.tables(),
        dense_lr=settings.dense.lr,
        weight_decay=settings.dense.weight_decay,
        table_method=settings.tables.type,
        table_lr=settings.tables.lr,
        schedule=Schedule(
            kind=settings.schedule.type,
            warmup_steps=settings.schedule.warmup_steps,
            total_steps=total_steps,
            final_ratio=settings.schedule.final_ratio,
        ),
    )


def _finish(
    config: RunConfig,
    prepared: PreparedDataset,
    folder: RunFolder,
    *,
    loop: TrainLoop,
    predictions: Mapping[str, Predictions],
    more: Mapping[str, Any],
) -> dict[str, Any]:
    """Write everything that follows from the best weights; gives the content of `metrics.json`."""
    started = time.perf_counter()
    metrics = write_judged(config, prepared, folder, model=loop.model, predictions=predictions)
    position = loop.position
    metrics |= {
        "best_epoch": loop.stop.best_epoch,
        "best_step": loop.stop.best_step,
        "steps": position.step,
        "seconds": round(position.train_s + position.evaluate_s + time.perf_counter() - started, 3),
        "train_s": round(position.train_s, 3),
        "rows_per_s": round(position.rows / position.train_s, 1) if position.train_s else 0.0,
    }
    metrics |= more
    save_json(folder.metrics, metrics)
    return metrics


def headline(metrics: dict[str, Any]) -> dict[str, float]:
    """The few figures that the log has of a finished run."""
    names = ("total_auc", "domain_auc", "gauc", "logloss", "ece")
    return {f"{split}_{name}": metrics[split][name] for split in EVALUATED_SPLITS for name in names}
