"""What validation is judged by, and when training stops.

`EarlyStop` keeps the best weights seen. Invariant: `best_state` is a copy taken at `best_step`; later
training never changes it.
"""

import math
from typing import Any, Literal, TypeAlias, get_args

from torch import Tensor

from training.engine.errors import MonitorError
from training.metrics import Evaluation

Monitor: TypeAlias = Literal["domain_auc", "total_auc", "mean_auc", "gauc", "logloss"]
"""`mean_auc` is the mean of `domain_auc` and `total_auc`."""

MONITORS: tuple[Monitor, ...] = get_args(Monitor)
LOWER_IS_BETTER = frozenset({"logloss"})


def monitored_value(evaluation: Evaluation, monitor: Monitor) -> float:
    """Read the watched metric.

    Raises:
        MonitorError: The metric is undefined on these rows (a class is missing).
    """
    if monitor == "mean_auc":
        value = (evaluation.domain_auc + evaluation.total_auc) / 2
    else:
        value = float(getattr(evaluation, monitor))
    if math.isnan(value):
        raise MonitorError(
            f"validation metric '{monitor}' is undefined: {evaluation.rows} rows, {evaluation.positives} "
            f"clicks; set training.monitor to another of {', '.join(MONITORS)}"
        )
    return value


class EarlyStop:
    """Best value so far, its weights, and how many evaluations passed without a better one."""

    def __init__(self, *, monitor: Monitor, patience: int) -> None:
        """Start with nothing seen.

        Args:
            monitor: The metric to watch.
            patience: Evaluations in a row without a new best after which training stops.
        """
        self.monitor = monitor
        self.patience = patience
        self.best_value = math.nan
        self.best_step = 0
        self.best_epoch = 0.0
        self.best_state: dict[str, Tensor] = {}
        self.since_best = 0

    @property
    def should_stop(self) -> bool:
        """Whether patience is used up."""
        return self.since_best >= self.patience

    def observe(self, value: float, *, state: dict[str, Tensor], step: int, epoch: float) -> bool:
        """Take in one evaluation.

        Args:
            value: Of the watched metric.
            state: The model's live `state_dict`; copied when the value is the best so far.
            step: Optimiser steps done.
            epoch: Passes over the training rows done, with fraction.

        Returns:
            Whether it is a new best. An equal value is not.
        """
        if not self._is_better(value):
            self.since_best += 1
            return False
        self.best_value, self.best_step, self.best_epoch, self.since_best = value, step, epoch, 0
        self.best_state = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
        return True

    def _is_better(self, value: float) -> bool:
        if math.isnan(self.best_value):
            return True
        return value < self.best_value if self.monitor in LOWER_IS_BETTER else value > self.best_value

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on, for a checkpoint."""
        return {
            "best_value": self.best_value,
            "best_step": self.best_step,
            "best_epoch": self.best_epoch,
            "best_state": self.best_state,
            "since_best": self.since_best,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.best_value = state["best_value"]
        self.best_step = state["best_step"]
        self.best_epoch = state["best_epoch"]
        self.best_state = state["best_state"]
        self.since_best = state["since_best"]
