"""Parts of layers: some experts of a stack, some rows of a map, one domain's share of an input.

Works on copies; what is given stays as it is. Invariant: the numbers that stay are those of the whole layer,
up to rounding where a constant is folded.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from training.models.layers import ExpertStack, StackedLinear, TwoSidedLinear

Stack = TypeVar("Stack", bound=ExpertStack)


def keep_maps(linear: StackedLinear, experts: Sequence[int]) -> StackedLinear:
    """Some maps of a stack, in the order given."""
    own = copy.deepcopy(linear)
    index = torch.tensor(experts)
    own.weight = nn.Parameter(linear.weight.detach().index_select(0, index))
    own.bias = nn.Parameter(linear.bias.detach().index_select(0, index))
    return own


def keep_rows(linear: TwoSidedLinear, rows: Sequence[int]) -> TwoSidedLinear:
    """Some outputs of a two-sided map, in the order given."""
    own = copy.deepcopy(linear)
    index = torch.tensor(rows)
    for side in (own.request, own.row):
        side.out_features = len(rows)
        side.weight = nn.Parameter(side.weight.detach().index_select(0, index))
        if isinstance(side.bias, nn.Parameter):
            side.bias = nn.Parameter(side.bias.detach().index_select(0, index))
    return own


def blocks(chosen: Sequence[int], size: int) -> list[int]:
    """Positions of blocks of one size that lie one after the other."""
    return [number * size + k for number in chosen for k in range(size)]


def keep_experts(stack: Stack, experts: Sequence[int]) -> Stack:
    """Some experts of a stack whose normalisation is folded."""
    own = copy.deepcopy(stack)
    own.num_experts = len(experts)
    if isinstance(stack.first, TwoSidedLinear):
        own.first = keep_rows(stack.first, blocks(experts, stack.widths[0]))
    elif isinstance(stack.first, StackedLinear):
        own.first = keep_maps(stack.first, experts)
    else:
        raise TypeError(f"cannot take experts that start with {type(stack.first).__name__}")
    own.linears = nn.ModuleList(
        keep_maps(linear, experts) for linear in stack.linears if isinstance(linear, StackedLinear)
    )
    return own


def fold_domain(module: nn.Module, vector: Tensor) -> None:
    """Make the domain a constant of every two-sided map in a module, in place.

    Args:
        module: Its two-sided maps read the domain embedding in the last columns of the request side.
        vector: (domain_dim,) float32, embedding of the domain.
    """
    for part in module.modules():
        if isinstance(part, TwoSidedLinear):
            weight = part.request.weight.detach()
            constant = weight[:, -len(vector) :] @ vector
            if isinstance(part.request.bias, nn.Parameter):
                constant = constant + part.request.bias.detach()
            part.request.in_features = weight.shape[1] - len(vector)
            part.request.weight = nn.Parameter(weight[:, : -len(vector)].contiguous())
            part.request.bias = nn.Parameter(constant)
