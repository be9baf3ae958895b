"""Optimisers: AdamW for dense weights, lazy updates of embedding rows, one learning-rate schedule.

A table's gradient is sparse, so a step reads and writes only the rows of the batch: dense L2 or Adam would
pull every unseen id towards 0 by about the learning rate per step. Invariant: a row that is
not in the batch keeps its bits, and so does its optimiser state.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import nn
from torch.optim import Optimizer

from training.models.base import TableGroup

TableMethod: TypeAlias = Literal["sparse_adam", "rowwise_adagrad"]
ScheduleKind: TypeAlias = Literal["constant", "linear_decay", "cosine"]


@dataclass(frozen=True)
class Schedule:
    """Learning-rate factor over steps: linear warm-up to 1, then constant or falling to `final_ratio`."""

    kind: ScheduleKind
    warmup_steps: int
    total_steps: int
    final_ratio: float = 0.0

    def factor(self, step: int) -> float:
        """Factor for the step that follows `step` finished ones, in (0, 1]."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        if self.kind == "constant":
            return 1.0
        done = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        done = min(1.0, done)
        left = 1.0 - done if self.kind == "linear_decay" else 0.5 * (1.0 + math.cos(math.pi * done))
        return self.final_ratio + (1.0 - self.final_ratio) * left


class RowwiseAdagrad(Optimizer):
    """Adagrad with one accumulator per table row instead of one per number.

    s_r += mean_j g_rj^2;  w_r -= lr * g_r / (sqrt(s_r) + eps), for the rows r of the batch only.
    Source: the row-wise Adagrad of FBGEMM and TorchRec. State per table: (rows,) float32.
    """

    def __init__(self, params: Any, *, lr: float, eps: float = 1e-8) -> None:
        """Wrap tables whose gradients are sparse.

        Args:
            params: Tables (rows, H), or parameter groups of them.
            lr: Step size.
            eps: Keeps the division defined.
        """
        super().__init__(params, {"lr": lr, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the rows that have a gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    self._update(table, lr=group["lr"], eps=group["eps"])
        return loss

    def _update(self, table: nn.Parameter, *, lr: float, eps: float) -> None:
        gradient = table.grad.coalesce()  # type: ignore[union-attr]
        rows, values = gradient.indices()[0], gradient.values()  # (U,), (U, H)
        state = self.state[table]
        if "sum" not in state:
            state["sum"] = torch.zeros(table.shape[0], dtype=table.dtype, device=table.device)
        total = state["sum"][rows] + values.pow(2).mean(dim=1)
        state["sum"][rows] = total
        table[rows] -= lr * values / (total.sqrt() + eps).unsqueeze(1)


class OptimiserSet:
    """The dense and the table optimiser, stepped as one under one schedule."""

    def __init__(self, optimisers: Sequence[Optimizer], *, schedule: Schedule) -> None:
        """Take optimisers whose groups hold their base learning rate."""
        self._optimisers = list(optimisers)
        self._base = [[group["lr"] for group in o.param_groups] for o in self._optimisers]
        self._schedule = schedule

    @property
    def optimisers(self) -> tuple[Optimizer, ...]:
        """Dense first, then tables."""
        return tuple(self._optimisers)

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for optimiser in self._optimisers:
            optimiser.zero_grad(set_to_none=True)

    def step(self, step: int) -> float:
        """Apply the gradients at the learning rate that follows `step` finished steps.

        Returns:
            The schedule's factor.
        """
        factor = self._schedule.factor(step)
        for optimiser, bases in zip(self._optimisers, self._base, strict=True):
            for group, base in zip(optimiser.param_groups, bases, strict=True):
                group["lr"] = base * factor
            optimiser.step()
        return factor

    def state_dict(self) -> list[dict[str, Any]]:
        """State of each optimiser, for a checkpoint; the schedule is a function of the step."""
        return [optimiser.state_dict() for optimiser in self._optimisers]

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        """Go on from `state_dict`."""
        for optimiser, state in zip(self._optimisers, states, strict=True):
            optimiser.load_state_dict(state)


def build_optimisers(
    *,
    dense: Sequence[nn.Parameter],
    tables: Sequence[TableGroup],
    dense_lr: float,
    weight_decay: float,
    table_method: TableMethod,
    table_lr: float,
    schedule: Schedule,
) -> OptimiserSet:
    """Make the optimisers of one model.

    Args:
        dense: Parameters with dense gradients.
        tables: Embedding tables with sparse gradients; a group's rate is `table_lr * lr_scale`.
        dense_lr: Of AdamW.
        weight_decay: Decoupled, of AdamW; tables have none.
        table_method: How table rows are updated.
        table_lr: Base rate of the tables.
        schedule: Factor on every rate.
    """
    made: list[Optimizer] = []
    if dense:
        made.append(torch.optim.AdamW(list(dense), lr=dense_lr, weight_decay=weight_decay))
    groups: list[dict[str, Any]] = [
        {"params": list(t.parameters), "lr": table_lr * t.lr_scale} for t in tables if t.parameters
    ]
    if groups and table_method == "sparse_adam":
        made.append(torch.optim.SparseAdam(groups, lr=table_lr))
    elif groups:
        made.append(RowwiseAdagrad(groups, lr=table_lr))
    return OptimiserSet(made, schedule=schedule)
