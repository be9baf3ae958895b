"""Batch normalisation over the rows of all ranks.

`share_norms` makes every normalisation of a model read the moments of the whole batch instead of one rank's
part of it, so that several processes compute what one would; parameters, buffers and their names stay.
torch's SyncBatchNorm runs on GPUs only. Invariants: only inside `SharedRows.step` do ranks talk, so what one
rank does with the model beside its steps keeps no other waiting; running moments are equal on all ranks.

Letters: N rows of this rank, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.models.star import PartitionedNorm


class SharedRows:
    """Whether the rows at hand are a part of a batch, and how parts add up.

    It has a process group of its own: gradients of layers may be on their way in the other one, and ranks
    need not hand those over at the same moment.
    """

    def __init__(self) -> None:
        self._group = dist.new_group()
        self._active = False

    def __deepcopy__(self, _memo: dict[int, Any]) -> SharedRows:
        """Itself: a copied model belongs to the same process."""
        return self

    @property
    def active(self) -> bool:
        """Whether a step is being computed."""
        return self._active

    @contextmanager
    def step(self) -> Iterator[None]:
        """All ranks compute the same step in the block."""
        self._active = True
        try:
            yield
        finally:
            self._active = False

    def sum(self, values: Tensor) -> Tensor:
        """Values added up over ranks, with a gradient."""
        return cast(Tensor, _SumOverRanks.apply(values, self._group))  # type: ignore[no-untyped-call]

    def sum_in_step(self, values: Tensor) -> Tensor:
        """As `sum` inside a step; else the values."""
        return self.sum(values) if self._active else values


class _SumOverRanks(torch.autograd.Function):
    """y = sum over ranks of x. Every rank's loss reads y, so dx is the sum of all ranks' dy."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = values.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total, None


class SharedBatchNorm(nn.BatchNorm1d):
    """Normalises with mean and variance of all ranks' rows; in evaluation mode as its base class.

    Moments are summed in float64, where one pass is exact enough.
    """

    def __init__(self, norm: nn.BatchNorm1d, rows: SharedRows) -> None:
        """Take the place of `norm`, with the same parameters and buffers.

        Args:
            norm: With running moments and affine parameters.
            rows: Of the training.
        """
        super().__init__(norm.num_features, eps=norm.eps, momentum=norm.momentum, device="meta")
        self._parameters = norm._parameters
        self._buffers = norm._buffers
        self.training = norm.training
        self._rows = rows

    def forward(self, x: Tensor) -> Tensor:
        """(N, C) float32; N may be 0 where other ranks have rows."""
        if not (self.training and self._rows.active):
            return super().forward(x)
        wide = x.double()
        count = wide.new_full((1,), x.shape[0])
        sums = self._rows.sum(torch.cat([count, wide.sum(dim=0), wide.square().sum(dim=0)]))
        total, first, second = torch.split(sums, [1, self.num_features, self.num_features])
        mean = first / total
        variance = (second / total - mean.square()).clamp_min(0.0)
        self._remember(mean.detach(), variance.detach(), total.detach())
        scale = self.weight * torch.rsqrt(variance + self.eps).float()
        shift = self.bias - mean.float() * scale
        normed: Tensor = x * scale + shift
        return normed.to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, total: Tensor) -> None:
        share = 0.1 if self.momentum is None else self.momentum
        unbiased = variance * total / (total - 1.0).clamp_min(1.0)
        for buffer, value in (("running_mean", mean), ("running_var", unbiased)):
            held = self.get_buffer(buffer)
            held.lerp_(value.to(held.dtype), share)
        self.get_buffer("num_batches_tracked").add_(1)


def share_norms(model: nn.Module, rows: SharedRows) -> None:
    """Let every normalisation of a model read the rows of all ranks, in place."""
    for module in list(model.modules()):
        if isinstance(module, PartitionedNorm):
            module.over_ranks = rows.sum_in_step
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm1d:
                setattr(module, name, SharedBatchNorm(child, rows))
