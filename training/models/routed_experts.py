"""Routed experts for inference: N rows, each with its k experts and their weights, to (N, H).

    GroupedExperts   rows sorted by expert; each expert is computed on the rows that chose it
    DenseExperts     every expert on every row, the unchosen ones times 0: the reference
    StaticExperts    the same experts with the same weights for every row: nothing to choose

Invariants: the first two give the same numbers up to rounding; of `GroupedExperts` no row's output reads a
number that came from an expert the row did not choose, so weights of unchosen experts may even be nan.

Source: CESAA, arXiv 2411.06826, module CES; the forms are ours. Letters: H1 first hidden width, H output
width.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.models.base import Sides, at_rows
from training.models.layers import ExpertStack, StackedLinear, TwoSidedLinear
from training.models.slicing import keep_experts

NARROW = 64
"""Width up to which a request side is computed with each row."""


class DenseExperts(nn.Module):
    """Every expert on every row.

    Args:
        stack: E experts, normalisation folded.
    """

    def __init__(self, stack: ExpertStack) -> None:
        super().__init__()
        self.stack = stack

    def forward(self, sides: Sides, experts: Tensor, weights: Tensor) -> Tensor:
        """(N, H) float32 from experts (N, k) int64 and weights (N, k) float32."""
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
        """(n, H) from what the first layer adds, (n, H1) or (H1,), bias in it, and inputs (n, Q)."""
        x = torch.addmm(request, row, self.row)
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x = torch.addmm(bias, torch.relu(x), weight)
        return x


class GroupedExperts(nn.Module):
    """Each expert on its own rows.

    The N k choices are sorted by expert: the places of each expert's, one expert after the other. Results
    come back to the rows by the inverse of that order, so nothing is added up in an order of chance. A
    narrow request side joins the rows: gathering its half of the first layer costs more than computing it.

    Args:
        stack: E experts over two sides, normalisation folded.
    """

    def __init__(self, stack: ExpertStack) -> None:
        super().__init__()
        if not isinstance(stack.first, TwoSidedLinear):
            raise TypeError(f"cannot group experts that start with {type(stack.first).__name__}")
        request, row = stack.first.request, stack.first.row.weight.detach()
        self.joins = request.in_features <= NARROW
        self.first_width, self.out_width = stack.widths[0], stack.out_width
        if self.joins:
            row = torch.cat([request.weight.detach(), row], dim=1)
            biases = torch.split(request.bias.detach(), self.first_width)
            self.biases = nn.ParameterList(nn.Parameter(bias.clone()) for bias in biases)
        else:
            self.request = request
        rest = [linear for linear in stack.linears if isinstance(linear, StackedLinear)]
        self.experts = nn.ModuleList(
            ExpertLayers(own, [(linear.weight.detach()[e], linear.bias.detach()[e]) for linear in rest])
            for e, own in enumerate(torch.split(row, self.first_width))
        )

    def forward(self, sides: Sides, experts: Tensor, weights: Tensor) -> Tensor:
        """(N, H) float32 from experts (N, k) int64 and weights (N, k) float32."""
        N, k = experts.shape
        inputs = sides.row
        if self.joins:
            inputs = torch.cat([at_rows(sides.request, sides.request_index), inputs], dim=1)
            firsts = tuple(self.biases)
        else:
            firsts = torch.split(self.request(sides.request), self.first_width, dim=1)
        row_of = torch.arange(N).unsqueeze(1).expand(N, k).reshape(N * k)
        request_of = row_of if sides.request_index is None else sides.request_index.index_select(0, row_of)
        choices, factors = experts.reshape(N * k), weights.reshape(N * k, 1)
        values, places = [], []
        for number, (expert, first) in enumerate(zip(self.experts, firsts, strict=True)):
            place = torch.nonzero(choices == number).squeeze(1)
            own = first if self.joins else first.index_select(0, request_of.index_select(0, place))
            value = expert(own, inputs.index_select(0, row_of.index_select(0, place)))
            values.append(value * factors.index_select(0, place))
            places.append(place)
        every = torch.cat(values)
        back = torch.zeros_like(choices).scatter(0, torch.cat(places), torch.arange(N * k)).reshape(N, k)
        mixed = every.index_select(0, back[:, 0])
        for number in range(1, k):
            mixed = mixed + every.index_select(0, back[:, number])
        return mixed


class StaticExperts(nn.Module):
    """Some experts with constant weights, mixing multiplied into their last layers.

    Args:
        stack: E experts, normalisation folded.
        experts: Numbers of those in use.
        weights: Their weights.
    """

    def __init__(self, stack: ExpertStack, experts: Sequence[int], weights: Sequence[float]) -> None:
        super().__init__()
        own = keep_experts(stack, experts)
        mix = torch.tensor(list(weights))
        self.hidden = nn.ModuleList()
        self.out: nn.Module
        if not len(own.linears):
            self.out = _mixed_first(own, mix)
            return
        *_, last = own.linears
        if not isinstance(last, StackedLinear):
            raise TypeError(f"an expert ends in {type(last).__name__}; expected StackedLinear")
        self.hidden.extend(_without_last(keep_experts(own, [e])) for e in range(own.num_experts))
        scaled = last.weight.detach() * mix.reshape(-1, 1, 1)
        self.lasts = nn.ParameterList(nn.Parameter(weight.contiguous()) for weight in scaled)
        self.register_buffer("bias", mix @ last.bias.detach())

    def forward(self, sides: Sides, experts: Tensor, weights: Tensor) -> Tensor:  # noqa: ARG002 (constants)
        """(N, H) float32; what is chosen makes no difference."""
        if not len(self.hidden):
            mixed: Tensor = self.out(sides)
            return mixed
        total = self.get_buffer("bias")
        for hidden, last in zip(self.hidden, self.lasts, strict=True):
            total = torch.addmm(total, hidden(sides).flatten(1), last)
        return total


def _without_last(stack: ExpertStack) -> ExpertStack:
    """The hidden layers alone, activated."""
    own = copy.copy(stack)
    own._modules = dict(stack._modules)
    own.linears = nn.ModuleList(list(stack.linears)[:-1])
    own.activations = nn.ModuleList(list(stack.activations)[:-1])
    own.widths = stack.widths[:-1]
    own.out_width = own.widths[-1]
    return own


def _mixed_first(stack: ExpertStack, mix: Tensor) -> TwoSidedLinear:
    """Weighted sum of experts that are one linear map each."""
    first = stack.first
    if not isinstance(first, TwoSidedLinear):
        raise TypeError(f"cannot mix experts that start with {type(first).__name__}")
    own = copy.deepcopy(first)

    def mixed(values: Tensor) -> Tensor:
        by_expert = values.detach().reshape(stack.num_experts, stack.out_width, -1)
        return torch.einsum("e,eoi->oi", mix, by_expert)

    for side in (own.request, own.row):
        side.out_features = stack.out_width
        side.weight = nn.Parameter(mixed(side.weight))
    own.request.bias = nn.Parameter(mixed(first.request.bias).squeeze(1))
    return own
