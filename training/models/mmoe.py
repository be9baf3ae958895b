"""MMoE: shared experts mixed by a softmax gate, read by a tower.

Source: Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate
Mixture-of-Experts", KDD 2018, eq. 6-8, with domains (or groups of them) in the place of tasks. We
differ in adding a linear term over the inputs and a bias per domain to the logit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from training.models.base import Sides, at_rows
from training.models.layers import StackedExperts, TwoSidedLinear
from training.models.towers import MlpTowerRanker


class Mmoe(MlpTowerRanker):
    """Experts, gates and towers.

    Args:
        request_width: P, width of the request side.
        row_width: Q, width of the row side.
        tower_of_domain: (D + 1,) tower that serves each domain; the last entry serves unknown domains.
        num_experts: E.
        gate_input: `features`: K gates read all inputs; `domain`: one row of gate logits per domain.
        expert_widths: Hidden widths of each expert.
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
        num_experts: int,
        gate_input: Literal["features", "domain"],
        expert_widths: Sequence[int],
        tower_widths: Sequence[int],
        dropout: float,
        batch_norm: bool,
    ) -> None:
        super().__init__(
            request_width=request_width,
            row_width=row_width,
            tower_of_domain=tower_of_domain,
            inner_width=expert_widths[-1],
            tower_widths=tower_widths,
            dropout=dropout,
        )
        self.num_experts = num_experts
        self.experts = StackedExperts(
            request_width,
            row_width,
            expert_widths,
            num_experts=num_experts,
            dropout=dropout,
            batch_norm=batch_norm,
        )
        self.gates: TwoSidedLinear | nn.Embedding
        if gate_input == "features":
            self.gates = TwoSidedLinear(request_width, row_width, self.num_towers * num_experts)
        else:
            self.gates = nn.Embedding(len(tower_of_domain), num_experts)
            nn.init.zeros_(self.gates.weight)

    def tower_logits(self, sides: Sides) -> Tensor:
        """What each tower says of each row, (N, K) float32."""
        return self.run_towers(self._mixed(sides, self.experts(sides)))

    def _mixed(self, sides: Sides, experts: Tensor) -> Tensor:
        """Input of each tower (N, K, H) from experts (N, E, H); weights of a mixture sum to 1."""
        N, K, E = experts.shape[0], self.num_towers, self.num_experts
        if isinstance(self.gates, TwoSidedLinear):
            return torch.matmul(torch.softmax(self.gates(sides).reshape(N, K, E), dim=-1), experts)
        # A gate by domain gives all towers the same mixture; a sum is faster than N small products.
        weights = at_rows(torch.softmax(self.gates(sides.domain), dim=-1), sides.request_index)
        mixed = (weights.unsqueeze(2) * experts).sum(dim=1, keepdim=True)
        return mixed.expand(N, K, experts.shape[2])
