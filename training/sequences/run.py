"""A sequence run: train a net on an event log, judge it by domain, and fill a run folder.

    config.yaml          resolved config
    log.jsonl            one event a line
    checkpoint/last.pt   everything needed to go on
    model.pt             best weights with the items and domains they are of
    metrics.json         figures by view and domain, on validation and test
    report.html          the same for people

Invariants: the choice of epoch and of the domains served by their single view reads validation events alone;
`metrics.json` comes last, so a folder that has it is a finished run.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError

from training.config import load_tree
from training.engine.artefacts import RunFolder, save_json
from training.engine.checkpoint import CheckpointFile, load_tensors, weights_digest
from training.engine.files import write_atomically, write_text
from training.engine.run import pick_device, refuse_taken
from training.engine.seed import seed_everything
from training.models.syncrec_net import SequenceNet
from training.sequences.batches import TrainBatches
from training.sequences.build import build_net, build_objective
from training.sequences.config import (
    EncoderConfig,
    SequenceConfig,
    SequenceEncoderConfig,
    SyncrecEncoderConfig,
)
from training.sequences.errors import SequenceError
from training.sequences.judge import (
    Candidates,
    Judged,
    draw_candidates,
    figures,
    judge,
)
from training.sequences.log import EventLog
from training.sequences.objective import SyncrecObjective
from training.sequences.switch import chosen_limit, switches, transfer
from training.sequences.trainer import SequenceTrainer
from training.track import Quiet, RunLog, Watcher

_ENCODER: TypeAdapter[SequenceEncoderConfig] = TypeAdapter(SequenceEncoderConfig)
WATCHED = "ndcg_10"
"""Figure that epochs are chosen by: its mean over domains, each by the better of its views."""


@dataclass(frozen=True)
class SequenceModel:
    """A trained net with what its rows and tasks are of.

    Attributes:
        net: In evaluation mode.
        config: Its sizes.
        items: V ids; item i has row FIRST_ID + i.
        domains: D names.
        use_single: (D,) whether a domain is served by its single view.
        trained_until: Latest time of a train event, in the log's unit.
    """

    net: SequenceNet
    config: EncoderConfig
    items: tuple[str, ...]
    domains: tuple[str, ...]
    use_single: tuple[bool, ...]
    trained_until: int


def train_sequences(
    config: SequenceConfig,
    log: EventLog,
    out: Path,
    *,
    resume: bool = False,
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """Train, judge, and fill a run folder; gives the content of `metrics.json`.

    Args:
        config: What to train.
        log: What to train on.
        out: The run folder.
        resume: Go on from the folder's checkpoint, where there is one.
        watcher: Shows progress.

    Raises:
        RunError: The folder holds a run and `resume` is not set.
        SequenceError: Nothing is held out, a domain has too few items, or training diverged.
        CheckpointError: The checkpoint is of another run.
    """
    folder, watcher = RunFolder(out), watcher or Quiet()
    started = time.perf_counter()
    candidates = {split: _candidates(config, log, split) for split in ("valid", "test")}
    if not resume:
        refuse_taken(folder)
    checkpoint = CheckpointFile(folder.checkpoint, identity={"config": config.digest, "data": log.digest})
    going_on = resume and checkpoint.exists()
    if not going_on:
        folder.metrics.unlink(missing_ok=True)
        write_text(folder.config, config.to_yaml())
    trainer = make_trainer(config, log)
    with RunLog(folder.log, keep=going_on) as events:
        if going_on:
            state = checkpoint.load()
            trainer.load_state_dict(state["trainer"])
            events.truncate(state["log"])
            watcher.say(f"going on after epoch {trainer.epoch}")
        else:
            events.event("start", name=config.name, **checkpoint.identity)

        def validate() -> float:
            return watched(
                judge(
                    trainer.net,
                    log,
                    candidates["valid"],
                    max_len=config.model.max_len,
                    loss=config.training.loss,
                )
            )

        def after(loss: float, value: float) -> None:
            events.event("epoch", epoch=trainer.epoch, loss=loss, valid=value, phi=trainer.phi.tolist())
            watcher.say(f"epoch {trainer.epoch}: loss {loss:.4f}, validation {WATCHED} {value:.4f}")
            checkpoint.save({"trainer": trainer.state_dict(), "log": events.sync()})

        settings = config.training
        trainer.run(
            epochs=settings.epochs,
            patience=settings.patience,
            validate=validate,
            after=after,
            watcher=watcher,
        )
        metrics = _finish(config, log, folder, trainer, candidates)
        metrics["seconds"] = round(time.perf_counter() - started, 3)
        save_json(folder.metrics, metrics)
        events.event("finish", best_epoch=trainer.best.epoch)
    return metrics


def make_trainer(config: SequenceConfig, log: EventLog) -> SequenceTrainer:
    """A trainer with fresh weights, and the process's threads and seeds as the run wants them."""
    settings = config.training
    if settings.num_threads is not None:
        torch.set_num_threads(settings.num_threads)
    device = pick_device(settings.device)
    seed_everything(settings.seed)
    model = config.model
    net = build_net(model, num_rows=log.num_rows, num_domains=log.num_domains).to(device)
    batches = TrainBatches(
        log,
        max_len=model.max_len,
        batch_size=settings.batch_size,
        seed=settings.seed,
        single_view=model.single_view if isinstance(model, SyncrecEncoderConfig) else "compact",
    )
    objective = build_objective(config, num_domains=log.num_domains)
    if isinstance(objective, SyncrecObjective):
        objective.transfer.to(device)
    return SequenceTrainer(net, objective, batches, lr=settings.lr, seed=settings.seed, device=device)


def _candidates(config: SequenceConfig, log: EventLog, split: str) -> tuple[Candidates | None, ...]:
    events = log.held_out(split)
    if not len(events):
        raise SequenceError(
            f"no event is held out for {split}: no user has more than {log.num_valid + log.num_test} events"
        )
    seed = 2 * config.ranking.seed + (split == "test")
    return draw_candidates(log, events, negatives=config.ranking.negatives, seed=seed)


def watched(judged: Judged) -> float:
    """Mean over domains of the better view's figure."""
    best: list[float] = []
    for views in zip(*judged.values(), strict=True):
        found = [float(v.figures().get(WATCHED, np.nan)) for v in views if v is not None and len(v.ranks)]
        best += [max(found)] if found else []
    if not best:
        raise SequenceError("no held-out validation event is of an item that training has met")
    return float(np.mean(best))


def _finish(
    config: SequenceConfig,
    log: EventLog,
    folder: RunFolder,
    trainer: SequenceTrainer,
    candidates: Mapping[str, tuple[Candidates | None, ...]],
) -> dict[str, Any]:
    loss = config.training.loss
    judged = {
        split: judge(trainer.net, log, own, max_len=config.model.max_len, loss=loss)
        for split, own in candidates.items()
    }
    found = transfer(judged["valid"])
    model = config.model
    wanted = model.switch_deviations if isinstance(model, SyncrecEncoderConfig) else None
    limit = chosen_limit(wanted, judged["valid"], seed=config.training.seed)
    use_single = switches(limit, found, num_domains=log.num_domains)
    until = int(log.time[log.train_events].max())
    digest = _save(folder.model, trainer, model, log, use_single=use_single, until=until)
    metrics: dict[str, Any] = {split: figures(own, log.domains, use_single) for split, own in judged.items()}
    named = dict(zip(log.domains, found, strict=True)) if found is not None else {}
    metrics |= {
        "name": config.name,
        "model": model.type,
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": config.training.seed,
        "epochs": trainer.epoch,
        "best_epoch": trainer.best.epoch,
        "trained_until": until,
        "switch_deviations": limit,
        "use_single": dict(zip(log.domains, use_single, strict=True)),
        "phi": {name: None if one is None else [one.phi, one.error] for name, one in named.items()},
        "digests": {"config": config.digest, "data": log.digest, "weights": digest},
    }
    if isinstance(trainer.objective, SyncrecObjective):
        state = trainer.objective.transfer
        metrics["weights"] = dict(zip(log.domains, state.weights().tolist(), strict=True))
        metrics["smoothed_phi"] = dict(zip(log.domains, state.state.tolist(), strict=True))
    return metrics


def _save(
    path: Path,
    trainer: SequenceTrainer,
    config: EncoderConfig,
    log: EventLog,
    *,
    use_single: tuple[bool, ...],
    until: int,
) -> str:
    state = {name: tensor.detach().cpu() for name, tensor in trainer.net.state_dict().items()}
    digest = weights_digest(state)
    content = {
        "state_dict": state,
        "sequence_model": config.model_dump(mode="json"),
        "items": list(log.items),
        "domains": list(log.domains),
        "use_single": list(use_single),
        "trained_until": until,
        "weights_digest": digest,
    }
    write_atomically(path, lambda part: torch.save(content, part))
    return digest


def trained_until_ms(run: Path, model: SequenceModel) -> int | None:
    """When the last train event of a run was, ms since 1970; None where events have no clock time."""
    config = load_tree(RunFolder(run).config, (), SequenceConfig)
    unit = config.events.time_unit
    if unit is None or config.events.as_lists:
        return None
    # A second in the log lasts until its last millisecond.
    return 1000 * model.trained_until + 999 if unit == "s" else model.trained_until


def load_sequence_model(run: Path) -> SequenceModel:
    """The trained net of a finished run, on the CPU and in evaluation mode.

    Raises:
        SequenceError: The folder holds no finished sequence run.
        CheckpointError: Its model file is missing or damaged.
    """
    folder = RunFolder(run)
    if not folder.metrics.is_file():
        raise SequenceError(f"{run}: not a finished sequence run, metrics.json is missing")
    content = load_tensors(folder.model)
    try:
        config = _ENCODER.validate_python(content["sequence_model"])
        items, domains = tuple(content["items"]), tuple(content["domains"])
        net = build_net(config, num_rows=2 + len(items), num_domains=len(domains))
        net.load_state_dict(content["state_dict"])
        use_single, until = tuple(content["use_single"]), int(content["trained_until"])
    except (KeyError, ValidationError, RuntimeError) as error:
        raise SequenceError(f"{folder.model}: not a sequence model of this version: {error}") from error
    return SequenceModel(net.eval(), config, items, domains, use_single, until)
