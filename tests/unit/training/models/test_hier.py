"""Formulas of HIER against numbers worked out apart from the code, and the exact factorisation."""

import math

import pytest
import torch
from torch import tensor

from training.models.hier_losses import exemplar_contrast, pairwise_loss, view_information
from training.models.hier_net import HierNet
from training.models.hier_parts import item_vectors, shares, user_vectors
from training.models.hier_paths import MAX_LOG_ALPHA, PathGates, fixed_gates, open_probability, sampled_gates

IDENTITY = torch.eye(2)
ITEMS = tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.2], [0.1, 1.0]])
USERS = tensor([[1.0, 0.0], [0.0, 2.0]])
INTENTS = tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
LINKS = tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])


def near(value, expected, tolerance=1e-6):
    torch.testing.assert_close(value, tensor(expected), rtol=0, atol=tolerance)


def network(**changes):
    torch.manual_seed(3)
    edges = tensor([[2, 0, 4], [2, 1, 5], [3, 0, 4], [4, 0, 2], [4, 0, 3], [5, 1, 2]])
    sizes = {"num_entities": 6, "num_relations": 2, "width": 4, "num_intents": 3, "num_exemplars": 5}
    return HierNet(head=edges[:, 0], relation=edges[:, 1], tail=edges[:, 2], **(sizes | changes)).eval()


@pytest.mark.parametrize(
    ("log_alpha", "uniform", "gate"),
    [
        (0.0, 0.5, 0.5),
        (0.0, 0.1, 0.0),
        (0.0, 0.9, 1.0),
        (-1.0, 0.5, 0.118911),
        (1.0, 0.5, 0.881089),
        (-3.0, 0.9, 0.176882),
        (3.0, 0.1, 0.823117),
    ],
)
def test_a_gate_drawn(log_alpha, uniform, gate):
    near(sampled_gates(tensor([log_alpha]), tensor([uniform])), [gate])


def test_gates_without_noise_and_their_chance_to_be_open():
    places = tensor([-3.0, -1.0, 0.0, 1.0, 3.0])
    near(fixed_gates(places), [0.0, 0.222730, 0.5, 0.777270, 1.0])
    near(open_probability(places), [0.197594, 0.645335, 0.831822, 0.930771, 0.990034])
    near(open_probability(tensor([0.0, 1.0, -1.0, 3.0])).sum(), 3.397963, 2e-6)
    edge = math.log(11.0)  # sigmoid = 11/12 is where the stretched share reaches 1
    near(fixed_gates(tensor([-edge - 1e-4, edge + 1e-4])), [0.0, 1.0])


def test_a_million_draws_meet_the_chances():
    generator = torch.Generator().manual_seed(5)
    uniform = torch.rand(1_000_000, generator=generator).clamp(1e-6, 1 - 1e-6)
    gates = sampled_gates(torch.zeros(1_000_000), uniform)
    assert float((gates > 0).double().mean()) == pytest.approx(0.832, abs=0.002)
    assert float(gates.double().mean()) == pytest.approx(0.5, abs=0.002)
    assert float((gates == 1).double().mean()) == pytest.approx(0.168, abs=0.002)


def test_gates_draw_in_training_only_and_stay_in_range():
    gates = PathGates(num_intents=3, num_exemplars=4).requires_grad_(requires_grad=False)
    assert not torch.equal(gates.train()(), gates())
    assert torch.equal(gates.eval()(), gates())
    with torch.no_grad():
        gates.log_alpha.fill_(9.0)
        gates.log_alpha[0] = -9.0
    gates.keep_in_range()
    assert gates.log_alpha.abs().max() == pytest.approx(MAX_LOG_ALPHA)
    assert gates.open_share() == pytest.approx(2 / 3)


def test_two_hops_over_a_small_graph():
    # Entities of the example are rows 2 to 5 here; rows 0 and 1 stand for no entity and an unknown one.
    net = network(num_relations=2, width=2, num_intents=2, num_exemplars=2, normalise=False)
    with torch.no_grad():
        net.entities.copy_(tensor([[0, 0], [0, 0], [1, 0], [0, 1], [1, 1], [2, 0]], dtype=torch.float32))
        net.relations.copy_(tensor([[1.0, 1.0], [0.5, -1.0]]))
    layers = net.entity_layers()
    near(layers.hops[1][2:], [[1, 0.5], [1, 1], [0.5, 0.5], [0.5, 0]])
    near(layers.hops[2][2:], [[0.375, 0.25], [0.5, 0.5], [1, 0.75], [0.5, -0.5]])
    near(layers.total[2:], [[2.375, 0.75], [1.5, 2.5], [2.5, 2.25], [3, -0.5]])
    near(net.users(layers, tensor([[2, 3]]), torch.ones(1, 2)), [[1.5, 1.25]])
    near(net.items(layers, tensor([[2, 4, 0]])), [[2.4375, 1.5]])


def test_hops_brought_to_length_one():
    layers = network().requires_grad_(requires_grad=False).entity_layers()
    lengths = layers.hops[1][2:].norm(dim=1)
    near(lengths, [1.0] * 4)
    assert float(layers.hops[1][:2].abs().max()) == 0.0


def test_unknown_entities_and_padding_do_not_count():
    table = tensor([[9.0], [7.0], [1.0], [3.0]])
    near(
        item_vectors(table, tensor([[2, 3, 0], [2, 1, 0], [1, 0, 0], [0, 0, 0]])),
        [[2.0], [1.0], [7.0], [7.0]],
    )
    ids, weights = tensor([[2, 3, 1], [0, 1, 0]]), tensor([[1.0, 3.0, 5.0], [1.0, 1.0, 1.0]])
    near(user_vectors([table], ids, weights, normalise=False), [[2.5], [0.0]])
    near(user_vectors([table, table], ids, weights, normalise=True), [[2.0], [0.0]])


def test_exemplar_contrast():
    q = shares(ITEMS, IDENTITY, temperature=0.5)
    expected = [[0.880797, 0.119203], [0.119203, 0.880797], [0.832018, 0.167982], [0.141851, 0.858149]]
    near(q, expected)
    rows = [(own / own.norm()).tolist() for own in ITEMS]
    views = [(own / own.norm()).tolist() for own in q]
    pairs = [[math.exp((x[0] * v[0] + x[1] * v[1]) / 0.2) for v in views] for x in rows]
    by_hand = sum(-math.log(row[i] / sum(row)) for i, row in enumerate(pairs)) / 4
    assert by_hand == pytest.approx(0.706807, abs=2e-6)
    near(exemplar_contrast(ITEMS, q @ IDENTITY, temperature=0.2), by_hand)


def test_intents_and_path_scores():
    a = shares(USERS, INTENTS, temperature=1.0)
    near(a, [[0.422319, 0.155362, 0.422319], [0.063379, 0.468311, 0.468311]])
    near(a @ INTENTS, [[0.844638, 0.577681], [0.531689, 0.936621]])
    scores = a @ LINKS @ shares(ITEMS, IDENTITY, temperature=0.5).T
    near(scores, [[0.601656, 0.398344, 0.588634, 0.404390], [0.345803, 0.654197, 0.365555, 0.645026]])


def test_information_is_added_so_that_views_part():
    views = shares(USERS, INTENTS, temperature=1.0) @ INTENTS
    value = view_information(USERS, views, temperature=0.2)
    near(value, -0.185536)
    assert float(value) > -2 / 0.2 - math.log(2)
    users = tensor([[1.0, 0.5], [0.5, 1.0]], requires_grad=True)
    view_information(users, IDENTITY, temperature=0.2).backward()
    pushed = torch.nn.functional.normalize(users.detach() - 1e-2 * users.grad)
    assert (pushed.diagonal() < torch.nn.functional.normalize(users.detach()).diagonal()).all()
    pulled = users.detach().clone().requires_grad_()
    exemplar_contrast(pulled, IDENTITY, temperature=0.2).backward()
    torch.testing.assert_close(pulled.grad, -users.grad)


def test_pairwise_loss():
    # log(1 + e^-3), worked out by hand.
    near(pairwise_loss(tensor([2.0]), tensor([-1.0])), 0.048587)


def test_the_factorised_score_is_the_bilinear_one():
    net = network()
    generator = torch.Generator().manual_seed(1)
    users, items = torch.randn(7, 4, generator=generator), torch.randn(7, 4, generator=generator)
    gates, mixed = net.gates(), net.intents @ net.mixing @ net.exemplars.T
    a, q = (users @ net.intents.T).softmax(dim=1), (items @ net.exemplars.T).softmax(dim=1)
    bilinear = (users * items).sum(1) + torch.einsum("nm,mk,nk->n", a, gates * mixed, q)
    factorised = (net.user_factors(users, net.paths()) * net.item_factors(items)).sum(1)
    torch.testing.assert_close(factorised, bilinear, rtol=0, atol=1e-6)
    closed = net.paths().clone()
    closed[1, 2] = 0.0
    less = (net.user_factors(users, closed) * net.item_factors(items)).sum(1)
    torch.testing.assert_close(
        factorised - less, a[:, 1] * q[:, 2] * gates[1, 2] * mixed[1, 2], rtol=0, atol=1e-6
    )
