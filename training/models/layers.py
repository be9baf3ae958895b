"""Dense building blocks over two-sided inputs.

A first layer W [u; i] is kept as W_u u + W_i i: the request half runs R times and is gathered, the
row half runs N times. Both halves together are initialised as one layer of width P + Q.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from training.models.base import Sides, at_rows


class TwoSidedLinear(nn.Module):
    """Affine map of [request; row] to `width`, (N, width)."""

    def __init__(self, request_width: int, row_width: int, width: int, *, bias: bool = True) -> None:
        super().__init__()
        self.request = nn.Linear(request_width, width, bias=bias)
        self.row = nn.Linear(row_width, width, bias=False)
        bound = 1.0 / math.sqrt(request_width + row_width)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, sides: Sides) -> Tensor:
        """(N, width) float32."""
        request = at_rows(self.request(sides.request), sides.request_index)
        row: Tensor = self.row(sides.row)
        return request + row


class Activation(nn.Module):
    """BatchNorm (optional), ReLU, dropout over the last axis of (N, width)."""

    def __init__(self, width: int, *, batch_norm: bool, dropout: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width) if batch_norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as given."""
        out: Tensor = self.dropout(torch.relu(self.norm(x)))
        return out


class TwoSidedMlp(nn.Module):
    """MLP whose first layer is two-sided; `out_width` is its last hidden width."""

    def __init__(
        self, request_width: int, row_width: int, widths: Sequence[int], *, dropout: float, batch_norm: bool
    ) -> None:
        super().__init__()
        self.first = TwoSidedLinear(request_width, row_width, widths[0])
        rest: list[nn.Module] = [Activation(widths[0], batch_norm=batch_norm, dropout=dropout)]
        for inner, outer in pairwise(widths):
            rest += [nn.Linear(inner, outer), Activation(outer, batch_norm=batch_norm, dropout=dropout)]
        self.rest = nn.Sequential(*rest)
        self.out_width = widths[-1]

    def forward(self, sides: Sides) -> Tensor:
        """(N, out_width) float32."""
        out: Tensor = self.rest(self.first(sides))
        return out


def stacked_affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """E affine maps at once, (N, E, outer) float32.

    One batched product; an exported graph gets E plain ones: ONNX Runtime packs constant matrices ahead of
    time only in that form, and its fused batched product fails on zero rows.

    Args:
        x: (N, E, inner) float32.
        weight: (E, inner, outer) float32.
        bias: (E, outer) float32.
    """
    if not torch.onnx.is_in_onnx_export():
        return torch.matmul(x.transpose(0, 1), weight).transpose(0, 1) + bias
    maps = zip(x.unbind(1), weight.unbind(0), bias.unbind(0), strict=True)
    return torch.stack([torch.addmm(b, rows, w) for rows, w, b in maps], dim=1)


class StackedLinear(nn.Module):
    """E independent affine maps at once: (N, E, inner) to (N, E, outer)."""

    def __init__(self, num_experts: int, inner: int, outer: int) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(inner)
        self.weight = nn.Parameter(torch.empty(num_experts, inner, outer).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num_experts, outer).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """(N, E, outer) float32."""
        return stacked_affine(x, self.weight, self.bias)


class ExpertStack(nn.Module):
    """E MLPs side by side, (N, E, out_width); BatchNorm is per expert and unit.

    Args:
        first: The first layers of all experts, without activation; its output has N * E * widths[0] numbers.
        widths: Hidden widths of each expert.
        num_experts: E.
        dropout: Drop rate after each hidden layer.
        batch_norm: Whether hidden layers are normalised.
        linear_output: Whether the last layer is plain, without normalisation, ReLU and dropout.
    """

    def __init__(
        self,
        first: nn.Module,
        widths: Sequence[int],
        *,
        num_experts: int,
        dropout: float,
        batch_norm: bool,
        linear_output: bool = False,
    ) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.widths = tuple(widths)
        self.out_width = widths[-1]
        self.first = first
        self.linears = nn.ModuleList(
            StackedLinear(num_experts, inner, outer) for inner, outer in pairwise(widths)
        )
        self.activations = nn.ModuleList(
            Activation(num_experts * width, batch_norm=batch_norm, dropout=dropout) for width in widths
        )
        if linear_output:
            self.activations[-1] = nn.Identity()

    def forward(self, inputs: Sides | Tensor) -> Tensor:
        """(N, E, out_width) float32 from whatever the first layer reads."""
        x = self.first(inputs)
        x = self.activations[0](x.reshape(x.shape[0], self.num_experts * self.widths[0]))
        for linear, activation, width in zip(
            self.linears, self.activations[1:], self.widths[:-1], strict=True
        ):
            x = linear(x.reshape(x.shape[0], self.num_experts, width))
            x = activation(x.reshape(x.shape[0], self.num_experts * x.shape[2]))
        out: Tensor = x.reshape(x.shape[0], self.num_experts, self.out_width)
        return out


class StackedExperts(ExpertStack):
    """E expert MLPs over the same two-sided input; their first layers are one wide two-sided layer."""

    def __init__(
        self,
        request_width: int,
        row_width: int,
        widths: Sequence[int],
        *,
        num_experts: int,
        dropout: float,
        batch_norm: bool,
        linear_output: bool = False,
    ) -> None:
        super().__init__(
            TwoSidedLinear(request_width, row_width, num_experts * widths[0]),
            widths,
            num_experts=num_experts,
            dropout=dropout,
            batch_norm=batch_norm,
            linear_output=linear_output,
        )
