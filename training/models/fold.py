"""Batch normalisation folded into the affine map before it, for inference.

BN(W x + b) = s (W x + b) + t with s = gamma / sqrt(var + eps) and t = beta - s mean, per unit. Invariant: in
evaluation mode outputs stay what they were, up to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.models.layers import Activation, ExpertStack, StackedLinear, TwoSidedLinear
from training.models.ple import SlotExperts


@torch.no_grad()
def fold_batch_norm(module: nn.Module) -> None:
    """Fold the normalisation of every expert stack in a module, in place."""
    for stack in [part for part in module.modules() if isinstance(part, ExpertStack)]:
        for before, activation in zip([stack.first, *stack.linears], stack.activations, strict=True):
            if isinstance(activation, Activation) and isinstance(activation.norm, nn.BatchNorm1d):
                _fold(before, *_line(activation.norm))
                activation.norm = nn.Identity()


def _line(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Scale s and shift t (units,) of a layer with running statistics."""
    if norm.running_mean is None or norm.running_var is None:
        raise TypeError("batch normalisation without running statistics has no inference form to fold")
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return scale, norm.bias - scale * norm.running_mean


def _fold(before: nn.Module, scale: Tensor, shift: Tensor) -> None:
    if isinstance(before, SlotExperts):
        before = before.linear
    if isinstance(before, TwoSidedLinear):
        before.request.weight.mul_(scale.unsqueeze(1))
        before.row.weight.mul_(scale.unsqueeze(1))
        before.request.bias.mul_(scale).add_(shift)
    elif isinstance(before, StackedLinear):
        size = before.bias.shape
        before.weight.mul_(scale.reshape(size[0], 1, size[1]))
        before.bias.mul_(scale.reshape(size)).add_(shift.reshape(size))
    else:
        raise TypeError(f"cannot fold batch normalisation into {type(before).__name__}")
