"""Decision paths: which links between intents and exemplars exist, as gates that an L0 penalty closes.

Gates are hard-concrete (Louizos et al., ICLR 2018, "Learning sparse neural networks through L0
regularization"): a stretched concrete variable clipped to [0, 1], so that exact 0 and exact 1 have mass.
HIER (arXiv 2405.17132) names the gate matrix and its penalty; this form of both is of that paper. Invariant:
in evaluation mode the gates are a function of the weights alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

TEMPERATURE = 2.0 / 3.0
LOW, HIGH = -0.1, 1.1
"""The stretched interval."""
MAX_LOG_ALPHA = 4.6
"""Locations are kept within plus and minus this."""
_MARGIN = 1e-6


def sampled_gates(log_alpha: Tensor, uniform: Tensor) -> Tensor:
    """Gates in [0, 1] of the shape of `log_alpha`, from `uniform` draws inside (0, 1) of that shape."""
    noise = torch.log(uniform) - torch.log1p(-uniform)
    return _stretched(torch.sigmoid((noise + log_alpha) / TEMPERATURE))


def fixed_gates(log_alpha: Tensor) -> Tensor:
    """Gates without noise: 0 from log_alpha -2.397895 down, 1 from 2.397895 up."""
    return _stretched(torch.sigmoid(log_alpha))


def open_probability(log_alpha: Tensor) -> Tensor:
    """Probability that a gate is not 0, of the shape of `log_alpha`; its sum is the expected L0 norm."""
    return torch.sigmoid(log_alpha - TEMPERATURE * math.log(-LOW / HIGH))


def _stretched(share: Tensor) -> Tensor:
    return (share * (HIGH - LOW) + LOW).clamp(0.0, 1.0)


class PathGates(nn.Module):
    """Gates between M intents and K exemplars.

    Args:
        num_intents: M.
        num_exemplars: K.
    """

    def __init__(self, *, num_intents: int, num_exemplars: int) -> None:
        super().__init__()
        self.log_alpha = nn.Parameter(0.01 * torch.randn(num_intents, num_exemplars))

    def forward(self) -> Tensor:
        """(M, K) gates: one draw each in training, the same for all rows of the step; fixed otherwise."""
        if not self.training:
            return fixed_gates(self.log_alpha)
        uniform = torch.rand_like(self.log_alpha).clamp(_MARGIN, 1.0 - _MARGIN)
        return sampled_gates(self.log_alpha, uniform)

    def expected_open(self) -> Tensor:
        """Expected number of gates that are not 0, a scalar."""
        return open_probability(self.log_alpha).sum()

    def open_share(self) -> float:
        """Share of gates that are not 0 in evaluation mode."""
        return float((fixed_gates(self.log_alpha) > 0).double().mean())

    @torch.no_grad()
    def keep_in_range(self) -> None:
        """Clip the locations; called after each step."""
        self.log_alpha.clamp_(-MAX_LOG_ALPHA, MAX_LOG_ALPHA)
