"""STAR: one network whose weights are multiplied, entry by entry, with weights of the tower.

Source: Sheng et al., "One Model to Serve All: Star Topology Adaptive Recommender for Multi-Domain CTR
Prediction", CIKM 2021, eq. 2-4 (partitioned normalisation of the inputs), 5-6 (star topology), 7
(auxiliary network), with towers serving groups of domains where so configured. We differ in these points:
tower factors are stored as their distance from one, so that weight decay draws towers to the shared
network; training normalises with the running moments too, since a mixed batch may hold a single row of
a tower; a linear term over the inputs and a bias per domain are added to the logit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from training.models.base import Sides, at_rows
from training.models.layers import Activation, TwoSidedMlp, stacked_affine
from training.models.towers import TowerRanker

MOMENT_DECAY = 0.99
# Above the usual 1e-5: a column that is constant within a tower, as its domain's embedding is, would be
# blown up 300-fold when a row differs.
VARIANCE_FLOOR = 1e-3


class StarLinear(nn.Module):
    """K affine maps W_k = W * (1 + U_k), b_k = b + c_k; all equal the shared map at first."""

    def __init__(self, num_towers: int, inner: int, outer: int) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(inner)
        self.weight = nn.Parameter(torch.empty(inner, outer).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(outer).uniform_(-bound, bound))
        self.tower_weight = nn.Parameter(torch.zeros(num_towers, inner, outer))
        self.tower_bias = nn.Parameter(torch.zeros(num_towers, outer))

    def maps(self) -> tuple[Tensor, Tensor]:
        """Weights (K, inner, outer) and biases (K, outer)."""
        return self.weight * (1.0 + self.tower_weight), self.bias + self.tower_bias

    def forward(self, x: Tensor) -> Tensor:
        """(N, K, inner) to (N, K, outer)."""
        weight, bias = self.maps()
        return stacked_affine(x, weight, bias)


class PartitionedNorm(nn.Module):
    """z' = g * g_k * (z - m_k) / sqrt(v_k + floor) + h + h_k with moments m_k, v_k of tower k's rows.

    Kept as a scale and a shift per tower, so that a linear layer behind it can take them in.

    Args:
        num_towers: K.
        width: W, width of z.

    Attributes:
        over_ranks: Adds a tensor up over the processes that share a batch; the identity where there is one.
    """

    def __init__(self, num_towers: int, width: int) -> None:
        super().__init__()
        self.over_ranks: Callable[[Tensor], Tensor] = _unchanged
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))
        self.tower_scale = nn.Parameter(torch.zeros(num_towers, width))
        self.tower_shift = nn.Parameter(torch.zeros(num_towers, width))
        self.register_buffer("mean", torch.zeros(num_towers, width))
        self.register_buffer("variance", torch.ones(num_towers, width))
        self.register_buffer("num_seen", torch.ones(num_towers))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Scale and shift, (K, W) float32 each: z' = scale_k * z + shift_k."""
        spread = torch.sqrt(self.get_buffer("variance") + VARIANCE_FLOOR)
        scale = self.scale * (1.0 + self.tower_scale) / spread
        return scale, self.shift + self.tower_shift - self.get_buffer("mean") * scale

    @torch.no_grad()
    def observe(self, z: Tensor, towers: Tensor | None) -> None:
        """Take rows into the moments, older rows weighing `MOMENT_DECAY` less with every batch of the tower.

        Args:
            z: (N, W) float32.
            towers: (N,) int64 tower of each row; None when every tower sees every row.
        """
        mean, variance, num_seen = (self.get_buffer(b) for b in ("mean", "variance", "num_seen"))
        groups = 1 if towers is None else num_seen.shape[0]
        if towers is None:
            towers = torch.zeros(z.shape[0], dtype=torch.int64, device=z.device)
        rows = self.over_ranks(
            num_seen.new_zeros(groups).index_add_(0, towers, num_seen.new_ones(z.shape[0]))
        )
        divisor = rows.clamp_min(1.0).unsqueeze(1)
        sums = mean.new_zeros(groups, z.shape[1]).index_add_(0, towers, z)
        batch_mean = self.over_ranks(sums) / divisor
        squares = (z - batch_mean.index_select(0, towers)).pow(2)
        sums = mean.new_zeros(groups, z.shape[1]).index_add_(0, towers, squares)
        batch_variance = self.over_ranks(sums) / divisor
        kept = torch.where(rows > 0, MOMENT_DECAY * num_seen, num_seen)
        share = (rows / (kept + rows)).unsqueeze(1)
        step = batch_mean - mean
        variance.copy_((1 - share) * variance + share * batch_variance + share * (1 - share) * step.pow(2))
        mean.add_(share * step)
        num_seen.copy_(kept + rows)


def _unchanged(values: Tensor) -> Tensor:
    return values


class Star(TowerRanker):
    """Normalised inputs, star layers down to the logit, auxiliary network.

    Args:
        request_width: P, width of the request side.
        row_width: Q, width of the row side.
        tower_of_domain: (D + 1,) tower that serves each domain; the last entry serves unknown domains.
        deep_widths: Hidden widths of the star layers.
        auxiliary_widths: Hidden widths of the auxiliary network.
        dropout: Drop rate after each hidden layer.
        partitioned_norm: Whether inputs are normalised by tower.
    """

    def __init__(
        self,
        *,
        request_width: int,
        row_width: int,
        tower_of_domain: Sequence[int],
        deep_widths: Sequence[int],
        auxiliary_widths: Sequence[int],
        dropout: float,
        partitioned_norm: bool,
    ) -> None:
        super().__init__(request_width=request_width, row_width=row_width, tower_of_domain=tower_of_domain)
        width = request_width + row_width
        self.norm: PartitionedNorm | None
        self.norm = PartitionedNorm(self.num_towers, width) if partitioned_norm else None
        self.layers = nn.ModuleList(
            StarLinear(self.num_towers, a, b) for a, b in pairwise([width, *deep_widths, 1])
        )
        self.activation = Activation(1, batch_norm=False, dropout=dropout)
        # The request side ends with the domain embedding, so this network reads the domain indicator.
        self.auxiliary = TwoSidedMlp(
            request_width, row_width, auxiliary_widths, dropout=dropout, batch_norm=False
        )
        self.auxiliary_out = nn.Linear(auxiliary_widths[-1], 1)

    def forward(self, sides: Sides) -> Tensor:
        """Logits (N,) float32; in training each row counts for the moments of its own tower."""
        if self.training:
            self._observe(sides, at_rows(self.towers_of(sides.domain), sides.request_index))
        return super().forward(sides)

    def forward_all(self, sides: Sides) -> Tensor:
        """Logits (N, K) float32; in training each row counts for the moments of every tower."""
        if self.training:
            self._observe(sides, None)
        return super().forward_all(sides)

    def tower_logits(self, sides: Sides) -> Tensor:
        """What each tower says of each row, (N, K) float32."""
        x = self._first(sides)
        for layer in self.layers[1:]:
            x = layer(self.activation(x))
        out: Tensor = x.squeeze(-1) + self.auxiliary_out(self.auxiliary(sides))
        return out

    def _first(self, sides: Sides) -> Tensor:
        """First star layer on normalised inputs, (N, K, H).

        W_k (scale_k * z + shift_k) + b_k is one wide two-sided layer over the raw inputs.
        """
        weight, bias = cast(StarLinear, self.layers[0]).maps()
        K, width, H = weight.shape
        if self.norm is not None:
            scale, shift = self.norm()
            bias = bias + (shift.unsqueeze(2) * weight).sum(dim=1)
            weight = weight * scale.unsqueeze(2)
        wide = weight.permute(1, 0, 2).reshape(width, K * H)
        P, Q = sides.request.shape[1], sides.row.shape[1]
        request = at_rows(torch.matmul(sides.request, wide.narrow(0, 0, P)), sides.request_index)
        row = torch.addmm(bias.reshape(K * H), sides.row, wide.narrow(0, P, Q))
        return (request + row).reshape(sides.row.shape[0], K, H)

    def _observe(self, sides: Sides, towers: Tensor | None) -> None:
        if self.norm is not None:
            z = torch.cat([at_rows(sides.request, sides.request_index), sides.row], dim=1)
            self.norm.observe(z.detach(), towers)
