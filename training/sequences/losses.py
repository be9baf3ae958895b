"""Losses of next-item prediction over several domains, and the weights that guard against negative transfer.

All losses are positive numbers to be minimised. Published forms that write log-likelihoods have their signs
turned.

    pair losses     of a positive's score and a negative's
    agreement       between two views of a user: bilinear scores against the other users of the batch
    transfer        weights of the domains in the cross loss: phi = single loss - cross loss > 0 where the
                    mixed view helps; what hurts a domain weighs less, but never less than a floor

Invariant: weights are constants for autograd. Down-weighting a domain trains its cross path less, which lets
phi fall further; the floor and a temperature of 1 keep that from running away.

Letters: D domains, P pairs, U users.

Source: SyNCRec (arXiv 2407.11245), LC-NTG and SC-MIM. Its weights are a softmax fed back into itself with
learned factors (`published_weights`), which runs to one domain when the temperature is small; ours are a
softmax of a running mean of phi.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

PairLoss = Literal["bce", "bpr_logit", "bpr_double_sigmoid"]
AgreementForm = Literal["infonce", "infonce_sigmoid", "published"]


def pair_loss(positive: Tensor, negative: Tensor, *, form: PairLoss) -> Tensor:
    """Loss of each pair, (P,).

    Args:
        positive: (P,) float32 scores of what came next.
        negative: (P,) float32 scores of what did not.
        form: `bce` takes both as logits on their own (what the released code runs; not bounded, and a logit
            that can be calibrated); `bpr_logit` is -log sigmoid(p - n); `bpr_double_sigmoid` the published
            -log sigmoid(sigmoid(p) - sigmoid(n)), which stays between .3133 and 1.3133.
    """
    if form == "bce":
        return functional.softplus(-positive) + functional.softplus(negative)
    if form == "bpr_logit":
        return functional.softplus(negative - positive)
    return functional.softplus(negative.sigmoid() - positive.sigmoid())


def domain_means(values: Tensor, domains: Tensor, *, num_domains: int) -> tuple[Tensor, Tensor]:
    """Mean of values by domain, (D,), 0 where there are none; and how many each has, (D,) float32.

    Args:
        values: (P,) float32.
        domains: (P,) int64 in [0, D).
        num_domains: D.
    """
    zeros = values.new_zeros(num_domains)
    count = zeros.index_add(0, domains, torch.ones_like(values))
    return zeros.index_add(0, domains, values) / count.clamp_min(1.0), count


def agreement_loss(
    single: Tensor, cross: Tensor, weight: Tensor, *, form: AgreementForm = "infonce"
) -> Tensor:
    """How badly the view of one domain tells its user from others in the mixed view; a scalar in nats.

    Args:
        single: (U, r) vectors of the users' single view.
        cross: (U, r) of their mixed view, at the same events.
        weight: (r, r) the bilinear form.
        form: `infonce` has a single view as anchor and its own mixed view among the choices;
            `infonce_sigmoid` squashes scores first; `published` has the mixed view as anchor, squashes, and
            leaves the positive out of the choices, so that it may be negative.
    """
    scores = single @ weight @ cross.T  # (U, U), rows single
    if form != "infonce":
        scores = scores.sigmoid()
    own = scores.diagonal()
    if form == "published":
        others = scores.masked_fill(torch.eye(len(scores), dtype=torch.bool, device=scores.device), -math.inf)
        return (others.logsumexp(dim=0) - own).mean()
    return (scores.logsumexp(dim=1) - own).mean()


def published_weights(
    weights: Tensor, phi: Tensor, *, alpha: float = 1.0, beta: float = 1.0, delta: float = 1.0
) -> Tensor:
    """One step of the published recursion, (D,): softmax((alpha weights + beta phi) / delta)."""
    return ((alpha * weights + beta * phi) / delta).softmax(dim=0)


class TransferWeights(nn.Module):
    """Weights of the domains in the cross loss, by a running mean of phi.

    s <- decay s + (1 - decay) phi;  weight = (1 - floor) softmax(s / delta) + floor / D

    Args:
        num_domains: D.
        decay: Of the running mean.
        delta: Temperature.
        floor: Share of weight that is spread evenly; 1 switches the guard off.
    """

    state: Tensor

    def __init__(
        self, *, num_domains: int, decay: float = 0.95, delta: float = 1.0, floor: float = 0.3
    ) -> None:
        super().__init__()
        self.decay = decay
        self.delta = delta
        self.floor = floor
        self.register_buffer("state", torch.zeros(num_domains))

    @torch.no_grad()
    def update(self, phi: Tensor, present: Tensor) -> Tensor:
        """Take in one step's phi and give the weights.

        Args:
            phi: (D,) float32; gradients are cut.
            present: (D,) bool; absent domains keep their state.

        Returns:
            (D,) float32, sums to 1, none below floor / D.
        """
        moved = self.decay * self.state + (1.0 - self.decay) * phi.detach()
        self.state.copy_(torch.where(present, moved, self.state))
        return self.weights()

    @torch.no_grad()
    def weights(self) -> Tensor:
        """(D,) float32 as they stand."""
        return (1.0 - self.floor) * (self.state / self.delta).softmax(dim=0) + self.floor / len(self.state)


def total_loss(
    single: Tensor, cross: Tensor, agreement: Tensor, weights: Tensor, *, eta: float, scaled: bool = True
) -> Tensor:
    """All parts of a step's loss in one scalar.

    Args:
        single: (D,) mean losses of the single views.
        cross: (D,) of the mixed view, over the same targets.
        agreement: (D,) agreement losses.
        weights: (D,) of the cross losses, constants.
        eta: Share of the predictions.
        scaled: Whether weights are multiplied by D, so that equal ones give the plain sum.
    """
    factor = float(len(weights)) if scaled else 1.0
    predictions = single.sum() + factor * (weights.detach() * cross).sum()
    return eta * predictions + (1.0 - eta) * agreement.sum()
