"""Levels of an expert pyramid as plain layers, for inference: a few experts at a time in one matrix.

Experts of a level are too small to keep a processor busy one by one, and a matrix of all of them is mostly
zeros; groups of experts up to `GROUP_WIDTH` numbers wide are the fastest at 1 to 500 rows. Invariant: outputs
are those of the experts run one by one, up to rounding.

Source: AREAD, arXiv 2412.11905, hierarchical expert integration (HEI); the form is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from training.models.layers import ExpertStack, StackedLinear

GROUP_WIDTH = 64
"""Widest block-diagonal layer of a group that holds more than one expert."""
MAX_MIXED_ENTRIES = 65536
"""Entries of a level's first layers above which constant mixing is not multiplied into them."""


class GroupedLevel(nn.Module):
    """One level on flat rows, (N, E * inner) to (N, E * outer); every layer is followed by ReLU.

    Args:
        stack: Its experts, normalisation folded.
        mixer: (E, F) float32 constants: what each expert reads of F flat blocks; None where expert e reads
            block e.
    """

    def __init__(self, stack: ExpertStack, mixer: Tensor | None = None) -> None:
        super().__init__()
        layers = [_stacked(layer) for layer in (stack.first, *stack.linears)]
        experts, self.inner, _ = layers[0].weight.shape
        entries = 0 if mixer is None else mixer.numel() * layers[0].weight[0].numel()
        self.folds = mixer is not None and entries <= MAX_MIXED_ENTRIES
        self.mixes = mixer is not None and not self.folds
        if mixer is not None and self.mixes:
            self.register_buffer("mixer", mixer)
        widest = max(max(layer.weight.shape[1:]) for layer in layers)
        size = max(1, GROUP_WIDTH // widest)
        bounds = [*range(0, experts, size), experts]
        self.sizes = [(end - start) * self.inner for start, end in pairwise(bounds)]
        self.layers = nn.ModuleList(
            _group(layers, start, end, mixer if self.folds else None) for start, end in pairwise(bounds)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, E * outer) float32 from (N, E * inner), or (N, F * inner) where there is a mixer."""
        if self.mixes:
            mixer = self.get_buffer("mixer")
            x = torch.matmul(mixer, x.reshape(x.shape[0], mixer.shape[1], self.inner))
            x = x.reshape(x.shape[0], mixer.shape[0] * self.inner)
        if self.folds or len(self.sizes) == 1:
            parts: Sequence[Tensor] = [x] * len(self.sizes)
        else:
            parts = torch.split(x, self.sizes, dim=1)
        done = []
        for part, layers in zip(parts, self.layers, strict=True):
            values = part
            for layer in layers if isinstance(layers, nn.ModuleList) else ():
                values = torch.relu(layer(values))
            done.append(values)
        return torch.cat(done, dim=1) if len(done) > 1 else done[0]


def _stacked(layer: nn.Module) -> StackedLinear:
    if not isinstance(layer, StackedLinear):
        raise TypeError(f"experts of a pyramid start with {type(layer).__name__}; expected StackedLinear")
    return layer


def _group(layers: Sequence[StackedLinear], start: int, end: int, mixer: Tensor | None) -> nn.ModuleList:
    """Layers of experts start..end - 1 as block-diagonal maps; constant mixing is in the first."""
    done = nn.ModuleList()
    for number, layer in enumerate(layers):
        weight, bias = layer.weight.detach()[start:end], layer.bias.detach()[start:end]
        if mixer is not None and number == 0:
            # W_e (sum_f m_ef x_f) = sum_f (m_ef W_e) x_f: mixing costs no operator of its own.
            spread = torch.einsum("ef,eko->eofk", mixer[start:end], weight).flatten(2).flatten(0, 1)
        else:
            spread = block_diagonal(weight.mT)
        own = nn.Linear(spread.shape[1], spread.shape[0])
        own.weight.copy_(spread)
        own.bias.copy_(bias.reshape(-1))
        done.append(own)
    return done


def block_diagonal(blocks: Tensor) -> Tensor:
    """(E * rows, E * columns) from (E, rows, columns)."""
    experts, rows, columns = blocks.shape
    spread = blocks.new_zeros(experts, rows, experts, columns)
    every = torch.arange(experts)
    spread[every, :, every] = blocks
    return spread.reshape(experts * rows, experts * columns)
