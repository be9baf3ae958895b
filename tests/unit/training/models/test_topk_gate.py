"""The top-k gate: numbers worked out by hand, noise, k = 1, ties, masks of domains."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from service.contract.errors import SchemaError
from training.models.base import Sides
from training.models.topk_gate import START_STD, TopKGate, choose, noisy

LOGITS = torch.tensor([[2.0, 1.0, 0.5, -1.0]])


def gate(*, gate_input: str = "features+domain", top_k: int = 2, num_experts: int = 4) -> TopKGate:
    torch.manual_seed(3)
    return TopKGate(
        request_width=5,
        row_width=3,
        domain_width=2,
        num_domains=3,
        num_experts=num_experts,
        top_k=top_k,
        gate_input=gate_input,  # type: ignore[arg-type]
    )


def sides(num_rows: int, *, seed: int = 0) -> Sides:
    generator = torch.Generator().manual_seed(seed)
    domain = torch.arange(num_rows) % 4
    own = torch.tensor([[0.5, -1.0], [2.0, 0.3], [-0.7, 0.9], [0.1, 0.2]])[domain]
    request = torch.cat([torch.randn(num_rows, 3, generator=generator), own], dim=1)
    return Sides(request, torch.randn(num_rows, 3, generator=generator), None, domain)


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (2, [0.731059, 0.268941, 0.0, 0.0]),  # 1 / (1 + exp(-1))
        (3, [0.628532, 0.231224, 0.140244, 0.0]),
        (4, [0.609460, 0.224208, 0.135989, 0.030343]),
    ],
)
def test_weights_are_the_softmax_over_the_logits_kept(k: int, expected: list[float]):
    """exp(h_i) over the sum of the k largest; 0 elsewhere."""
    assert choose(LOGITS, k).dense_weights()[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_renormalised_weights_are_those_of_the_full_softmax_over_their_mass():
    """The mass that the two best hold without renormalising is .833668; over it both agree."""
    routing = choose(LOGITS, 2)
    full = routing.probabilities.gather(1, routing.experts)

    assert full.sum().item() == pytest.approx(0.833668, abs=1e-6)
    torch.testing.assert_close(full / full.sum(), routing.weights)


def test_noise_by_hand():
    """Its standard deviation is softplus(z W_n) + .01; the noisy logits choose expert 1 over expert 0."""
    found = noisy(LOGITS, torch.tensor([[0.0, 1.0, -1.0, 2.0]]), torch.tensor([[-1.0, 0.5, 2.0, 0.25]]))

    assert found[0].tolist() == pytest.approx([1.296853, 1.661631, 1.146523, -0.465768], abs=1e-6)
    weights = choose(found, 2).dense_weights()[0].tolist()
    assert weights == pytest.approx([0.409803, 0.590197, 0.0, 0.0], abs=1e-6)


def test_noise_is_for_training_only():
    """Two calls agree in evaluation mode and differ in training."""
    own, given = gate(), sides(16)
    own.train()
    assert not torch.equal(own(given).logits, own(given).logits)
    own.eval()
    assert torch.equal(own(given).logits, own(given).logits)


def test_trap_zero_gate_init_is_avoided():
    """At zero all logits tie and runtimes choose differently; W_g starts at N(0, .01), W_n at 0."""
    own = gate(num_experts=64)
    clean = torch.cat([p.flatten() for p in own.clean.parameters()])

    assert clean.abs().min() > 0
    assert clean.std().item() == pytest.approx(START_STD, rel=0.15)
    assert all(not p.any() for p in own.noise.parameters())
    logits = own.eval()(sides(32)).logits
    assert all(len(set(row)) == 64 for row in logits.tolist())


def bce_gradient(weights: Tensor, logits: Tensor, outputs: Tensor) -> list[float]:
    """Gradient of sum_i G_i o_i with respect to the logits."""
    (found,) = torch.autograd.grad((weights * outputs).sum(), logits)
    return [float(value) for value in found.flatten()]


def test_the_prediction_reaches_chosen_experts_only():
    """Logits (1, .5, 0), outputs 1, 2, 3, k = 2: the third gradient is exactly 0.

    d/dh_0 = G_0 (o_0 - o) with G = softmax(1, .5) = (.622459, .377541) and o = 1.377541.
    """
    logits = torch.tensor([[1.0, 0.5, 0.0]], requires_grad=True)
    found = bce_gradient(choose(logits, 2).dense_weights(), logits, torch.tensor([1.0, 2.0, 3.0]))

    assert found == pytest.approx([-0.235004, 0.235004, 0.0], abs=1e-6)
    assert found[2] == 0.0


def test_trap_k_of_one_keeps_a_gradient():
    """Softmax over the one logit kept is the constant 1; the entry of the full softmax is not."""
    logits = torch.tensor([[2.0, 1.0, 0.5]], requires_grad=True)
    constant = torch.softmax(logits.topk(1, dim=1).values, dim=1)
    assert constant.tolist() == [[1.0]]
    assert bce_gradient(constant, logits, torch.tensor([3.0])) == [0.0, 0.0, 0.0]

    routing = choose(logits, 1)
    assert routing.weights.item() == pytest.approx(0.628532, abs=1e-6)
    found = bce_gradient(routing.dense_weights(), logits, torch.tensor([3.0, 0.0, 0.0]))
    assert found == pytest.approx([0.7004, -0.4360, -0.2644], abs=1e-4)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_exactly_k_experts_and_weights_that_sum_to_one(k: int):
    """As many non-zeros a row as k; their sum is 1, with k = 1 the probability of the best."""
    routing = gate(top_k=k).eval()(sides(50))
    weights = routing.dense_weights()

    assert ((weights > 0).sum(dim=1) == k).all()
    expected = routing.probabilities.max(dim=1).values if k == 1 else torch.ones(50)
    torch.testing.assert_close(weights.sum(dim=1), expected)


def test_experts_may_be_numbered_in_any_order():
    """Permuting logits permutes weights."""
    logits = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
    order = torch.tensor([3, 0, 5, 1, 4, 2])

    torch.testing.assert_close(
        choose(logits[:, order], 3).dense_weights(), choose(logits, 3).dense_weights()[:, order]
    )


def test_a_choice_hangs_on_its_own_row():
    """A row alone chooses as it does among others."""
    own, given = gate().eval(), sides(11)
    alone = Sides(given.request[4:5], given.row[4:5], None, given.domain[4:5])

    assert own(alone).experts.tolist() == own(given).experts[4:5].tolist()


def test_a_gate_by_domain_is_constant_within_a_domain():
    """Rows of one domain have equal weights, those of another have others."""
    weights = gate(gate_input="domain").eval()(sides(12)).dense_weights()

    for domain in range(4):
        assert (weights[domain::4] == weights[domain]).all()
    assert len({tuple(row) for row in weights[:4].tolist()}) == 4


def test_forbidden_experts_are_never_chosen():
    """Each domain chooses among its own; the others keep every expert."""
    own = gate().eval()
    own.allow([(0, 3), (1, 2, 3), (0, 1, 2, 3), (0, 1, 2, 3)])
    routing = own(sides(40))

    assert set(routing.experts[0::4].flatten().tolist()) == {0, 3}
    assert 0 not in routing.experts[1::4]
    assert own.allowed_experts == ((0, 3), (1, 2, 3), (0, 1, 2, 3), (0, 1, 2, 3))


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        ([(0, 1)] * 3, "allowed experts of 3 domains; 4 are needed"),
        ([(0, 1), (2, 2), (0, 1), (0, 1)], "domain index 1 allows 1 experts; each row chooses 2"),
        ([(0, 1), (0, 1), (1, 4), (0, 1)], r"domain index 2 allows experts \[4\]; there are 4"),
    ],
)
def test_masks_that_do_not_fit_are_refused(experts: list[tuple[int, ...]], message: str):
    with pytest.raises(SchemaError, match=message):
        gate().allow(experts)


def test_more_experts_a_row_than_there_are_is_refused():
    with pytest.raises(SchemaError, match="top_k is 5; allowed are 1 to num_experts, 4"):
        gate(top_k=5)
