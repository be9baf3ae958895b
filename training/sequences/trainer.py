"""The loop over a log's train windows, with the best weights by validation.

Invariant: an epoch depends on the seed and its number alone, so that a run that goes on from the state after
some epoch ends with the bits of one that was not interrupted.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from training.engine.optim import OptimiserSet, Schedule, build_optimisers
from training.engine.seed import reseed
from training.models.base import TableGroup
from training.models.syncrec_net import SequenceNet
from training.sequences.batches import SequenceBatch, TrainBatches
from training.sequences.errors import SequenceError
from training.sequences.judge import moved
from training.sequences.objective import Objective, SyncrecObjective
from training.track import Quiet, Watcher


@dataclass
class Best:
    """The best epoch so far.

    Attributes:
        value: Of the watched figure; nan before the first.
        epoch: Counted from 1.
        since: Epochs since then.
        weights: A copy of the net's.
    """

    value: float
    epoch: int
    since: int
    weights: dict[str, Tensor]


class SequenceTrainer:
    """Trains one net.

    Attributes:
        net: The net.
        best: The best epoch so far.
        epoch: Epochs done.
        phi: (D,) mean over the last epoch of single loss - cross loss.
    """

    def __init__(
        self,
        net: SequenceNet,
        objective: Objective,
        batches: TrainBatches,
        *,
        lr: float,
        seed: int,
        device: torch.device,
    ) -> None:
        """Take a net on `device`."""
        self.net = net
        self.best = Best(math.nan, 0, 0, {})
        self.epoch = 0
        self.objective = objective
        self.phi: Tensor = torch.zeros(0)
        self._batches = batches
        self._seed = seed
        self._device = device
        self._optimisers = _optimisers(net, lr=lr)

    def run_epoch(self, watcher: Watcher | None = None) -> float:
        """One pass; gives the mean loss.

        Raises:
            SequenceError: The loss is no longer finite.
        """
        watcher = watcher or Quiet()
        reseed(self._seed, self.epoch)
        self.net.train()
        total, phi = 0.0, []
        for step, batch in enumerate(self._batches.epoch(self.epoch)):
            found = self.objective(self.net, on_device(batch, self._device))
            self._optimisers.zero_grad()
            found.total.backward()  # type: ignore[no-untyped-call]
            self._optimisers.step(0)
            value = float(found.total.detach())
            if not math.isfinite(value):
                raise SequenceError(
                    f"epoch {self.epoch}, batch {step}: the loss is {value}; lower training.lr"
                )
            total += value
            phi.append(found.single - found.cross)
            watcher.advance(1, note=f"loss {value:.4f}")
        self.phi = torch.stack(phi).mean(dim=0)
        self.epoch += 1
        return total / len(self._batches)

    def observe(self, value: float) -> bool:
        """Take in the epoch's validation figure, higher is better; tells whether it is the best so far."""
        if not math.isnan(self.best.value) and value <= self.best.value:
            self.best.since += 1
            return False
        weights = {name: tensor.detach().cpu().clone() for name, tensor in self.net.state_dict().items()}
        self.best = Best(value, self.epoch, 0, weights)
        return True

    def run(
        self,
        *,
        epochs: int,
        patience: int,
        validate: Callable[[], float],
        after: Callable[[float, float], None] = lambda _loss, _value: None,
        watcher: Watcher | None = None,
    ) -> None:
        """Train to the end of `epochs` or of `patience`, then put the best weights back.

        Args:
            epochs: At most so many, those before a resume included.
            patience: Epochs without a new best after which to stop.
            validate: Figure of the net as it is.
            after: Told mean loss and figure of each epoch, when its state may be saved.
            watcher: Shows progress.
        """
        watcher = watcher or Quiet()
        watcher.start("train", epochs * len(self._batches))
        watcher.advance(self.epoch * len(self._batches))
        while self.epoch < epochs and self.best.since < patience:
            loss = self.run_epoch(watcher)
            value = validate()
            self.observe(value)
            after(loss, value)
        self.net.load_state_dict(self.best.weights)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on after the last epoch."""
        return {
            "net": copy.copy(self.net.state_dict()),
            "optimisers": self._optimisers.state_dict(),
            "transfer": self._transfer(),
            "epoch": self.epoch,
            "phi": self.phi,
            "best": vars(self.best),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.net.load_state_dict(state["net"])
        self._optimisers.load_state_dict(state["optimisers"])
        if isinstance(self.objective, SyncrecObjective):
            self.objective.transfer.load_state_dict(state["transfer"])
        self.epoch = state["epoch"]
        self.phi = state["phi"]
        self.best = Best(**state["best"])

    def _transfer(self) -> dict[str, Tensor] | None:
        own = self.objective
        return dict(own.transfer.state_dict()) if isinstance(own, SyncrecObjective) else None


def _optimisers(net: SequenceNet, *, lr: float) -> OptimiserSet:
    return build_optimisers(
        dense=net.dense_parameters(),
        tables=[TableGroup("items", [net.table], 1.0)],
        dense_lr=lr,
        weight_decay=0.0,
        table_method="sparse_adam",
        table_lr=lr,
        schedule=Schedule(kind="constant", warmup_steps=0, total_steps=1),
    )


def on_device(batch: SequenceBatch, device: torch.device) -> SequenceBatch:
    """A batch on a device."""
    if device.type == "cpu":
        return batch
    names = ("item", "negative", "domain", "cross_at", "single_at")
    tensors: dict[str, Any] = {name: getattr(batch, name).to(device) for name in names}
    singles = tuple(moved(rows, device) for rows in batch.singles)
    return replace(batch, mixed=moved(batch.mixed, device), singles=singles, **tensors)
