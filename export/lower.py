"""A ranker in the form that is exported: normalisation folded, layers replaced by what a graph runs fastest.

Reads any ranker in evaluation mode, whatever the method: only the shared building blocks are replaced.
Invariant: the lowered ranker gives the same logits, up to rounding; what it was made from stays as it is.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from export.chains import ExpertChains, TwoSidedGemm, plain_linear
from training.models.base import Ranker
from training.models.fold import fold_batch_norm
from training.models.layers import Activation, ExpertStack, TwoSidedLinear, TwoSidedMlp


@torch.no_grad()
def lower(ranker: Ranker) -> Ranker:
    """A copy of a ranker made of plain layers.

    Args:
        ranker: In evaluation mode.
    """
    own = copy.deepcopy(ranker).eval()
    fold_batch_norm(own)
    for part in [module for module in own.modules() if isinstance(module, TwoSidedMlp)]:
        _fold_mlp(part)
    replace_layers(own)
    return own


def replace_layers(module: nn.Module) -> None:
    """Put plain layers in the place of shared building blocks, in a module of any kind, in place."""
    for name, child in module.named_children():
        if isinstance(child, ExpertStack) and _is_folded(child):
            setattr(module, name, ExpertChains(child))
        elif isinstance(child, TwoSidedLinear):
            setattr(module, name, TwoSidedGemm.of(child))
        else:
            replace_layers(child)


def _is_folded(stack: ExpertStack) -> bool:
    return all(isinstance(getattr(a, "norm", a), nn.Identity) for a in stack.activations)


def _fold_mlp(mlp: TwoSidedMlp) -> None:
    """Fold the normalisation of an MLP into its layers, and leave its dropout out."""
    before: TwoSidedLinear | nn.Linear = mlp.first
    layers: list[nn.Module] = []
    for layer in mlp.rest:
        if isinstance(layer, Activation):
            if isinstance(layer.norm, nn.BatchNorm1d):
                _fold_line(before, layer.norm)
            layers.append(nn.ReLU())
        elif isinstance(layer, nn.Linear):
            before = plain_linear(layer.weight, layer.bias)
            layers.append(before)
        else:
            raise TypeError(f"cannot lower a {type(layer).__name__} inside an MLP")
    mlp.rest = nn.Sequential(*layers)


def _fold_line(before: TwoSidedLinear | nn.Linear, norm: nn.BatchNorm1d) -> None:
    if norm.running_mean is None or norm.running_var is None:
        raise TypeError("batch normalisation without running statistics has no inference form to fold")
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    shift = norm.bias - scale * norm.running_mean
    halves = (before.request, before.row) if isinstance(before, TwoSidedLinear) else (before,)
    for half in halves:
        half.weight.mul_(scale.unsqueeze(1))
    halves[0].bias.mul_(scale).add_(shift)
