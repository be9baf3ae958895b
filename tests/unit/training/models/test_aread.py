"""AREAD against its formulas: masked gates, the toy pyramid by hand, masks, loss, compacted sub-networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.aread import AREADS, TOY, aread, random_sides, toy, toy_mask
from training.models.base import Sides
from training.models.cross_heads import CrossHeads
from training.models.layers import ExpertStack
from training.models.mask import PyramidMask, PyramidShape, random_mask
from training.models.pyramid import Pyramid, mean_logit
from training.models.pyramid_gates import DomainGates, gate_rows, masked_gates, table_rows


def test_a_masked_gate_is_renormalised_with_the_floor_in_its_sum():
    """Softmax of (1, 0, -1) is .665241 .244728 .090031; without the middle one .880797 0 .119203."""
    gates = torch.softmax(torch.tensor([[1.0], [0.0], [-1.0]]), dim=0)
    kept = masked_gates(gates, torch.tensor([[True], [False], [True]]))

    assert gates.squeeze(1).tolist() == pytest.approx([0.665241, 0.244728, 0.090031], abs=1e-6)
    assert kept.squeeze(1).tolist() == pytest.approx([0.880797, 0, 0.119203], abs=1e-6)


@pytest.mark.parametrize(("top", "mass"), [(10.0, 0.999941), (15.0, 0.991285), (20.0, 0.433875)])
def test_the_floor_shows_where_little_of_a_gate_is_kept(top: float, mass: float):
    """Logits (top, 0, 1) and mask (0, 1, 1): the sum that is left over 1e-8 more than itself."""
    gates = torch.softmax(torch.tensor([[top], [0.0], [1.0]]), dim=0)
    kept = masked_gates(gates, torch.tensor([[False], [True], [True]]))

    assert kept.sum().item() == pytest.approx(mass, abs=2e-6)


@pytest.mark.parametrize(
    ("mask", "logits", "heads", "output"),
    [
        (None, (0.64, 0.82), (0.5, 0.5), 0.674495),
        (toy_mask([[1, 0, 0], [1, 1, 0]], [[1, 1], [0, 1], [0, 0]]), (0.7, 0.764286), (0.5, 0.5), 0.675236),
        (toy_mask([[1, 0, 0], [1, 1, 0]], [[1, 0], [1, 0], [0, 0]]), (0.557143, None), (1.0, 0.0), 0.635791),
    ],
)
@pytest.mark.parametrize("frozen", [False, True])
@torch.no_grad()
def test_the_toy_pyramid_by_hand(mask, logits, heads, output, frozen: bool):
    """h0 (2, 1); h1 (1.7, 1.7, 1.5) and with masks (1.7, 1.5, -); a lone head is not diluted by the dead."""
    pyramid, gates = toy()
    if mask is not None:
        gates.set_masks({1: mask})
    tables = gates.tables()
    rows = gate_rows(table_rows(tables), torch.tensor([1]), None)
    run = pyramid.freeze() if frozen else pyramid
    found = run(torch.tensor([[[1.0], [2.0]]]), rows.mixers, torch.tensor([[-1.0, 0.0]]))

    for z, expected in zip(found[0].tolist(), logits, strict=True):
        assert expected is None or z == pytest.approx(expected, abs=1e-6)
    assert tables.heads[1].tolist() == pytest.approx(heads)
    assert torch.sigmoid(mean_logit(found, rows.log_heads)).item() == pytest.approx(output, abs=1e-6)


def test_the_toy_gates_with_a_mask():
    """The second column of A2 keeps .1 and .6 of its gate: .142857 and .857143."""
    _, gates = toy()
    gates.set_masks({0: toy_mask([[1, 0, 0], [1, 1, 0]], [[1, 1], [0, 1], [0, 0]])})

    assert gates.tables().levels[1][0, :, 1].tolist() == pytest.approx([0.142857, 0.857143, 0], abs=1e-6)
    assert gates.tables().levels[0][0, :, 2].tolist() == [0, 0]


def test_gates_read_the_domain_and_the_mean_of_the_group_embeddings_with_an_input():
    """Gates are softmax(V [e_d; mean of GroupEmb over M0] + b); without masks in use the mean is 0."""
    torch.manual_seed(0)
    gates = DomainGates(
        num_domains=2, shape=TOY, num_base_experts=0, dim=3, cluster_of_domain=[0, 1, 1]
    ).requires_grad_(requires_grad=False)
    mask = toy_mask([[1, 0, 0], [0, 0, 0]], [[1, 0], [0, 0], [0, 0]])
    alone = PyramidMask.from_arrays(TOY, [np.array([[True, False]]), *mask.arrays[1:]])
    gates.set_masks({0: mask, 1: alone})
    assert gates.cluster is not None
    by_domain = [gates.domain[0], gates.domain[1], gates.domain.mean(dim=0)]

    def expected(domain: int, group: Tensor) -> Tensor:
        cluster = gates.cluster.weight[min(domain, 1)]
        q = torch.cat([by_domain[domain] + cluster, group])
        layer = gates.layers[0]
        return torch.stack(
            [
                torch.softmax(layer.weight[2 * j : 2 * j + 2] @ q + layer.bias[2 * j : 2 * j + 2], 0)
                for j in range(3)
            ],
            dim=1,
        )

    both = gates.group.mean(dim=0)  # an input bit counts although nothing reads the expert
    torch.testing.assert_close(gates.gates()[0][0], expected(0, both))
    torch.testing.assert_close(gates.gates()[0][1], expected(1, gates.group[0]))
    torch.testing.assert_close(gates.gates()[0][2], expected(2, both))
    gates.use_masks(wanted=False)
    torch.testing.assert_close(gates.gates()[0][1], expected(1, torch.zeros(3)))
    assert (gates.tables().levels[0] > 0).all()


@pytest.mark.parametrize("name", AREADS)
@torch.no_grad()
def test_a_row_is_scored_by_the_experts_that_its_mask_keeps(name: str):
    """Masked-dense equals the sub-network run expert by expert, dead ones absent, for every domain."""
    model = aread(name)
    sides = random_sides(model, 8)
    found = torch.sigmoid(model(sides))
    reading, gates = model.read(sides), model.own_gates.gates()
    inner = gates[1:] if model.own_gates.gates_base else gates

    for n in range(8):
        domain = int(sides.domain[n])
        mask = model.masks[domain]
        edges = mask.inner[1:] if model.shape.base_width else mask.inner
        values = reading.base.values[n]
        h: dict[int, Tensor] = {}
        for i in range(model.shape.widths[0]):
            if not edges[0][i].any():
                continue
            x = values[i]
            if model.own_gates.gates_base or reading.base.gates is not None:
                g = gates[0][domain, :, i] if model.own_gates.gates_base else reading.base.gates[n, i]
                kept = mask.inner[0][:, i] if model.shape.base_width else np.ones(len(g), bool)
                floor = 1e-8 if model.shape.base_width else 0.0
                total = sum(g[e] for e in np.flatnonzero(kept)) + floor
                x = sum(g[e] / total * values[e] for e in np.flatnonzero(kept))
            h[i] = expert(model.expert_pyramid.levels[0], i, x)
        for level, (g, below) in enumerate(zip(inner, edges, strict=True), start=1):
            up: dict[int, Tensor] = {}
            for j in np.flatnonzero(below.any(axis=0)):
                read = np.flatnonzero(below[:, j])
                total = sum(g[domain, i, j] for i in read) + 1e-8
                x = sum(g[domain, i, j] / total * h[i] for i in read)
                up[int(j)] = expert(model.expert_pyramid.levels[level], int(j), x)
            h = up
        heads = [reading.shared[n, j] + model.expert_pyramid.head[j] @ x for j, x in h.items()]
        assert sorted(h) == np.flatnonzero(mask.heads).tolist()
        assert found[n].item() == pytest.approx(torch.stack(heads).sigmoid().mean().item(), abs=1e-6)


def expert(stack: nn.Module, j: int, x: Tensor) -> Tensor:
    """Expert j of a stack, by its own weights."""
    assert isinstance(stack, ExpertStack)
    for linear, activation in zip([stack.first, *stack.linears], stack.activations, strict=True):
        x = x @ linear.weight[j] + linear.bias[j]
        norm, units = activation.norm, slice(j * len(x), (j + 1) * len(x))
        if isinstance(norm, nn.BatchNorm1d):
            x = (x - norm.running_mean[units]) / (norm.running_var[units] + norm.eps).sqrt()
            x = x * norm.weight[units] + norm.bias[units]
        x = torch.relu(x)
    return x


@torch.no_grad()
def test_two_hundred_random_masks_against_compacted_sub_networks():
    """Cutting dead experts out of the tables and weights moves no probability by more than 1e-6."""
    torch.manual_seed(1)
    shape, rng = PyramidShape((3, 6, 12)), np.random.default_rng(1)
    gates = DomainGates(num_domains=200, shape=shape, num_base_experts=0, dim=4).eval()
    pyramid = Pyramid(
        input_width=6, num_experts=(3, 6, 12), widths=((6,), (5,), (4,)), dropout=0.0, batch_norm=False
    ).eval()
    gates.set_masks({d: random_mask(shape, float(rng.uniform(0.05, 0.9)), rng) for d in range(200)})
    x, shared = torch.randn(200, 3, 6), torch.randn(200, 12)
    tables, masks = gates.tables(), gates.masks
    rows = gate_rows(table_rows(tables), torch.arange(200), None)
    dense = torch.sigmoid(mean_logit(pyramid(x, rows.mixers, shared), rows.log_heads))

    worst = 0.0
    for d in range(200):
        used = [torch.from_numpy(level.copy()) for level in masks[d].used]
        h = x[d][used[0]]
        for level, stack in enumerate(pyramid.levels):
            weight, bias = stack.first.weight[used[level]], stack.first.bias[used[level]]
            if level:
                h = tables.levels[level - 1][d][used[level - 1]][:, used[level]].T @ h
            h = torch.relu(torch.einsum("ic,ico->io", h, weight) + bias)
        z = (h * pyramid.head[used[2]]).sum(dim=1) + shared[d][used[2]]
        worst = max(worst, abs(z.sigmoid().mean().item() - dense[d].item()))
    assert worst <= 1e-6


@pytest.mark.parametrize("name", AREADS)
@torch.no_grad()
def test_the_inference_form_gives_the_same_logits_and_keeps_no_gate(name: str):
    """Constant tables and folded normalisation: logits as before, the model itself untouched."""
    model = aread(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    frozen = model.for_inference()
    sides = random_sides(model, 40)

    torch.testing.assert_close(frozen(sides), model(sides), atol=2e-5, rtol=1e-5)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
    assert not any(isinstance(part, nn.BatchNorm1d | DomainGates) for part in frozen.modules())
    assert frozen.with_heads(sides)[1] is None
    with pytest.raises(TypeError, match="has tables, no gates and masks"):
        _ = frozen.masks


@torch.no_grad()
def test_large_layers_of_an_inference_form_are_not_joined():
    """Experts too wide for a matrix of several run one by one, with the same result."""
    torch.manual_seed(0)
    wide = Pyramid(
        input_width=40, num_experts=(4, 8), widths=((40,), (50, 2)), dropout=0.0, batch_norm=False
    ).eval()
    frozen = wide.freeze()
    x, mixers, shared = torch.randn(5, 4, 40), [torch.rand(5, 8, 4)], torch.randn(5, 8)

    torch.testing.assert_close(frozen(x, mixers, shared), wide(x, mixers, shared), atol=1e-5, rtol=1e-5)
    assert [len(level.layers) for level in frozen.levels] == [4, 8]


@pytest.mark.parametrize("form", ["eager", "inference"])
@torch.no_grad()
def test_a_dead_expert_is_never_read(form: str):
    """Biases of 1e6 in every expert that a domain does not use change none of its logits."""
    model = aread()
    model.set_masks({0: random_mask(model.shape, 0.08, np.random.default_rng(0))})
    sides = random_sides(model, 4)._replace(domain=torch.zeros(4, dtype=torch.int64))
    before = (model if form == "eager" else model.for_inference())(sides)
    for stack, used in zip(model.expert_pyramid.levels, model.masks[0].used, strict=True):
        assert not used.all()
        for linear in (stack.first, *stack.linears):
            linear.bias[torch.from_numpy(~used)] = 1e6

    after = (model if form == "eager" else model.for_inference())(sides)

    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_cross_network_is_that_of_its_layers():
    """Logits z = w . x_L + linear with x_{l+1} = x_0 (w_l . x_l) + b_l + x_l, frozen or not."""
    torch.manual_seed(0)
    cross = CrossHeads(request_width=4, row_width=3, num_layers=3, num_heads=2)
    cross.cross_bias.copy_(torch.randn(3, 7))
    cross.linear_bias.fill_(0.3)
    sides = Sides(torch.randn(5, 4), torch.randn(5, 3), None, torch.zeros(5, dtype=torch.int64))
    weight = torch.cat([cross.products.request.weight, cross.products.row.weight], dim=1)
    x0 = torch.cat([sides.request, sides.row], dim=1)
    x = x0
    for layer in range(3):
        x = x0 * (x @ weight[layer]).unsqueeze(1) + cross.cross_bias[layer] + x
    expected = x @ weight[3:5].T + (x0 @ weight[5]).unsqueeze(1) + 0.3

    torch.testing.assert_close(cross(sides), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(cross.freeze()(sides), expected, atol=1e-5, rtol=1e-5)


def test_the_mean_logit_is_exact_where_probabilities_round_to_0_or_1():
    """Against float64; far out, where all heads agree on z, the logit is z."""
    z = torch.tensor([[0.3, -1.2, 2.0], [-60.0, -60.0, 5.0], [80.0, 80.0, 80.0], [-90.0, -90.0, -90.0]])
    weights = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.5, 0.0], [1 / 3] * 3, [1 / 3] * 3])
    p = (z.double().sigmoid() * weights.double()).sum(dim=1)

    found = mean_logit(z, weights.log())

    assert found[:2].tolist() == pytest.approx((p.log() - (1 - p).log())[:2].tolist(), rel=1e-6)
    assert found[2:].tolist() == pytest.approx([80.0, -90.0], rel=1e-6)
