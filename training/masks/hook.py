"""Masks as part of training: warm-up with every edge, then updates of the masks.

`MaskSteps` is a hook of the training loop. Masks are buffers of the model, so checkpoints and best weights
hold them; the hook remembers only what it did. Invariants: an update changes nothing but masks; a run that
goes on from a checkpoint is exact, because an update depends on weights, masks, its number and the seed.

Letters: D domains, n searched ones, Z candidates of each, X edges.

Source: AREAD, arXiv 2412.11905, section HEMP.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch

from training.masks.config import MaskMethod
from training.masks.schedule import SearchSchedule, UpdateSettings
from training.masks.search import FoundMasks, aread_of
from training.models.base import CtrModel, ModelOutput, TensorBatch
from training.models.mask import BoolArray, PyramidMask, random_mask
from training.track import RunLog, Watcher

_STREAM = 6


class Search(Protocol):
    """Finds masks; leaves everything as it is."""

    def __call__(
        self,
        update: int,
        settings: UpdateSettings,
        domains: Sequence[int],
        current: Mapping[int, PyramidMask],
    ) -> FoundMasks:
        """Search masks of some domains, see `MaskSearch`."""
        ...


@dataclass(frozen=True)
class MaskUpdate:
    """What an update did.

    Attributes:
        update: Its number, from 1.
        step: Optimiser steps done before it.
        seconds: It took.
        num_candidates: Z; 0 where nothing was searched.
        target_density: Wanted.
        density: Mean over the searched domains.
        changed_ratio: Mean share of edges that differ from the masks before.
        score: Mean score of the chosen candidates, nats per row; None where nothing was searched.
        spread: Mean gap between the worst and the best candidate of a domain, nats per row, or None.
    """

    update: int
    step: int
    seconds: float
    num_candidates: int
    target_density: float
    density: float
    changed_ratio: float
    score: float | None
    spread: float | None


class MaskSteps:
    """Trains an aread model while its masks are found."""

    def __init__(
        self,
        model: CtrModel,
        *,
        method: MaskMethod,
        search: Search | None,
        schedule: SearchSchedule,
        domains: Sequence[int],
        start: Mapping[int, PyramidMask],
        warmup_batches: int,
        update_interval: int,
        max_updates: int | None,
        last_step: int,
        seed: int,
        log: RunLog,
        watcher: Watcher,
    ) -> None:
        """Start before the warm-up.

        Args:
            model: Its ranker is an `Aread`; its masks do not count from here on.
            method: What an update does.
            search: Of method `search`.
            schedule: Settings by the number of the update.
            domains: (n,) domains that get masks; the others keep every edge.
            start: Masks that domains have before the first update; may be empty.
            warmup_batches: Steps before the first update.
            update_interval: Steps between updates.
            max_updates: Updates at most; None for no limit.
            last_step: No update but the first comes at a later step.
            seed: Of random masks.
            log: Told of every update.
            watcher: Told of every update.

        Raises:
            MaskSearchError: The model has no masks.
        """
        self._model, self._ranker = model, aread_of(model)
        self._method, self._search, self._schedule = method, search, schedule
        self._domains, self._start = tuple(domains), dict(start)
        self._warmup, self._interval = warmup_batches, update_interval
        self._max_updates = max_updates if method == "search" else 1
        self._last_step, self._seed = last_step, seed
        self._log, self._watcher = log, watcher
        self.history: list[MaskUpdate] = []
        self.masks_over_updates: list[BoolArray] = []
        self.best_update = 0
        self._ranker.use_masks(wanted=False)

    judged = True
    finished = False

    def due(self, step: int) -> bool:
        """Whether the masks are to be updated."""
        if not self.history:
            return step >= self._warmup
        over = step > self._last_step or len(self.history) == self._max_updates
        return not over and (step - self._warmup) % self._interval == 0

    def before_step(self, step: int) -> None:
        """Update the masks where that is due."""
        if self.due(step):
            self._update(step)

    def forward(self, inputs: TensorBatch) -> ModelOutput:
        """The model's own output: the mean of its heads in the warm-up, then each head by itself."""
        output: ModelOutput = self._model(inputs)
        return output

    def keep_best(self) -> None:
        """Remember which update the best weights were trained after."""
        self.best_update = len(self.history)

    def restore_best(self) -> None:
        """Nothing: masks came back with the weights."""

    def state_dict(self) -> dict[str, Any]:
        """What updates did."""
        made = np.stack(self.masks_over_updates) if self.masks_over_updates else np.zeros((0, 0, 0), bool)
        return {
            "history": [asdict(record) for record in self.history],
            "masks": torch.from_numpy(made),
            "best_update": self.best_update,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`; whether masks count came back with the weights."""
        self.history = [MaskUpdate(**record) for record in state["history"]]
        self.masks_over_updates = list(state["masks"].cpu().numpy())
        self.best_update = state["best_update"]

    @property
    def domains(self) -> tuple[int, ...]:
        """Domains that get masks."""
        return self._domains

    def _update(self, step: int) -> None:
        started = time.perf_counter()
        update = len(self.history) + 1
        settings = self._schedule.at(update)
        masks = self._ranker.masks
        before = np.stack([masks[d].bits for d in self._domains])
        found: FoundMasks | None = None
        if self._search is not None and self._method == "search":
            current = {d: masks[d] for d in self._domains} if self.history else self._start
            found = self._search(update, settings, self._domains, current)
            self._ranker.set_masks(found.masks)
        elif self._method == "random":
            self._ranker.set_masks(self._random_masks())
        self._ranker.use_masks(wanted=True)
        every = np.stack([mask.bits for mask in self._ranker.masks])
        after = every[list(self._domains)]
        self.masks_over_updates.append(every)
        self.history.append(
            MaskUpdate(
                update=update,
                step=step,
                seconds=round(time.perf_counter() - started, 3),
                num_candidates=0 if found is None else settings.num_candidates,
                target_density=settings.target_density if self._method == "search" else self._wanted,
                density=float(after.mean()),
                changed_ratio=float((after != before).mean()),
                score=None if found is None else float(found.scores.min(axis=1).mean()),
                spread=None if found is None else float(np.ptp(found.scores, axis=1).mean()),
            )
        )
        self._tell(self.history[-1], after)

    @property
    def _wanted(self) -> float:
        return self._schedule.target_density if self._method == "random" else 1.0

    def _random_masks(self) -> dict[int, PyramidMask]:
        return {
            d: random_mask(self._ranker.shape, self._wanted, np.random.default_rng([self._seed, _STREAM, d]))
            for d in self._domains
        }

    def _tell(self, record: MaskUpdate, masks: BoolArray) -> None:
        self._log.event("masks", **asdict(record))
        used = [PyramidMask(self._ranker.shape, bits).num_used for bits in masks]
        experts = "/".join(f"{count:.1f}" for count in np.mean(used, axis=0))
        self._watcher.say(
            f"step {record.step}  masks {record.update}  density {record.density:.2f}  experts {experts}  "
            f"changed {record.changed_ratio:.2f}  {record.seconds:.1f} s"
        )
