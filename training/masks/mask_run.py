"""Masks in a training run: what the loop's hook is made of, and what is left behind.

Reads the `masks` and `augment` parts of a config and the train rows; writes `masks/masks.npz` into the run
folder and gives the `masks` part of `metrics.json`. Invariant: candidates are scored on real rows only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.config import RunConfig
from training.data.dataset import RowReader
from training.data.prepared import PreparedDataset
from training.engine.augmented_rows import AugmentedRows
from training.engine.errors import RunError
from training.engine.optim import OptimiserSet
from training.masks.archive import save_masks
from training.masks.errors import MaskSearchError
from training.masks.hook import MaskSteps
from training.masks.rows import RowSource, TrainRows
from training.masks.search import MaskSearch, aread_of
from training.models.base import CtrModel
from training.models.config import AreadConfig
from training.models.mask import PyramidMask, PyramidShape, random_mask
from training.track import RunLog, Watcher

MASKS_FOLDER = "masks"

POOL_UPDATES = 4
"""Rows of a domain kept in memory, in updates' worth."""

_STREAM = 7


class MaskRun:
    """Makes the hook of one model and keeps what it found."""

    def __init__(
        self,
        config: RunConfig,
        prepared: PreparedDataset,
        out: Path,
        *,
        clusters: Sequence[int] | None = None,
    ) -> None:
        """Check that masks can be found.

        Args:
            config: Of the run; `masks.enabled` is set.
            prepared: Whose train rows to read.
            out: The run folder.
            clusters: (D + 1,) cluster of each domain, where there are clusters.

        Raises:
            MaskSearchError: No domain has enough rows.
        """
        self._config, self._prepared, self._out = config, prepared, out
        self._clusters = clusters
        rows = prepared.domain_rows["train"]
        names = prepared.schema.domains
        least = config.masks.min_rows
        self._domains = tuple(d for d, name in enumerate(names) if rows.get(name, 0) >= least)
        if not self._domains:
            raise MaskSearchError(
                f"no domain has masks.min_rows {least} train rows; the largest has "
                f"{max(rows.values(), default=0)}"
            )
        self._made: MaskSteps | None = None
        self._model: CtrModel | None = None

    def make_hook(
        self,
        model: CtrModel,
        optimisers: OptimiserSet,  # noqa: ARG002 (the search has optimisers of its own)
        log: RunLog,
        watcher: Watcher,
    ) -> MaskSteps:
        """The hook that finds masks of `model`."""
        config, settings = self._config, self._config.masks
        batches = RowReader(self._prepared, "train").num_batches(config.training.batch_size)
        total = config.training.epochs * batches
        self._model = model
        self._made = MaskSteps(
            model,
            method=settings.method,
            search=self._search(model, watcher) if settings.searches else None,
            schedule=settings.schedule,
            domains=self._domains,
            start=self._start(aread_of(model).shape),
            warmup_batches=settings.warmup_batches,
            update_interval=settings.interval_steps(config.training.batch_size),
            max_updates=settings.max_updates,
            last_step=int(total * (1.0 - settings.settle_ratio)),
            seed=config.training.seed,
            log=log,
            watcher=watcher,
        )
        return self._made

    def on_trained(self) -> Mapping[str, Any]:
        """Write the masks of the best weights; gives what `metrics.json` says of them.

        Raises:
            MaskSearchError: No hook was made.
        """
        if self._made is None or self._model is None:
            raise MaskSearchError("no model was trained, so there are no masks to save")
        names = self._prepared.schema.domains
        ranker = aread_of(self._model)
        save_masks(
            self._out / MASKS_FOLDER,
            shape=ranker.shape,
            domains=names,
            searched=self._made.domains,
            masks=ranker.masks,
            history=self._made.masks_over_updates,
        )
        history = self._made.history
        return {
            "masks": {
                "method": self._config.masks.method,
                "mode": self._config.masks.mode,
                "levels": list(ranker.shape.levels),
                "num_edges": ranker.shape.num_edges,
                "num_updates": len(history),
                "best_update": self._made.best_update,
                "steps": [record.step for record in history],
                "seconds": [record.seconds for record in history],
                "density": [record.density for record in history],
                "changed_ratio": [record.changed_ratio for record in history],
                "domains": {
                    name: {"density": mask.density, "experts": list(mask.num_used)}
                    for name, mask in zip(names, ranker.masks, strict=False)
                },
            }
        }

    def _search(self, model: CtrModel, watcher: Watcher) -> MaskSearch:
        config, settings = self._config, self._config.masks
        watcher.say("reading rows for the mask search")
        rules = settings.tuning
        wanted = max(rules.steps, rules.eval_batches) * rules.rows * POOL_UPDATES
        real = TrainRows(self._prepared, most_rows=wanted, seed=config.training.seed)
        tuning: RowSource = real
        if config.augment.ratio > 0:
            tuning = AugmentedRows(self._prepared, rules=config.augment.rules(), seed=config.training.seed)
        return MaskSearch(
            model=model, tuning=tuning, real=real, rules=rules, mode=settings.mode, seed=config.training.seed
        )

    def _start(self, shape: PyramidShape) -> dict[int, PyramidMask]:
        """One random mask per cluster, where masks start by clusters; else none."""
        settings, seed = self._config.masks, self._config.training.seed
        if settings.start != "clusters" or self._clusters is None:
            return {}
        density = settings.schedule.at(1).active
        by_cluster = {
            c: random_mask(shape, density, np.random.default_rng([seed, _STREAM, c]))
            for c in set(self._clusters)
        }
        return {d: by_cluster[self._clusters[d]] for d in self._domains}


def check_masks(config: RunConfig) -> None:
    """Refuse a `masks` part that the rest of the config cannot go with.

    Raises:
        RunError: It cannot.
    """
    if not config.masks.enabled:
        return
    if not isinstance(config.model, AreadConfig):
        raise RunError(f"masks.enabled needs a model of type aread; model.type is {config.model.type}")
    if config.masks.start == "clusters" and config.clustering.version != "two_stage":
        raise RunError(
            f"masks.start clusters needs clustering.version two_stage; it is {config.clustering.version}"
        )
