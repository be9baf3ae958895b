"""Losses of sequences: worked numbers, bounds and signs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from training.sequences.losses import (
    TransferWeights,
    agreement_loss,
    domain_means,
    pair_loss,
    published_weights,
    total_loss,
)

SINGLE, CROSS = torch.tensor([0.6, 0.5, 0.7]), torch.tensor([0.5, 0.6, 0.7])
EVEN = torch.full((3,), 1 / 3)


def near(found: Tensor, *wanted: float) -> None:
    """Equal within 1e-6."""
    assert found.flatten().tolist() == pytest.approx(wanted, abs=1e-6)


def test_pair_losses_at_scores_two_and_minus_one() -> None:
    """BPR on logits .048587, of sigmoids .433303, BCE .440190."""
    positive, negative = torch.tensor([2.0]), torch.tensor([-1.0])

    near(pair_loss(positive, negative, form="bpr_logit"), 0.048587)
    near(pair_loss(positive, negative, form="bpr_double_sigmoid"), 0.433303)
    near(pair_loss(positive, negative, form="bce"), 0.440190)


def test_the_double_sigmoid_stays_between_two_bounds() -> None:
    """.313262 for the best pair, 1.313262 for the worst."""
    extremes = torch.tensor([50.0, -50.0])

    near(pair_loss(extremes, -extremes, form="bpr_double_sigmoid"), 0.313262, 1.313262)


def test_phi_is_single_less_cross() -> None:
    """Losses .6 .5 .7 and .5 .6 .7 give .1 -.1 0."""
    near(SINGLE - CROSS, 0.1, -0.1, 0.0)


@pytest.mark.parametrize(
    ("delta", "beta", "wanted"),
    [
        (1.0, 1.0, (0.367165, 0.300610, 0.332225)),
        (0.1, 1.0, (0.665241, 0.090031, 0.244728)),
        (0.05, 1.0, (0.866813, 0.015876, 0.117310)),
        (1.0, -1.0, (0.300610, 0.367165, 0.332225)),
    ],
)
def test_the_published_recursion_from_even_weights(
    delta: float, beta: float, wanted: tuple[float, ...]
) -> None:
    """One step from even weights; a negative factor turns the scheme round."""
    near(published_weights(EVEN, SINGLE - CROSS, beta=beta, delta=delta), *wanted)


def test_the_fed_back_softmax_runs_to_one_domain_in_three_steps() -> None:
    """At temperature .1 the third step is one-hot; at 1 it settles at .3850 .2853 .3296."""
    hot, mild = EVEN, EVEN
    for _ in range(3):
        hot = published_weights(hot, SINGLE - CROSS, delta=0.1)
    for _ in range(60):
        mild = published_weights(mild, SINGLE - CROSS)

    assert hot.tolist() == pytest.approx((1.0, 0.0, 0.0), abs=5e-5)
    assert mild.tolist() == pytest.approx((0.3850, 0.2853, 0.3296), abs=1e-4)


def test_weights_follow_the_running_mean() -> None:
    """Decay .9, temperature .1, no floor: step 1 .367165 .300610 .332225, step 3 .426585 .248095 .325321."""
    weights = TransferWeights(num_domains=3, decay=0.9, delta=0.1, floor=0.0)
    all_there = torch.ones(3, dtype=torch.bool)

    near(weights.update(SINGLE - CROSS, all_there), 0.367165, 0.300610, 0.332225)
    weights.update(SINGLE - CROSS, all_there)
    near(weights.update(SINGLE - CROSS, all_there), 0.426585, 0.248095, 0.325321)


def test_an_absent_domain_keeps_its_state() -> None:
    """Only what the batch has moves."""
    weights = TransferWeights(num_domains=3)
    weights.update(torch.tensor([0.0, 0.0, 9.0]), torch.tensor([True, True, False]))

    assert weights.state.tolist() == [0.0, 0.0, 0.0]


def test_weights_sum_to_one_hold_the_floor_and_rise_with_phi() -> None:
    """Even for a domain that the mixed view ruins."""
    weights = TransferWeights(num_domains=3, decay=0.0, delta=0.01, floor=0.3)
    found = weights.update(torch.tensor([5.0, -5.0, 4.0]), torch.ones(3, dtype=torch.bool))

    assert float(found.sum()) == pytest.approx(1.0)
    assert float(found.min()) >= 0.1 - 1e-7
    more = weights.update(torch.tensor([5.0, -5.0, 4.99]), torch.ones(3, dtype=torch.bool))
    assert more[2] > found[2]
    assert more[1] == pytest.approx(0.1)


def test_weights_give_no_gradient() -> None:
    """Neither to phi nor, through the total, to anything but the losses."""
    phi = torch.tensor([0.1, -0.1, 0.0], requires_grad=True)
    weights = TransferWeights(num_domains=3).update(phi, torch.ones(3, dtype=torch.bool))
    cross = CROSS.clone().requires_grad_()
    total_loss(SINGLE, cross, torch.zeros(3), weights, eta=1.0).backward()

    assert not weights.requires_grad
    assert phi.grad is None
    assert cross.grad is not None
    near(cross.grad, *(3 * weights).tolist())


def test_the_total_in_the_published_form() -> None:
    """.665241 .090031 .244728 on losses .5 .6 .7 is .557949; with agreement 1 .9 1.1 and eta .7, 2.550564."""
    weights = torch.tensor([0.665241, 0.090031, 0.244728])
    only_cross = total_loss(torch.zeros(3), CROSS, torch.zeros(3), weights, eta=1.0, scaled=False)
    whole = total_loss(SINGLE, CROSS, torch.tensor([1.0, 0.9, 1.1]), weights, eta=0.7, scaled=False)

    near(only_cross, 0.557949)
    near(whole, 2.550564)


def test_even_weights_give_the_plain_sum() -> None:
    """The factor D makes an indifferent guard no change."""
    near(total_loss(torch.zeros(3), CROSS, torch.zeros(3), EVEN, eta=1.0), 1.8)


U = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
V = torch.tensor([[0.8, 0.6], [0.0, 1.0], [1.0, 0.0]])


def test_agreement_of_a_worked_matrix() -> None:
    """Rows (.8 0 1), (.6 1 0), (.96 .8 .6): InfoNCE .996814, squashed 1.063757, published .639857."""
    near((U @ V.T)[2], 0.96, 0.8, 0.6)
    near(agreement_loss(U, V, torch.eye(2)), 0.996814)
    near(agreement_loss(U, V, torch.eye(2), form="infonce_sigmoid"), 1.063757)
    near(agreement_loss(U, V, torch.eye(2), form="published"), 0.639857)


def test_a_squashed_agreement_has_a_high_floor() -> None:
    """Of log 128 = 4.852 nats at 128 users it can only fall to -1 + log(e + 127) = 3.865."""
    perfect = 200.0 * torch.eye(128) - 100.0
    loss = agreement_loss(perfect, torch.eye(128), torch.eye(128), form="infonce_sigmoid")

    near(loss, -1.0 + math.log(math.e + 127.0))
    assert float(loss) == pytest.approx(3.865, abs=1e-3)


def test_means_by_domain() -> None:
    """A domain without values has mean 0 and count 0."""
    means, count = domain_means(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 2]), num_domains=3)

    assert means.tolist() == [2.0, 0.0, 5.0]
    assert count.tolist() == [2.0, 0.0, 1.0]
