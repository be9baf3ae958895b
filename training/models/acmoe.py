"""Experts that several tasks read and that each learn from one side only, gates and towers by task.

The tasks are the prediction from mixed sequences (task 0, "cross") and, for each domain d, that from the
domain's own events (task 1 + d, "single"). All tasks read all K experts; the first `num_cross_experts` learn
from the cross task, the others from the single ones. Without the stop-gradient all learn from both sides.

Invariant: an expert that is frozen for a side gets no gradient from it, and hands none on to what it reads;
its parameters are its own. With `prefix_mean` gates no position's output depends on a later one.

Letters: B sequences, L positions, Q positions picked from them, K experts, r width, T most events, J tasks.

Source: ACMoE of SyNCRec (arXiv 2407.11245). Its gate reads the whole flattened sequence (`flat`), so that
mixing weights during training depend on the future; `prefix_mean` reads the mean of the positions so far.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.models.sequence_encoder import INITIAL_STD, SequenceEncoder

GateInput = Literal["prefix_mean", "flat"]
Side = Literal["cross", "single"]
CROSS_TASK = 0
TOWER_FACTOR = 4


class ExpertBank(nn.Module):
    """K independent encoders.

    Args:
        num_experts: K.
        num_cross_experts: How many learn from the cross task; they come first.
        width: r.
        num_layers: Of each.
        num_heads: Of each layer.
        dropout: Drop rate.
        stop_gradient: Whether each learns from its own side only.
    """

    def __init__(
        self,
        *,
        num_experts: int,
        num_cross_experts: int,
        width: int,
        num_layers: int,
        num_heads: int,
        dropout: float,
        stop_gradient: bool = True,
    ) -> None:
        super().__init__()
        self.num_cross_experts = num_cross_experts
        self.stop_gradient = stop_gradient
        self.experts = nn.ModuleList(
            SequenceEncoder(width=width, num_layers=num_layers, num_heads=num_heads, dropout=dropout)
            for _ in range(num_experts)
        )

    def forward(self, states: Tensor, *, side: Side, present: Tensor | None = None) -> Tensor:
        """What all experts make of sequences of one side.

        Args:
            states: (B, L, r) float32.
            side: Whose experts learn.
            present: As `SequenceEncoder` has it.

        Returns:
            (B, L, K, r) float32.
        """
        outputs = []
        for place, expert in enumerate(self.experts):
            learns = not self.stop_gradient or (place < self.num_cross_experts) == (side == "cross")
            with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
                outputs.append(expert(states, present))
        return torch.stack(outputs, dim=2)

    def last(self, states: Tensor, length: Tensor) -> Tensor:
        """The same at the last position of each sequence, for inference: (B, K, r)."""
        return torch.stack([encoder.last(states, length) for encoder in self.encoders()], dim=1)

    def encoders(self) -> list[SequenceEncoder]:
        """The experts in order."""
        return [expert for expert in self.experts if isinstance(expert, SequenceEncoder)]


class TaskHeads(nn.Module):
    """A gate and a tower for each of J tasks, in tensors with one row per task.

    The tower is a residual network of two layers, normalised.

    Args:
        num_tasks: J.
        num_experts: K.
        width: r.
        context_width: Numbers that a gate reads, C.
    """

    def __init__(self, *, num_tasks: int, num_experts: int, width: int, context_width: int) -> None:
        super().__init__()
        inner = TOWER_FACTOR * width
        self.gate = nn.Parameter(torch.empty(num_tasks, num_experts, context_width))
        self.inner_weight = nn.Parameter(torch.empty(num_tasks, inner, width))
        self.inner_bias = nn.Parameter(torch.zeros(num_tasks, inner))
        self.outer_weight = nn.Parameter(torch.empty(num_tasks, width, inner))
        self.outer_bias = nn.Parameter(torch.zeros(num_tasks, width))
        self.scale = nn.Parameter(torch.ones(num_tasks, width))
        self.shift = nn.Parameter(torch.zeros(num_tasks, width))
        for weight in (self.gate, self.inner_weight, self.outer_weight):
            nn.init.normal_(weight, std=INITIAL_STD)

    def forward(self, task: int, outputs: Tensor, context: Tensor) -> Tensor:
        """Predictions of one task.

        Args:
            task: Which.
            outputs: (Q, K, r) float32 of the experts.
            context: (Q, C) float32, what its gate reads.

        Returns:
            (Q, r) float32.
        """
        weights = functional.linear(context, self.gate[task]).softmax(dim=-1)
        mixed = (weights.unsqueeze(-1) * outputs).sum(dim=1)
        inner = functional.gelu(functional.linear(mixed, self.inner_weight[task], self.inner_bias[task]))
        out = mixed + functional.linear(inner, self.outer_weight[task], self.outer_bias[task])
        return functional.layer_norm(out, out.shape[-1:]) * self.scale[task] + self.shift[task]

    def by_row(self, task: Tensor, outputs: Tensor, context: Tensor) -> Tensor:
        """Predictions of a task for each row: `task` (Q,) int64, the rest as in `forward`."""
        gate = self.gate.index_select(0, task)  # (Q, K, C)
        weights = torch.matmul(gate, context.unsqueeze(-1)).softmax(dim=1)  # (Q, K, 1)
        mixed = (weights * outputs).sum(dim=1)
        inner_weight, outer_weight = (w.index_select(0, task) for w in (self.inner_weight, self.outer_weight))
        inner = torch.matmul(inner_weight, mixed.unsqueeze(-1)).squeeze(-1)
        inner = functional.gelu(inner + self.inner_bias.index_select(0, task))
        outer = torch.matmul(outer_weight, inner.unsqueeze(-1)).squeeze(-1)
        out = functional.layer_norm(mixed + outer + self.outer_bias.index_select(0, task), mixed.shape[-1:])
        return out * self.scale.index_select(0, task) + self.shift.index_select(0, task)


def prefix_mean(states: Tensor, present: Tensor) -> Tensor:
    """Mean of the present positions up to each, (B, L, r).

    Args:
        states: (B, L, r) float32.
        present: (B, L) bool; the first position of every sequence is present.
    """
    weight = present.to(states.dtype).unsqueeze(-1)
    return (states * weight).cumsum(dim=1) / weight.cumsum(dim=1)


def flat_context(states: Tensor, present: Tensor, *, positions: int) -> Tensor:
    """All positions side by side, padding as zeros: (B, positions * r).

    Args:
        states: (B, L, r) float32, L at most `positions`.
        present: (B, L) bool.
        positions: Places in the result.
    """
    kept = states * present.to(states.dtype).unsqueeze(-1)
    return functional.pad(kept, (0, 0, 0, positions - states.shape[1])).flatten(1)
