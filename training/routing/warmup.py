"""The hook that lets the information loss count only after a warm-up.

An information loss that counts from the first step on binds domains to experts before the clicks have said
anything, and what is bound by chance stays. Invariant: the factor is a buffer of the model, so that other
ranks and checkpoints have it; the hook remembers nothing.

Source: CESAA, arXiv 2411.06826, gives no warm-up; it is ours.
"""

from __future__ import annotations

from training.engine.hook import PlainSteps
from training.models.base import CtrModel
from training.models.cesaa import Cesaa
from training.routing.errors import RoutingError
from training.track import RunLog, Watcher

LEAST_STEPS = 500
"""Of a warm-up that nothing else sets."""


def warmup_steps(given: int | None, *, batches_per_epoch: int, epochs: int) -> int:
    """Steps before the loss counts.

    Args:
        given: As configured; None takes an epoch and at least `LEAST_STEPS`, at most a third of training.
        batches_per_epoch: Steps of a pass.
        epochs: Passes.

    Raises:
        RoutingError: The loss would never count.
    """
    total = epochs * batches_per_epoch
    if given is None:
        return min(max(batches_per_epoch, LEAST_STEPS), total // 3)
    if given >= total:
        raise RoutingError(
            f"model.mi_warmup_steps is {given}, training has {total} steps: the information loss would never "
            "count; lower it, or set model.mi_weight to 0"
        )
    return given


class InformationWarmup(PlainSteps):
    """Trains the model as it is, the information loss from some step on."""

    def __init__(self, model: CtrModel, *, weight: float, warmup: int, log: RunLog, watcher: Watcher) -> None:
        """Turn the loss off.

        Args:
            model: Its ranker is a `Cesaa`.
            weight: Factor of the loss after the warm-up.
            warmup: Steps before it counts.
            log: Told when it begins to count.
            watcher: Told the same.
        """
        super().__init__(model)
        self._ranker = cesaa_of(model)
        self._weight, self._warmup = weight, warmup
        self._log, self._watcher = log, watcher
        self._ranker.set_mi_weight(0.0)

    def due(self, step: int) -> bool:
        """Whether the loss begins to count at this step."""
        return step == self._warmup and self._weight > 0

    def before_step(self, step: int) -> None:
        """Turn the loss on where that is due."""
        if self.due(step):
            self._ranker.set_mi_weight(self._weight)
            self._log.event("information_loss", step=step, weight=self._weight)
            self._watcher.say(f"step {step}  the information loss counts from here on, {self._weight:g}")


def cesaa_of(model: CtrModel) -> Cesaa:
    """The ranker of a model whose rows choose among experts.

    Raises:
        RoutingError: It has another one.
    """
    if not isinstance(model.ranker, Cesaa):
        raise RoutingError(f"a model with a {type(model.ranker).__name__} has no routing; cesaa has")
    return model.ranker
