"""The training loop.

Per step: one shuffled mixed-domain batch, loss = weighted mean of BCE + the model's penalty, one step of both
optimisers. Where a model trains several heads each on its own, a row's BCE is the weighted mean of theirs.
Several times an epoch: validation, which decides the best weights and when to stop.
Where several ranks train, each runs a loop of its own on its part of every batch, and the first writes.
Invariants: the loop can be cut after any checkpoint and goes on with the same bits; when `run` returns, the
model holds the best weights; position, weights and what was decided are equal on all ranks.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch

from training.data.dataset import Batch
from training.engine.average import WeightAverage
from training.engine.checkpoint import CheckpointFile
from training.engine.distributed import ALONE, RankGroup
from training.engine.errors import DivergedError, EngineError
from training.engine.hook import LoopHook, PlainSteps
from training.engine.monitor import EarlyStop, monitored_value
from training.engine.optim import OptimiserSet
from training.engine.precision import Precision
from training.engine.seed import random_state, reseed, restore_random_state
from training.engine.steps import LocalSteps, Steps
from training.metrics import Evaluation
from training.models.base import CtrModel
from training.track import RunLog, Watcher

MIN_TRAIN_ROWS = 2
"""A step below this is passed over: batch normalisation has no variance of one row."""


@dataclass
class Position:
    """How far training is; part of every checkpoint.

    Attributes:
        epoch, batch: Epochs finished, and batches finished in the next one.
        step: Optimiser steps.
        rows: Rows trained on.
        train_s, evaluate_s: Seconds spent, over all sittings.
        loss_sum, loss_rows: Sum of row losses and rows since the last logged step.
        finished: Whether training is over.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    rows: int = 0
    train_s: float = 0.0
    evaluate_s: float = 0.0
    loss_sum: float = 0.0
    loss_rows: int = 0
    finished: bool = False


@dataclass(frozen=True)
class Plan:
    """How long to train and how often to look.

    Attributes:
        epochs: Passes over the training rows at most.
        batches_per_epoch: Batches that the reader gives per pass.
        evaluations_per_epoch: Validations per pass, evenly spread, the last at its end.
        checkpoint_every: Batches between checkpoints.
        log_every: Batches between logged training losses.
        precision: Of the forward pass.
    """

    epochs: int
    batches_per_epoch: int
    evaluations_per_epoch: int = 4
    checkpoint_every: int = 500
    log_every: int = 50
    precision: Precision = "fp32"

    @property
    def evaluation_batches(self) -> frozenset[int]:
        """Batch counts within an epoch after which to validate."""
        count = min(self.evaluations_per_epoch, self.batches_per_epoch)
        return frozenset(round(k * self.batches_per_epoch / count) for k in range(1, count + 1))


class TrainLoop:
    """Trains one model to its best validation value."""

    def __init__(
        self,
        *,
        model: CtrModel,
        optimisers: OptimiserSet,
        read: Callable[[int, int], Iterator[Batch]],
        validate: Callable[[], Evaluation],
        stop: EarlyStop,
        plan: Plan,
        checkpoint: CheckpointFile,
        log: RunLog,
        watcher: Watcher,
        device: torch.device,
        average: WeightAverage | None = None,
        hook: LoopHook | None = None,
        steps: Steps | None = None,
        group: RankGroup = ALONE,
    ) -> None:
        """Compose the loop.

        Args:
            model: On `device`.
            optimisers: Over its parameters.
            read: (epoch, first batch) -> the batches of that epoch from there on, the same at every call.
            validate: Measures the model as it is.
            stop: Keeps the best weights.
            plan: How long and how often.
            checkpoint: Where the state goes.
            log: Where events go.
            watcher: Shows progress.
            device: Where to compute.
            average: Averages dense weights for validation and the result, or None.
            hook: Takes part in every step; None trains the model as it is.
            steps: Computes gradients; None is for a process by itself.
            group: The ranks that train; `read`, `validate` and `steps` go with it.
        """
        self.model = model
        self.position = Position()
        self.stop = stop
        self._optimisers = optimisers
        self._read = read
        self._validate = validate
        self._plan = plan
        self._checkpoint = checkpoint
        self._log = log
        self._watcher = watcher
        self._average = average
        self._hook: LoopHook = hook or PlainSteps(model)
        self._steps: Steps = steps or LocalSteps(precision=plan.precision, device=device)
        self._group = group

    def run(self) -> None:
        """Train to the end of the plan or of patience, then put the best weights into the model.

        Raises:
            DivergedError: The loss is no longer finite.
            MonitorError: The watched metric is undefined on the validation rows.
            EngineError: The reader gave another number of batches than the plan says.
        """
        plan, position = self._plan, self.position
        if not position.finished:
            self._watcher.start("train", plan.epochs * plan.batches_per_epoch)
            self._watcher.advance(position.epoch * plan.batches_per_epoch + position.batch)
            while position.epoch < plan.epochs and not self._over:
                self._run_epoch()
            position.finished = True
            self._log.event("finish", step=position.step, epoch=position.epoch, best_step=self.stop.best_step)
            self._save()
        if self.stop.best_state:  # none where no validation took place
            self.model.load_state_dict(self.stop.best_state)
            self._hook.restore_best()

    @property
    def _over(self) -> bool:
        return self.stop.should_stop or self._hook.finished

    def resume(self) -> None:
        """Go on from the checkpoint.

        Raises:
            CheckpointError: It cannot be read or is another run's.
        """
        state = self._checkpoint.load()
        self.model.load_state_dict(state["model"])
        self._optimisers.load_state_dict(state["optimisers"])
        self.stop.load_state_dict(state["stop"])
        self._hook.load_state_dict(state["hook"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        self.position = Position(**state["position"])
        self._log.truncate(state["log_bytes"])
        generators = [state["random"], *state.get("random_of_others", ())]
        if self._group.rank < len(generators):
            restore_random_state(generators[self._group.rank])
        else:  # more ranks than before: draws of their own, not those of their first steps again
            reseed(torch.initial_seed(), self.position.step)
        self._log.event(
            "resume", step=self.position.step, epoch=self.position.epoch, batch=self.position.batch
        )

    def _run_epoch(self) -> None:
        plan, position = self._plan, self.position
        self.model.train()
        mark = time.perf_counter()  # reading counts as training, validation and checkpoints do not
        for batch in self._read(position.epoch, position.batch):
            loss = self._step(batch)
            position.batch += 1
            position.train_s += time.perf_counter() - mark
            self._watcher.advance(note=f"loss {loss:.4f}")
            if position.batch % plan.log_every == 0:
                self._log_loss()
            if position.batch in plan.evaluation_batches and self._hook.judged:
                self._evaluate()
            if self._over:
                self._log.event("early_stop", step=position.step, best_step=self.stop.best_step)
                return
            batches_done = position.epoch * plan.batches_per_epoch + position.batch
            if batches_done % plan.checkpoint_every == 0:
                self._save()
            mark = time.perf_counter()
        if position.batch != plan.batches_per_epoch:
            raise EngineError(
                f"epoch {position.epoch} gave {position.batch} batches, planned were {plan.batches_per_epoch}"
            )
        position.epoch, position.batch = position.epoch + 1, 0

    def _step(self, batch: Batch) -> float:
        """One optimiser step on B rows; gives the loss in nats per row without the penalty."""
        position, rows = self.position, self._steps.num_rows(batch)
        if rows < MIN_TRAIN_ROWS:
            return math.nan
        self._hook.before_step(position.step)
        self._optimisers.zero_grad()
        loss = self._steps.backward(batch, self._hook.forward)
        if not math.isfinite(loss.total):
            raise DivergedError(
                f"the loss is {loss.total} at step {position.step + 1} (epoch {position.epoch}, "
                f"batch {position.batch + 1}); lower optimiser.dense.lr or optimiser.tables.lr, "
                "or lengthen the warm-up"
            )
        self._optimisers.step(position.step)
        if self._average is not None:
            self._average.update()
        position.step += 1
        position.rows += rows
        position.loss_sum += loss.rows * rows
        position.loss_rows += rows
        return loss.rows

    def _log_loss(self) -> None:
        position = self.position
        if position.loss_rows:
            mean = position.loss_sum / position.loss_rows
            self._log.event(
                "train", step=position.step, epoch=self._epochs_done(), rows=position.rows, loss=mean
            )
        position.loss_sum, position.loss_rows = 0.0, 0

    def _evaluate(self) -> None:
        position, started = self.position, time.perf_counter()
        with self._average.applied() if self._average is not None else nullcontext():
            result = self._validate()
            value = monitored_value(result, self.stop.monitor)
            best = self.stop.observe(
                value, state=self.model.state_dict(), step=position.step, epoch=self._epochs_done()
            )
        if best:
            self._hook.keep_best()
        position.evaluate_s += time.perf_counter() - started
        self._log.event(
            "evaluate",
            step=position.step,
            epoch=self._epochs_done(),
            monitor=value,
            best=best,
            total_auc=result.total_auc,
            domain_auc=result.domain_auc,
            gauc=result.gauc,
            logloss=result.logloss,
            ece=result.ece,
        )
        self._watcher.say(
            f"epoch {self._epochs_done():.2f}  step {position.step}  total_auc {result.total_auc:.4f}  "
            f"domain_auc {result.domain_auc:.4f}  logloss {result.logloss:.4f}{'  best' if best else ''}"
        )
        self._watcher.validated(self._epochs_done(), value)

    def _epochs_done(self) -> float:
        return round(self.position.epoch + self.position.batch / self._plan.batches_per_epoch, 4)

    def _save(self) -> None:
        generators = self._group.gather(random_state())
        self._group.on_first(lambda: self._write(generators))

    def _write(self, generators: list[dict[str, Any]]) -> None:
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimisers": self._optimisers.state_dict(),
            "stop": self.stop.state_dict(),
            "hook": self._hook.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
            "position": asdict(self.position),
            "log_bytes": self._log.sync(),
            "random": generators[0],
            "random_of_others": generators[1:],
        }
        self._checkpoint.save(state)
