"""One training step's loss of a sequence net.

SyNCRec's has three parts: each domain's single loss, its cross loss over the same targets and negatives, and
the agreement of both views of a user. Invariant: weights of domains and the differences they follow from are
constants for autograd.

Letters: D domains, P targets.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from training.models.syncrec_net import SequenceNet, SyncrecNet
from training.sequences.batches import SequenceBatch
from training.sequences.losses import (
    AgreementForm,
    PairLoss,
    TransferWeights,
    agreement_loss,
    domain_means,
    pair_loss,
    total_loss,
)


class StepLoss(NamedTuple):
    """What a step minimises, and its parts for the log.

    Attributes:
        total: Scalar.
        single, cross: (D,) mean losses, detached; 0 for a view or domain that the batch lacks.
    """

    total: Tensor
    single: Tensor
    cross: Tensor


class Objective(Protocol):
    """Loss of one batch."""

    def __call__(self, net: SequenceNet, batch: SequenceBatch) -> StepLoss:
        """The loss of a batch in training mode."""


def target_losses(net: SequenceNet, batch: SequenceBatch, vectors: Tensor, *, form: PairLoss) -> Tensor:
    """(P,) losses of vectors (P, r) against the targets and their negatives."""
    items = net.items(torch.stack([batch.item, batch.negative]))  # (2, P, r)
    positive, negative = (vectors.unsqueeze(0) * items).sum(dim=2)
    return pair_loss(positive, negative, form=form)


class PlainObjective:
    """Mean loss of the net's only view: over all targets for the mixed one, by domain for the single one."""

    def __init__(self, *, loss: PairLoss, num_domains: int) -> None:
        self._loss = loss
        self._num_domains = num_domains

    def __call__(self, net: SequenceNet, batch: SequenceBatch) -> StepLoss:
        """See `Objective`."""
        none = torch.zeros(self._num_domains)
        if net.views == ("cross",):
            vectors, _ = batch.split(net.cross(batch.mixed, batch.cross_at))
        else:
            vectors, _ = batch.split(net.single(batch.singles, batch.single_at, batch.position_sizes))
        losses = target_losses(net, batch, vectors, form=self._loss)
        means, _ = domain_means(losses, batch.domain, num_domains=self._num_domains)
        if net.views == ("cross",):
            return StepLoss(losses.mean(), none, means.detach())
        return StepLoss(means.sum(), means.detach(), none)


class SyncrecObjective:
    """The whole loss; keeps the weights of domains from step to step in `transfer`."""

    def __init__(
        self, transfer: TransferWeights, *, loss: PairLoss, eta: float, agreement: AgreementForm
    ) -> None:
        self.transfer = transfer
        self._loss = loss
        self._eta = eta
        self._agreement = agreement

    def __call__(self, net: SequenceNet, batch: SequenceBatch) -> StepLoss:
        """See `Objective`."""
        if not isinstance(net, SyncrecNet):
            raise TypeError(f"SyNCRec's loss needs its net, got a {type(net).__name__}")
        cross, cross_last = batch.split(net.cross(batch.mixed, batch.cross_at))
        single, single_last = batch.split(net.single(batch.singles, batch.single_at, batch.position_sizes))
        domains = len(batch.sizes)
        single_mean, count = domain_means(
            target_losses(net, batch, single, form=self._loss), batch.domain, num_domains=domains
        )
        cross_mean, _ = domain_means(
            target_losses(net, batch, cross, form=self._loss), batch.domain, num_domains=domains
        )
        agreement = [
            agreement_loss(own, other, net.agreement[domain], form=self._agreement) / math.log(len(own))
            for domain, (own, other) in enumerate(zip(single_last, cross_last, strict=True))
            if len(own) > 1  # a user alone has no other to be told from
        ]
        parts = torch.stack(agreement) if agreement else single_mean.new_zeros(1)
        weights = self.transfer.update(single_mean - cross_mean, count > 0)
        total = total_loss(single_mean, cross_mean, parts, weights, eta=self._eta)
        return StepLoss(total, single_mean.detach(), cross_mean.detach())
