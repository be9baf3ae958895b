"""How much the choice of experts and the domain say about each other, I(E;D) in nats.

    P(E_i, D_j) = P(D_j) * mean of pi[b, i] over the rows b of domain j
    I(E;D)      = sum_ij P(E_i, D_j) log( P(E_i, D_j) / (P(E_i) P(D_j)) )  =  H(E) - sum_j P(D_j) H(E | D_j)

Training adds -weight * I to the loss: each domain's choice gets sharp and the load of experts spreads, so no
separate loss for balance is wanted. pi is the softmax over all experts, not the weights of the chosen ones:
only so does an expert that nobody chose get a gradient. A batch's I is too high by about (E-1)(D-1)/(2B).

Source: CESAA, arXiv 2411.06826, module AEA; the form is that of Mod-Squad, arXiv 2212.08066, without the
constants added inside its logarithms.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Prior = Literal["batch", "uniform"]
"""P(D): the share of each domain's rows, or the same for every domain that has rows."""

_TINY = 1e-30


def joint_distribution(pi: Tensor, domain: Tensor, *, num_domains: int, prior: Prior) -> Tensor:
    """P(D, E), (D, E) float32; rows of unknown domains do not count, domains without rows are 0.

    Args:
        pi: (N, E) float32, rows sum to 1.
        domain: (N,) int64, D for unknown.
        num_domains: D.
        prior: What P(D) is.
    """
    sums = pi.new_zeros(num_domains + 1, pi.shape[1]).index_add(0, domain, pi)[:num_domains]
    counts = torch.bincount(domain, minlength=num_domains + 1)[:num_domains].to(pi.dtype)
    if prior == "batch":
        return sums / counts.sum().clamp_min(1.0)
    present = (counts > 0).sum().clamp_min(1)
    return sums / (counts.clamp_min(1.0).unsqueeze(1) * present)


def mutual_information(joint: Tensor) -> Tensor:
    """I in nats, a scalar, of a joint distribution (D, E); 0 log 0 is 0."""
    return _entropy(joint.sum(dim=0)) + _entropy(joint.sum(dim=1)) - _entropy(joint.flatten())


def _entropy(probabilities: Tensor) -> Tensor:
    """H in nats; its gradient is finite where a probability is 0."""
    return -(probabilities * probabilities.clamp_min(_TINY).log()).sum()
