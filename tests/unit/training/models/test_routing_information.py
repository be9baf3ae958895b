"""I(E;D): numbers worked out by hand, its bounds, its gradient, both priors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from training.models.routing_information import Prior, joint_distribution, mutual_information

TWO_BY_TWO = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.2, 0.8]])


def information(pi: Any, domains: list[int], *, prior: Prior = "batch", num_domains: int = 4) -> float:
    pi = torch.as_tensor(pi)
    joint = joint_distribution(pi, torch.tensor(domains), num_domains=num_domains, prior=prior)
    return float(mutual_information(joint))


def test_joint_distribution_by_hand():
    """P(E|D) is (.85, .15) and (.25, .75), each domain half of the batch."""
    joint = joint_distribution(TWO_BY_TWO, torch.tensor([0, 0, 1, 1]), num_domains=2, prior="batch")

    torch.testing.assert_close(joint, torch.tensor([[0.425, 0.075], [0.125, 0.375]]))


def test_information_is_entropy_less_conditional_entropy():
    """H(E) = .688139, H(E|D) = .492522."""

    def entropy(*p: float) -> float:
        return -sum(x * math.log(x) for x in p)

    expected = entropy(0.55, 0.45) - (entropy(0.85, 0.15) + entropy(0.25, 0.75)) / 2
    assert expected == pytest.approx(0.688139 - 0.492522, abs=1e-6)
    assert information(TWO_BY_TWO, [0, 0, 1, 1]) == pytest.approx(0.195617, abs=1e-6)
    assert information(TWO_BY_TWO, [0, 0, 1, 1]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("prior", "expected"), [("batch", 0.178954), ("uniform", 0.230341)])
def test_priors_differ_where_domains_are_of_different_size(prior: Prior, expected: float):
    pi = [[0.9, 0.1], [0.8, 0.2], [0.85, 0.15], [0.2, 0.8]]
    assert information(pi, [0, 0, 0, 1], prior=prior) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("pi", "domains", "expected"),
    [
        ([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], [0, 0, 1, 1], math.log(2)),
        ([[1.0, 0.0]] * 4, [0, 0, 1, 1], 0.0),
        ([[0.5, 0.5]] * 4, [0, 0, 1, 1], 0.0),
        ([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]], [0, 1], 0.346574),  # log 2 / 2
    ],
    ids=["one-hot by domain", "collapsed", "uniform", "one expert shared"],
)
def test_ends_of_the_scale(pi: Any, domains: list[int], expected: float):
    """Between 0 and min(log E, H(D)); 0 log 0 is 0."""
    assert information(pi, domains) == pytest.approx(expected, abs=1e-6)


def test_numbers_of_experts_and_domains_do_not_matter():
    pi = torch.softmax(torch.randn(60, 5, generator=torch.Generator().manual_seed(2)), dim=1)
    domains = [i % 4 for i in range(60)]
    plain = information(pi, domains)

    assert information(pi[:, [2, 0, 4, 1, 3]], domains) == pytest.approx(plain, abs=1e-6)
    assert information(pi, [3 - d for d in domains]) == pytest.approx(plain, abs=1e-6)
    assert 0 <= plain <= math.log(4)


def test_every_expert_gets_a_gradient_of_it():
    """Unlike from the prediction: no entry is 0, chosen or not."""
    logits = torch.tensor([[1.0, 0.5, 0.0], [0.2, 0.1, 0.0]], requires_grad=True)
    joint = joint_distribution(logits.softmax(dim=1), torch.tensor([0, 1]), num_domains=2, prior="batch")
    (found,) = torch.autograd.grad(-mutual_information(joint), logits)

    expected = [[-0.034220, 0.008104, 0.026116], [0.034159, -0.004326, -0.029832]]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize("prior", ["batch", "uniform"])
def test_unknown_and_absent_domains_do_not_count(prior: Prior):
    """Rows of domain index D change nothing; neither do domains without rows."""
    pi = torch.cat([TWO_BY_TWO, torch.tensor([[0.01, 0.99]])])
    known = information(TWO_BY_TWO, [0, 0, 1, 1], num_domains=2, prior=prior)

    assert information(pi, [0, 0, 1, 1, 2], num_domains=2, prior=prior) == pytest.approx(known, abs=1e-6)
    assert information(TWO_BY_TWO, [0, 0, 5, 5], num_domains=9, prior=prior) == pytest.approx(known, abs=1e-6)


@pytest.mark.parametrize("prior", ["batch", "uniform"])
def test_zero_probabilities_have_finite_gradients(prior: Prior):
    """A masked expert has probability 0 in every row."""
    logits = torch.tensor([[1.0, 0.5, -torch.inf], [0.2, 0.1, -torch.inf]], requires_grad=True)

    def loss(pi: Tensor) -> Tensor:
        joint = joint_distribution(pi, torch.tensor([0, 1]), num_domains=3, prior=prior)
        return mutual_information(joint)

    (found,) = torch.autograd.grad(loss(logits.softmax(dim=1)), logits)
    assert torch.isfinite(found).all()
    assert found[:, 2].tolist() == [0.0, 0.0]


def test_no_rows_have_no_information():
    joint = joint_distribution(
        torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), num_domains=2, prior="batch"
    )
    assert mutual_information(joint).item() == 0.0
