"""Tune stacked candidates for a few steps and prune them on the way; score them on real rows.

Every candidate takes its own Adam steps on its own copy of gates, pyramid and heads; nothing of the model is
written. Invariant: candidates do not touch each other, so each ends as it would alone.

Letters: n domains, Z candidates of each, N rows, H heads, X edges, E base experts.

Source: AREAD, arXiv 2412.11905, section HEMP. We differ in leaving the base as it is, in evaluation mode
while tuning (no dropout, fixed normalisation statistics), in reading the gates in closed form after each
step, and in scores without the L2 term.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from training.masks.prune import pruned, pruned_to
from training.masks.stack import CachedRows, CandidateStack
from training.models.mask import BoolArray, PyramidShape
from training.models.pyramid import mean_logit

BETAS = (0.9, 0.99)
EPS = 1e-8


@dataclass(frozen=True)
class TuningRules:
    """How candidates are tuned, pruned and scored.

    Attributes:
        steps: Adam steps.
        lr: Of Adam.
        rows: Rows of each step, and of each batch of the score.
        eval_batches: Batches of the score.
        chunk_candidates: Candidates tuned together at most, for memory's sake; a domain's go together.
        prune_quantile: Share of the weaker level's gates that a prune deletes.
    """

    steps: int = 5
    lr: float = 1e-2
    rows: int = 32
    eval_batches: int = 5
    chunk_candidates: int = 144
    prune_quantile: float = 0.05


class StackedAdam:
    """Adam (Kingma and Ba, 2015) on tensors whose leading axes are independent copies.

    Args:
        parameters: Leaves, changed in place.
        lr: Step size.
    """

    def __init__(self, parameters: dict[str, Tensor], *, lr: float) -> None:
        self._parameters = parameters
        self._lr = lr
        self._step = 0
        self._first = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self._second = {name: torch.zeros_like(p) for name, p in parameters.items()}

    def step(self, gradients: dict[str, Tensor | None]) -> None:
        """One step; a parameter without a gradient stays."""
        self._step += 1
        first_beta, second_beta = BETAS
        rate = self._lr / (1.0 - first_beta**self._step)
        root = (1.0 - second_beta**self._step) ** 0.5
        with torch.no_grad():
            for name, gradient in gradients.items():
                if gradient is None:
                    continue
                first, second = self._first[name], self._second[name]
                first.lerp_(gradient, 1.0 - first_beta)
                second.mul_(second_beta).addcmul_(gradient, gradient, value=1.0 - second_beta)
                size = (second.sqrt() / root).add_(EPS)
                self._parameters[name].addcdiv_(first, size, value=-rate)


def tuned(
    stack: CandidateStack,
    bits: BoolArray,
    rows: CachedRows,
    shape: PyramidShape,
    *,
    rules: TuningRules,
    target_density: float,
) -> BoolArray:
    """Tune and prune; gives the masks (n, Z, X) that candidates end with.

    Args:
        stack: Its parameters are changed.
        bits: (n, Z, X) valid masks.
        rows: steps * N rows of each domain; step t takes the t-th N.
        shape: Of the pyramid.
        rules: How.
        target_density: Density at or below which pruning stops after the last step.
    """
    device = rows.labels.device
    adam = StackedAdam(stack.parameters, lr=rules.lr)
    gates: list[NDArray[np.float32]] = []
    flat = bits.reshape(-1, shape.num_edges)
    for step in range(rules.steps):
        part = rows.part(slice(step * rules.rows, (step + 1) * rules.rows))
        mine = torch.from_numpy(flat.reshape(bits.shape)).to(device)
        logits, log_weights = stack.heads(mine, part)
        loss = head_losses(logits, log_weights.exp(), part.labels).sum()
        found = torch.autograd.grad(loss, list(stack.parameters.values()), allow_unused=True)
        adam.step(dict(zip(stack.parameters, found, strict=True)))
        gates = pruning_gates(stack.gates(mine), part.base_gates(), shape)
        flat = pruned(flat, gates, shape, quantile=rules.prune_quantile)
    flat = pruned_to(flat, gates, shape, quantile=rules.prune_quantile, target_density=target_density)
    return flat.reshape(bits.shape)


def head_losses(logits: Tensor, weights: Tensor, labels: Tensor) -> Tensor:
    """Mean over rows and weighted heads of the cross-entropy, (n, Z) in nats.

    Args:
        logits: (n, Z, H, N).
        weights: (n, Z, H), 0 for heads that are left out.
        labels: (n, N).
    """
    losses = functional.softplus(logits) - labels[:, None, None, :] * logits
    return (losses.mean(dim=-1) * weights).sum(dim=-1)


def pruning_gates(
    gates: Sequence[Tensor], base: Tensor | None, shape: PyramidShape
) -> list[NDArray[np.float32]]:
    """Gates of every masked level, (n * Z, N_{l-1}, N_l) each.

    Args:
        gates: (n, Z, N_{l-1}, N_l) in closed form; those over the base first where they go by domain.
        base: (n, E, N_0) mean gates over base experts, or None.
        shape: Of the pyramid; without a `base_width` gates over the base are no matter of masks.
    """
    levels = list(gates)
    if not shape.base_width:
        levels = levels[-(len(shape.widths) - 1) :]
    elif base is not None:
        levels.insert(0, base.unsqueeze(1).expand(-1, levels[0].shape[1], -1, -1))
    return [level.reshape(-1, *level.shape[2:]).cpu().numpy() for level in levels]


def scores(stack: CandidateStack, bits: BoolArray, rows: CachedRows) -> NDArray[np.float64]:
    """(n, Z) mean cross-entropy of the mean probability over the heads, in nats per row.

    Args:
        stack: With tuned parameters.
        bits: (n, Z, X) masks.
        rows: Real rows of the domains, the same for all candidates of a domain.
    """
    with torch.no_grad():
        logits, log_weights = stack.heads(torch.from_numpy(bits).to(rows.labels.device), rows)
        n, Z, H, N = logits.shape
        by_row = logits.mT.reshape(-1, H)
        mean = mean_logit(by_row, log_weights.repeat_interleave(N, dim=1).reshape(-1, H)).reshape(n, Z, N)
        wanted = rows.labels.unsqueeze(1).expand_as(mean)
        losses = functional.binary_cross_entropy_with_logits(mean.double(), wanted.double(), reduction="none")
    found: NDArray[np.float64] = losses.mean(dim=-1).cpu().numpy()
    return found
