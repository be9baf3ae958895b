"""PLE: levels of shared and tower-specific experts, each tower with its own gates over its part of them.

Source: Tang et al., "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning Model for
Personalized Recommendations", RecSys 2020, eq. 1-5 (customised gate control, CGC) and 6-8 (levels), with
domains (or groups of them) in the place of tasks. We differ in adding a linear term over the inputs
and a bias per domain to the logit.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from training.models.base import Sides
from training.models.layers import ExpertStack, StackedExperts, StackedLinear, TwoSidedLinear
from training.models.towers import MlpTowerRanker


class Ple(MlpTowerRanker):
    """Extraction levels, then towers.

    Args:
        request_width: P, width of the request side.
        row_width: Q, width of the row side.
        tower_of_domain: (D + 1,) tower that serves each domain; the last entry serves unknown domains.
        num_shared_experts: S, experts of each level that all towers read.
        num_tower_experts: M, experts of each level that one tower reads.
        expert_widths: Hidden widths of the experts, one entry per level.
        tower_widths: Hidden widths of each tower before its output.
        dropout: Drop rate after each hidden layer.
        batch_norm: Whether hidden layers of the experts are normalised.
    """

    def __init__(
        self,
        *,
        request_width: int,
        row_width: int,
        tower_of_domain: Sequence[int],
        num_shared_experts: int,
        num_tower_experts: int,
        expert_widths: Sequence[Sequence[int]],
        tower_widths: Sequence[int],
        dropout: float,
        batch_norm: bool,
    ) -> None:
        super().__init__(
            request_width=request_width,
            row_width=row_width,
            tower_of_domain=tower_of_domain,
            inner_width=expert_widths[-1][-1],
            tower_widths=tower_widths,
            dropout=dropout,
        )
        self.levels = extraction_levels(
            request_width=request_width,
            row_width=row_width,
            num_towers=self.num_towers,
            num_shared_experts=num_shared_experts,
            num_tower_experts=num_tower_experts,
            expert_widths=expert_widths,
            dropout=dropout,
            batch_norm=batch_norm,
        )

    def tower_logits(self, sides: Sides) -> Tensor:
        """What each tower says of each row, (N, K) float32."""
        x = self.levels[0](sides)
        for level in self.levels[1:]:
            x = level(x)
        return self.run_towers(x)


def extraction_levels(
    *,
    request_width: int,
    row_width: int,
    num_towers: int,
    num_shared_experts: int,
    num_tower_experts: int,
    expert_widths: Sequence[Sequence[int]],
    dropout: float,
    batch_norm: bool,
) -> nn.ModuleList:
    """Extraction levels one above the other: `Sides` in, (N, num_towers, expert_widths[-1][-1]) out.

    Arguments are those of `Ple`.
    """
    K, M, S = num_towers, num_tower_experts, num_shared_experts
    E = K * M + S
    many = len(expert_widths) > 1
    first = StackedExperts(
        request_width, row_width, expert_widths[0], num_experts=E, dropout=dropout, batch_norm=batch_norm
    )
    gates = TwoSidedLinear(request_width, row_width, K * (M + S) + (E if many else 0))
    levels = [ExtractionLevel(first, gates, num_towers=K, per_tower=M, shared=S, is_last=not many)]
    for number, (before, widths) in enumerate(pairwise(expert_widths), start=2):
        inner, is_last = before[-1], number == len(expert_widths)
        stack = ExpertStack(
            SlotExperts(inner, widths[0], num_towers=K, per_tower=M, shared=S),
            widths,
            num_experts=E,
            dropout=dropout,
            batch_norm=batch_norm,
        )
        slot_gates = SlotGates(inner, num_towers=K, per_tower=M, shared=S, is_last=is_last)
        levels.append(
            ExtractionLevel(stack, slot_gates, num_towers=K, per_tower=M, shared=S, is_last=is_last)
        )
    return nn.ModuleList(levels)


class ExtractionLevel(nn.Module):
    """K * M tower experts, S shared ones, and softmax gates over them.

    Experts are in the order tower 0, ..., tower K - 1, shared. The gate of a tower weighs its own M and
    the S shared experts; the gate of the shared slot, absent in the last level, weighs all of them.

    Args:
        experts: All experts, (N, K * M + S, H).
        gates: All gate logits side by side, (N, K * (M + S) + K * M + S), without the last term in the
            last level.
        num_towers: K.
        per_tower: M.
        shared: S.
        is_last: Whether towers follow rather than another level.
    """

    def __init__(
        self,
        experts: ExpertStack,
        gates: nn.Module,
        *,
        num_towers: int,
        per_tower: int,
        shared: int,
        is_last: bool,
    ) -> None:
        super().__init__()
        self.experts = experts
        self.gates = gates
        self.num_towers = num_towers
        self.per_tower = per_tower
        self.shared = shared
        self.is_last = is_last

    def forward(self, inputs: Sides | Tensor) -> Tensor:
        """Mixtures by slot: (N, K, H) in the last level, (N, K + 1, H) with the shared slot before."""
        K, M, S = self.num_towers, self.per_tower, self.shared
        experts = self.experts(inputs)
        gates = self.gates(inputs)
        N, H = experts.shape[0], self.experts.out_width
        weights = torch.softmax(gates.narrow(1, 0, K * (M + S)).reshape(N, K, M + S), dim=-1)
        own = experts.narrow(1, 0, K * M).reshape(N, K, M, H)
        mixed: Tensor = (weights.narrow(2, 0, M).unsqueeze(3) * own).sum(dim=2)
        mixed = mixed + torch.matmul(weights.narrow(2, M, S), experts.narrow(1, K * M, S))
        if self.is_last:
            return mixed
        over_all = torch.softmax(gates.narrow(1, K * (M + S), K * M + S), dim=-1)
        return torch.cat([mixed, torch.matmul(over_all.unsqueeze(1), experts)], dim=1)


class SlotExperts(nn.Module):
    """First layers of a later level's experts, each on the mixture of its slot, (N, K * M + S, width)."""

    def __init__(self, inner: int, width: int, *, num_towers: int, per_tower: int, shared: int) -> None:
        super().__init__()
        slots = torch.arange(num_towers).repeat_interleave(per_tower)
        slots = torch.cat([slots, torch.full((shared,), num_towers)])
        self.register_buffer("slots", slots, persistent=False)
        self.linear = StackedLinear(len(slots), inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """From mixtures (N, K + 1, inner)."""
        out: Tensor = self.linear(x.index_select(1, self.get_buffer("slots")))
        return out


class SlotGates(nn.Module):
    """Gate logits of a later level: tower gates read their tower's mixture, the shared gate its own."""

    def __init__(self, inner: int, *, num_towers: int, per_tower: int, shared: int, is_last: bool) -> None:
        super().__init__()
        self.num_towers = num_towers
        self.width = num_towers * (per_tower + shared)
        self.towers = StackedLinear(num_towers, inner, per_tower + shared)
        self.shared = None if is_last else nn.Linear(inner, num_towers * per_tower + shared)

    def forward(self, x: Tensor) -> Tensor:
        """From mixtures (N, K + 1, inner); columns as `ExtractionLevel` reads them."""
        gates: Tensor = self.towers(x.narrow(1, 0, self.num_towers)).reshape(x.shape[0], self.width)
        if self.shared is None:
            return gates
        return torch.cat([gates, self.shared(x.select(1, self.num_towers))], dim=1)
