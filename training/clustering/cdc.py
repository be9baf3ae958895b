"""CDC as part of training: warm-up with the mean of the towers, then updates of the clusters.

`CdcSteps` is a hook of the training loop. Reads the model through a lookahead, writes its table from domain
to tower. Invariants: no update touches a weight, an optimiser or the random state; the clusters that training
ends with are those of the best weights; a run that goes on from a checkpoint is exact.
"""

from __future__ import annotations

import time
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn import functional

from training.clustering.affinity import LookaheadGram, LookaheadLosses, LookaheadPlan
from training.clustering.archive import state_bytes, state_from_bytes
from training.clustering.errors import RulesError
from training.clustering.lookahead_model import LabelledRows, Serving
from training.clustering.measured import RowPool
from training.clustering.state import CdcState, UpdateRecord, update
from training.models.base import CtrModel, ModelOutput, TensorBatch
from training.models.towers import TowerRanker
from training.track import RunLog, Watcher


class Lookahead(Protocol):
    """Measures what steps on sets of domains would do; leaves everything as it is."""

    def __call__(
        self, plan: LookaheadPlan, steps: LabelledRows, evaluation: LabelledRows, serving: Serving
    ) -> LookaheadLosses | LookaheadGram:
        """Measure.

        Args:
            plan: Sets of the n measured domains.
            steps: B_u.
            evaluation: E_v.
            serving: Tower that predicts: each domain's own, or the mean of all before there are clusters.
        """
        ...


class CdcSteps:
    """Trains a tower model while its domains are re-clustered."""

    def __init__(
        self,
        model: CtrModel,
        *,
        state: CdcState,
        rows: RowPool,
        lookahead: Lookahead,
        warmup_batches: int,
        update_interval: int,
        max_updates: int | None,
        stop_after: int | None = None,
        log: RunLog,
        watcher: Watcher,
    ) -> None:
        """Start before the warm-up.

        Args:
            model: Its ranker has one tower per cluster.
            state: Before the first update.
            rows: What the lookahead reads.
            lookahead: Measures.
            warmup_batches: Steps before the first update.
            update_interval: Steps between updates.
            max_updates: Updates at most; None for no limit.
            stop_after: Updates after which training may end; then nothing is validated. None trains on.
            log: Told of every update.
            watcher: Told of every update.

        Raises:
            RulesError: the model has no towers, or not one per cluster.
        """
        wanted = state.rules.num_clusters
        ranker = model.ranker
        if not isinstance(ranker, TowerRanker) or ranker.num_towers != wanted:
            found = ranker.num_towers if isinstance(ranker, TowerRanker) else "none"
            raise RulesError(f"the model's towers: {found}; {wanted} clusters need {wanted}")
        self.state = state
        self._model, self._ranker = model, ranker
        self._rows, self._lookahead = rows, lookahead
        self._warmup, self._interval = warmup_batches, update_interval
        self._max_updates = max_updates if stop_after is None else stop_after
        self._stop_after = stop_after
        self._log, self._watcher = log, watcher
        self._best = state

    @property
    def judged(self) -> bool:
        """Whether clusters serve the domains; before, the mean of the towers is nothing to export."""
        return self._stop_after is None and self.state.clusters is not None

    @property
    def finished(self) -> bool:
        """Whether the updates that were asked for are done."""
        return self._stop_after is not None and len(self.state.history) >= self._stop_after

    def due(self, step: int) -> bool:
        """Whether the clusters are to be updated."""
        on_time = step >= self._warmup and (step - self._warmup) % self._interval == 0
        return on_time and (self._max_updates is None or len(self.state.history) < self._max_updates)

    def before_step(self, step: int) -> None:
        """Update the clusters where that is due."""
        if self.due(step):
            self._update(step)

    def forward(self, inputs: TensorBatch) -> ModelOutput:
        """The domain's own tower; the mean of all towers' probabilities before there are clusters."""
        if self.state.clusters is not None:
            output: ModelOutput = self._model(inputs)
            return output
        return mean_of_towers(self._model, self._ranker, inputs)

    def keep_best(self) -> None:
        """Remember the clusters that the best weights were trained with."""
        self._best = self.state

    def restore_best(self) -> None:
        """Go back to them; the table of towers came back with the weights."""
        self.state = self._best

    def state_dict(self) -> dict[str, Any]:
        """Clusters now and at the best weights, as bytes."""
        return {"state": _packed(self.state), "best": _packed(self._best)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.state = _unpacked(state["state"])
        self._best = _unpacked(state["best"])

    @property
    def rows(self) -> RowPool:
        """What the lookahead reads, and the domains it measures."""
        return self._rows

    def _update(self, step: int) -> None:
        started = time.perf_counter()
        device = self._ranker.get_buffer("tower_of_domain").device
        plan = self.state.plan()
        delivered = self._lookahead(
            plan,
            self._rows.steps(len(self.state.history), device),
            self._rows.evaluation(device),
            "mean" if self.state.clusters is None else "own",
        )
        self.state = update(self.state, plan, delivered)
        if (clusters := self.state.clusters) is not None:
            self._ranker.set_towers(self._rows.domains.towers(clusters.labels, clusters.sources))
        self._tell(self.state.history[-1], step=step, seconds=time.perf_counter() - started)

    def _tell(self, record: UpdateRecord, *, step: int, seconds: float) -> None:
        self._log.event(
            "clusters",
            step=step,
            t=record.t,
            seconds=round(seconds, 3),
            skipped=record.skipped,
            moved=[self._rows.domains.names[self._rows.domains.ids[u]] for u in record.moved],
            churn_ratio=record.churn_ratio,
            churn_rows_ratio=record.churn_rows_ratio,
            distance=record.distance,
            fell_back=record.fell_back,
            cluster_sizes=list(record.cluster_sizes),
            source_sizes=list(record.source_sizes),
        )
        if record.skipped:
            self._watcher.say(f"step {step}  clusters stay: {record.skipped}")
            return
        self._watcher.say(
            f"step {step}  clusters {list(record.cluster_sizes)}  moved {len(record.moved)}  "
            f"sources {list(record.source_sizes)}  {seconds:.1f} s"
        )


def mean_of_towers(model: CtrModel, ranker: TowerRanker, inputs: TensorBatch) -> ModelOutput:
    """Logit of the mean of the towers' probabilities, by log-sum-exp, (B,) float32."""
    sides, penalty = model.sides(inputs)
    logits = ranker.forward_all(sides).float()
    clicked = torch.logsumexp(functional.logsigmoid(logits), dim=1)
    ignored = torch.logsumexp(functional.logsigmoid(-logits), dim=1)
    own = ranker.penalty()
    return ModelOutput(clicked - ignored, penalty if own is None else penalty + own)


def _packed(state: CdcState) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(state_bytes(state), dtype=np.uint8).copy())


def _unpacked(content: torch.Tensor) -> CdcState:
    return state_from_bytes(content.cpu().numpy().tobytes())
