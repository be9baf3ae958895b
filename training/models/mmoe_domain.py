"""MMoE of one domain: its own tower and gate, the domain's embedding and bias folded into biases.

Invariant: the logits are those of the whole model for rows of the domain, up to rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.models.base import Ranker, Sides
from training.models.fold import fold_batch_norm
from training.models.layers import StackedLinear, TwoSidedLinear
from training.models.mmoe import Mmoe
from training.models.pyramid import joined
from training.models.slicing import blocks, fold_domain, keep_maps, keep_rows


class MmoeOfDomain(Ranker):
    """Experts, one gate, one tower, the linear term.

    Args:
        experts: (N, E, H) from two sides without the domain's columns.
        gate: Logits (N, E) from the same, or constant weights (1, E).
        tower: Hidden layers and output of the tower.
        linear: Linear term with the domain's bias.
    """

    def __init__(
        self,
        *,
        experts: nn.Module,
        gate: TwoSidedLinear | Tensor,
        tower: Sequence[nn.Module],
        linear: TwoSidedLinear,
    ) -> None:
        super().__init__()
        self.experts = experts
        self.gate: TwoSidedLinear | None = None
        if isinstance(gate, TwoSidedLinear):
            self.gate = gate
        else:
            self.register_buffer("weights", gate)
        *hidden, self.out = tower
        self.hidden = nn.ModuleList(hidden)
        self.linear = linear

    def forward(self, sides: Sides) -> Tensor:
        """Logits (N,) float32; `sides.request` comes without the domain embedding."""
        weights = self.get_buffer("weights") if self.gate is None else self.gate(sides).softmax(dim=-1)
        x = (weights.unsqueeze(2) * self.experts(sides)).sum(dim=1)
        for layer in self.hidden:
            x = torch.relu(layer(x))
        logits: Tensor = self.out(x) + self.linear(sides)
        return logits.squeeze(1)


@torch.no_grad()
def mmoe_of_one_domain(ranker: Mmoe, domain: int, vector: Tensor) -> MmoeOfDomain:
    """A ranker of one domain.

    Args:
        ranker: As trained.
        domain: Index, D for the unknown domain.
        vector: (domain_dim,) float32 embedding of the domain, the last columns of what `ranker` reads.
    """
    own = copy.deepcopy(ranker).eval()
    fold_batch_norm(own)
    tower = int(own.towers_of(torch.tensor([domain])))
    gate: TwoSidedLinear | Tensor
    if isinstance(own.gates, TwoSidedLinear):
        gate = keep_rows(own.gates, blocks([tower], own.num_experts))
        fold_domain(gate, vector)
    else:
        gate = torch.softmax(own.gates.weight[domain : domain + 1], dim=-1)
    fold_domain(own.experts, vector)
    fold_domain(own.linear, vector)
    own.linear.request.bias.add_(own.domain_bias.weight[domain])
    layers = [layer for layer in (*own.towers, own.out) if isinstance(layer, StackedLinear)]
    return MmoeOfDomain(
        experts=own.experts,
        gate=gate,
        tower=[joined(keep_maps(layer, [tower])) for layer in layers],
        linear=own.linear,
    )
