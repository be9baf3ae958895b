"""What a method does beside the loop: masks of AREAD, routing of CESAA.

Invariant: a run has one companion at most, by its config.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from training.config import RunConfig
from training.data.prepared import PreparedDataset
from training.engine.hook import LoopHook
from training.engine.optim import OptimiserSet
from training.masks.mask_run import MaskRun
from training.models.base import CtrModel
from training.models.config import CesaaConfig
from training.routing.routing_run import RoutingRun
from training.track import RunLog, Watcher


class Companion(Protocol):
    """Takes part in a training run."""

    def make_hook(self, model: CtrModel, optimisers: OptimiserSet, log: RunLog, watcher: Watcher) -> LoopHook:
        """The hook of the loop that trains `model`."""
        ...

    def on_trained(self) -> Mapping[str, Any]:
        """Look at the best weights; gives what `metrics.json` says of them."""
        ...


def companion(
    config: RunConfig, prepared: PreparedDataset, out: Path, *, clusters: Sequence[int] | None = None
) -> Companion | None:
    """The companion of a run, or None.

    Args:
        config: Of the run.
        prepared: What it is trained and judged on.
        out: Its folder.
        clusters: (D + 1,) cluster of each domain, where there are clusters.
    """
    if config.masks.enabled:
        return MaskRun(config, prepared, out, clusters=clusters)
    return RoutingRun(config, prepared) if isinstance(config.model, CesaaConfig) else None
