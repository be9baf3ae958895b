"""Routed experts for inference: N rows, each with its k experts and their weights, to (N, H).

    GroupedExperts   rows sorted by expert; each expert is computed on the rows that chose it
    DenseExperts     every expert on every row, the unchosen ones times 0: the reference

Invariants: both give the same numbers up to rounding; of `GroupedExperts` no row's output reads a number that
came from an expert the row did not choose, so weights of unchosen experts may even be nan.

Source: CESAA, arXiv 2411.06826, module CES; the form is ours. Letters: H1 first hidden width, H output width.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from training.models.base import Sides
from training.models.layers import ExpertStack, StackedLinear, TwoSidedLinear


class RoutedPart(Protocol):
    """Computes the chosen experts."""

    def __call__(self, sides: Sides, experts: Tensor, weights: Tensor) -> Tensor:
        """(N, H) float32 from experts (N, k) int64 and weights (N, k) float32."""
        ...


class DenseExperts(nn.Module):
    """Every expert on every row.

    Args:
        stack: E experts, normalisation folded.
    """

    def __init__(self, stack: ExpertStack) -> None:
        super().__init__()
        self.stack = stack

    def forward(self, sides: Sides, experts: Tensor, weights: Tensor) -> Tensor:
        """(N, H) float32."""
        values = self.stack(sides)
        mask = torch.zeros(values.shape[0], values.shape[1]).scatter(1, experts, weights)
        mixed: Tensor = torch.matmul(mask.unsqueeze(1), values).squeeze(1)
        return mixed


class ExpertLayers(nn.Module):
    """One expert of a stack as plain layers.

    Args:
        row: (H1, Q) float32, the row half of the first layer.
        layers: Weights (inner, outer) and biases (outer,) of the layers after it.
    """

    def __init__(self, row: Tensor, layers: list[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.row = nn.Parameter(row.t().contiguous())
        self.weights = nn.ParameterList(nn.Parameter(weight.contiguous()) for weight, _ in layers)
        self.biases = nn.ParameterList(nn.Parameter(bias.contiguous()) for _, bias in layers)

    def forward(self, request: Tensor, row: Tensor) -> Tensor:
        """(n, H) from the request half of the first layer (n, H1), bias in it, and inputs (n, Q)."""
        x = request + torch.matmul(row, self.row)
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x = torch.addmm(bias, torch.relu(x), weight)
        return x


class GroupedExperts(nn.Module):
    """Each expert on its own rows.

    The N k choices are sorted by expert: the places of each expert's, one expert after the other. Results
    come back to the rows by the inverse of that order, so nothing is added up in an order of chance.

    Args:
        stack: E experts over two sides, normalisation folded.
    """

    def __init__(self, stack: ExpertStack) -> None:
        super().__init__()
        if not isinstance(stack.first, TwoSidedLinear):
            raise TypeError(f"cannot group experts that start with {type(stack.first).__name__}")
        self.request = stack.first.request
        self.first_width, self.out_width = stack.widths[0], stack.out_width
        rows = torch.split(stack.first.row.weight.detach(), self.first_width)
        rest = [linear for linear in stack.linears if isinstance(linear, StackedLinear)]
        self.experts = nn.ModuleList(
            ExpertLayers(row, [(linear.weight.detach()[e], linear.bias.detach()[e]) for linear in rest])
            for e, row in enumerate(rows)
        )

    def forward(self, sides: Sides, experts: Tensor, weights: Tensor) -> Tensor:
        """(N, H) float32."""
        k = experts.shape[1]
        requests = torch.split(self.request(sides.request), self.first_width, dim=1)
        choices = experts.reshape(-1)
        values, places = [], []
        for number, (expert, request) in enumerate(zip(self.experts, requests, strict=True)):
            place = torch.nonzero(choices == number).squeeze(1)
            row = torch.div(place, k, rounding_mode="floor")
            of_request = row if sides.request_index is None else sides.request_index.index_select(0, row)
            own = request.index_select(0, of_request)
            values.append(expert(own, sides.row.index_select(0, row)))
            places.append(place)
        order = torch.cat(places)
        back = torch.zeros_like(choices).scatter(0, order, torch.arange(choices.shape[0]))
        by_row = torch.cat(values).index_select(0, back).reshape(experts.shape[0], k, self.out_width)
        mixed: Tensor = (weights.unsqueeze(2) * by_row).sum(dim=1)
        return mixed
