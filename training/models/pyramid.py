"""The expert pyramid: levels of expert MLPs, each expert reading a weighted mean of the level below.

Holds no gates: the weights come from outside, already masked. Invariant: an expert whose weights are all 0,
and which nothing reads, changes no output, whatever its parameters are.

Source: AREAD, arXiv 2412.11905, hierarchical expert integration (HEI).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.models.layers import ExpertStack, StackedLinear
from training.models.pyramid_groups import GroupedLevel, block_diagonal

MAX_LOGIT = 80.0
"""Larger than any logit that says something; its exponential is still a float32."""


class Pyramid(nn.Module):
    """Levels 0..L of N_l experts, and a linear head on each expert of the last level.

    Args:
        input_width: Width of what each expert of level 0 reads.
        num_experts: N_0 .. N_L.
        widths: Hidden widths of the experts, one entry per level.
        dropout: Drop rate after each hidden layer.
        batch_norm: Whether hidden layers are normalised, per expert and unit.
    """

    def __init__(
        self,
        *,
        input_width: int,
        num_experts: Sequence[int],
        widths: Sequence[Sequence[int]],
        dropout: float,
        batch_norm: bool,
    ) -> None:
        super().__init__()
        inner = [input_width, *(level[-1] for level in widths)]
        self.levels = nn.ModuleList(
            ExpertStack(
                StackedLinear(count, below, level[0]),
                level,
                num_experts=count,
                dropout=dropout,
                batch_norm=batch_norm,
            )
            for count, below, level in zip(num_experts, inner, widths, strict=False)
        )
        bound = 1.0 / math.sqrt(inner[-1])
        self.head = nn.Parameter(torch.empty(num_experts[-1], inner[-1]).uniform_(-bound, bound))

    def forward(self, x: Tensor, mixers: Sequence[Tensor], shared: Tensor) -> Tensor:
        """Logits of the heads.

        Args:
            x: (N, N_0, input_width) float32, inputs of level 0.
            mixers: (N, N_l, N_{l-1}) float32 for l = 1..L: what each expert reads of the level below.
            shared: (N, N_L) float32, the part of each head's logit that the pyramid has no say in.

        Returns:
            (N, N_L) float32.
        """
        x = self.levels[0](x)
        for level, mixer in zip(self.levels[1:], mixers, strict=True):
            x = level(torch.matmul(mixer, x))
        out: Tensor = (x * self.head).sum(dim=-1) + shared
        return out

    def freeze(self) -> FrozenPyramid:
        """The same for inference; batch normalisation must be folded before."""
        with torch.no_grad():
            return FrozenPyramid(self)


class FrozenPyramid(nn.Module):
    """`Pyramid` for inference, in few and small operators.

    Args:
        pyramid: In evaluation form, without normalisation.
    """

    def __init__(self, pyramid: Pyramid) -> None:
        super().__init__()
        self.levels = nn.ModuleList()
        self.sizes: list[tuple[int, int]] = []  # experts and width of each level
        for stack in pyramid.levels:
            if not isinstance(stack, ExpertStack):
                raise TypeError(f"a level of {type(stack).__name__}; expected ExpertStack")
            self.levels.append(GroupedLevel(stack))
            self.sizes.append((stack.num_experts, stack.out_width))
        self.head = joined_heads(pyramid.head)

    def forward(self, x: Tensor, mixers: Sequence[Tensor], shared: Tensor) -> Tensor:
        """Logits (N, N_L) of the heads, arguments as for `Pyramid`."""
        num_rows = x.shape[0]
        for number, level in enumerate(self.levels):
            if number:
                experts, width = self.sizes[number - 1]
                x = torch.matmul(mixers[number - 1], x.reshape(num_rows, experts, width))
            x = level(x.reshape(num_rows, x.shape[1] * x.shape[2]))
        return torch.addmm(shared, x, self.head.weight.t())


def joined(linear: nn.Module) -> nn.Linear:
    """A stack of E affine maps as one layer of flat rows, (N, E * inner) to (N, E * outer)."""
    if not isinstance(linear, StackedLinear):
        raise TypeError(f"a layer of maps is a {type(linear).__name__}; expected StackedLinear")
    experts, inner, outer = linear.weight.shape
    own = nn.Linear(experts * inner, experts * outer)
    own.weight.copy_(block_diagonal(linear.weight.mT))
    own.bias.copy_(linear.bias.reshape(-1))
    return own


def joined_heads(head: Tensor) -> nn.Linear:
    """Linear heads (H, width), each on its own expert, as one map of flat rows, (N, H * width) to (N, H)."""
    own = nn.Linear(head.numel(), head.shape[0], bias=False)
    own.weight.copy_(block_diagonal(head.unsqueeze(1)))
    return own


def mean_logit(head_logits: Tensor, log_weights: Tensor) -> Tensor:
    """Logit (N,) of the weighted mean of the heads' probabilities, exact for logits of any size.

    With s = softplus(z): log sigmoid(-z) = -s and log sigmoid(z) = z - s, so the two log-sum-exps of
    log w - s + z and log w - s are log p and log(1 - p).

    Args:
        head_logits: (N, H) float32.
        log_weights: (N, H) float32, logarithms of weights that sum to 1; -inf leaves a head out.
    """
    ignored = log_weights - functional.softplus(head_logits)
    return torch.logsumexp(ignored + head_logits, dim=1) - torch.logsumexp(ignored, dim=1)


def mean_logit_of_sums(head_logits: Tensor, weights: Tensor) -> Tensor:
    """The same from p and 1 - p themselves, for inference: a fifth of the work.

    Args:
        head_logits: (N, H) float32; exact up to logits of `MAX_LOGIT`.
        weights: (N, H) or (1, H) float32, rows sum to 1.
    """
    odds = head_logits.clamp(-MAX_LOGIT, MAX_LOGIT).exp()
    ignored = (1.0 + odds).reciprocal()
    clicked = odds * ignored
    return ((weights * clicked).sum(dim=1) / (weights * ignored).sum(dim=1)).log()
