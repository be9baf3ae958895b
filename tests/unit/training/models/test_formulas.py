"""PLE, STAR, PEPNet and DeepFM against their papers' formulas, computed a second time with loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.support.models import INPUTS, random_batch, trained_model
from tests.support.schemas import full_schema
from training.models.base import Sides
from training.models.build import build_model
from training.models.config import PepNetConfig
from training.models.deepfm import PairwiseTerm
from training.models.layers import TwoSidedLinear
from training.models.pepnet import EmbeddingGates, GateUnit, PepNet
from training.models.ple import ExtractionLevel, Ple
from training.models.star import MOMENT_DECAY, VARIANCE_FLOOR, PartitionedNorm, Star, StarLinear

SCHEMA = full_schema()


def random_sides(num_rows: int = 6, request: int = 5, row: int = 4) -> Sides:
    """Two-sided inputs, one request per row."""
    return Sides(torch.randn(num_rows, request), torch.randn(num_rows, row), None, torch.arange(num_rows) % 4)


def affine(layer: TwoSidedLinear, x: Tensor) -> Tensor:
    """A two-sided layer as one matrix on one row x = [request; row]."""
    weight = torch.cat([layer.request.weight, layer.row.weight], dim=1)
    return weight @ x + layer.request.bias


def perturb(module: nn.Module) -> None:
    """Move every parameter away from its initial value."""
    for parameter in module.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))


@torch.no_grad()
def test_ple_mixes_own_and_shared_experts_level_by_level():
    """Tang et al. eq. 1-8: w_k = softmax(gate_k(x_k)), mixture over [own experts; shared experts]."""
    torch.manual_seed(0)
    K, M, S, H = 3, 2, 2, 4
    model = Ple(
        request_width=5,
        row_width=4,
        tower_of_domain=[0, 1, 2, 0],
        num_shared_experts=S,
        num_tower_experts=M,
        expert_widths=((H,), (H,)),
        tower_widths=(),
        dropout=0.0,
        batch_norm=False,
    ).eval()
    first, second = model.levels
    assert isinstance(first, ExtractionLevel)
    assert isinstance(second, ExtractionLevel)
    sides = random_sides()
    found = second(first(sides))
    own = [[k * M + m for m in range(M)] + [K * M + s for s in range(S)] for k in range(K)]
    for n in range(6):
        x = torch.cat([sides.request[n], sides.row[n]])
        experts = torch.relu(affine(first.experts.first, x)).reshape(K * M + S, H)
        gates = affine(first.gates, x)
        mixed = []
        for k in range(K):
            w = torch.softmax(gates[k * (M + S) : (k + 1) * (M + S)], dim=0)
            assert w.sum().item() == pytest.approx(1.0, abs=1e-6)
            mixed.append(sum(w[j] * experts[e] for j, e in enumerate(own[k])))
        w = torch.softmax(gates[K * (M + S) :], dim=0)
        mixed.append(sum(w[e] * experts[e] for e in range(K * M + S)))
        linear = second.experts.first.linear
        slots = [e // M if e < K * M else K for e in range(K * M + S)]
        later = [torch.relu(mixed[s] @ linear.weight[e] + linear.bias[e]) for e, s in enumerate(slots)]
        for k in range(K):
            gate = second.gates.towers
            w = torch.softmax(mixed[k] @ gate.weight[k] + gate.bias[k], dim=0)
            expected = sum(w[j] * later[e] for j, e in enumerate(own[k]))
            torch.testing.assert_close(found[n, k], expected, atol=1e-5, rtol=1e-5)


def test_ple_towers_do_not_see_each_others_experts_in_one_level():
    """Perturbing tower 1's expert leaves tower 0's output as it was (single level)."""
    torch.manual_seed(0)
    model = Ple(
        request_width=5,
        row_width=4,
        tower_of_domain=[0, 1, 0, 1],
        num_shared_experts=1,
        num_tower_experts=1,
        expert_widths=((3,),),
        tower_widths=(),
        dropout=0.0,
        batch_norm=False,
    ).eval()
    sides = random_sides()
    with torch.no_grad():
        before = model.forward_all(sides)
        model.levels[0].experts.first.request.bias[3:6] += 1.0
        after = model.forward_all(sides)

    assert torch.equal(before[:, 0], after[:, 0])
    assert not torch.allclose(before[:, 1], after[:, 1])


@torch.no_grad()
def test_star_weights_are_shared_times_specific():
    """Sheng et al. eq. 5-6 by loops: W_k[i, j] = W[i, j] * S_k[i, j], b_k = b + c_k."""
    torch.manual_seed(0)
    layer = StarLinear(2, 3, 2).eval()
    perturb(layer)
    x = torch.randn(5, 2, 3)
    found = layer(x)
    specific = 1.0 + layer.tower_weight
    for n in range(5):
        for k in range(2):
            for j in range(2):
                expected = layer.bias[j] + layer.tower_bias[k, j]
                for i in range(3):
                    expected = expected + x[n, k, i] * layer.weight[i, j] * specific[k, i, j]
                assert found[n, k, j].item() == pytest.approx(expected.item(), abs=1e-6)


@torch.no_grad()
def test_star_equals_normalise_then_star_layers_then_auxiliary():
    """The folded first layer gives what normalising each row for each tower gives."""
    ranker = trained_model("star_clusters", SCHEMA).ranker
    assert isinstance(ranker, Star)
    perturb(ranker)
    norm = ranker.norm
    assert norm is not None
    sides = random_sides(
        request=ranker.linear.request.in_features, row=ranker.linear.row.in_features, num_rows=5
    )
    found = ranker.tower_logits(sides)
    z = torch.cat([sides.request, sides.row], dim=1)
    for k in range(2):
        x = (z - norm.mean[k]) / torch.sqrt(norm.variance[k] + VARIANCE_FLOOR)
        x = norm.scale * (1 + norm.tower_scale[k]) * x + norm.shift + norm.tower_shift[k]
        for number, layer in enumerate(ranker.layers):
            x = torch.relu(x) if number else x
            x = x @ (layer.weight * (1 + layer.tower_weight[k])) + layer.bias + layer.tower_bias[k]
        expected = x + ranker.auxiliary_out(ranker.auxiliary(sides))
        torch.testing.assert_close(found[:, k], expected.squeeze(1), atol=2e-4, rtol=1e-4)


def test_star_towers_start_as_the_shared_network():
    """Before training every tower says the same."""
    torch.manual_seed(0)
    model = Star(
        request_width=5,
        row_width=4,
        tower_of_domain=[0, 1, 2, 0],
        deep_widths=(4,),
        auxiliary_widths=(3,),
        dropout=0.0,
        partitioned_norm=True,
    ).eval()
    every = model.forward_all(random_sides())

    torch.testing.assert_close(every, every[:, :1].expand(-1, 3))


def test_partitioned_norm_keeps_the_weighted_moments_of_each_towers_rows():
    """Moments equal weighted mean and variance over all rows seen, batch b weighing decay^(age)."""
    torch.manual_seed(0)
    norm = PartitionedNorm(3, 2)
    batches = [(torch.randn(6, 2) + 4, torch.tensor([0, 0, 1, 0, 1, 1])) for _ in range(4)]
    batches.append((torch.randn(1, 2), torch.tensor([1])))
    for z, towers in batches:
        norm.observe(z, towers)
    for k in range(2):
        # The start counts as one row of mean 0 and variance 1.
        mine = [z[towers == k] for z, towers in batches if (towers == k).any()]
        ages = [len(mine) - 1 - i for i in range(len(mine))]
        weights = torch.cat([torch.full((len(z),), MOMENT_DECAY**a) for z, a in zip(mine, ages, strict=True)])
        start = MOMENT_DECAY ** len(mine)
        rows = torch.cat(mine)
        total = weights.sum() + start
        mean = (weights.unsqueeze(1) * rows).sum(0) / total
        second = ((weights.unsqueeze(1) * rows**2).sum(0) + start) / total
        torch.testing.assert_close(norm.mean[k], mean, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(norm.variance[k], second - mean**2, atol=1e-3, rtol=1e-3)
    assert norm.mean[2].tolist() == [0.0, 0.0]
    assert norm.variance[2].tolist() == [1.0, 1.0]


def test_star_warm_up_shows_every_row_to_every_tower():
    """forward_all in training moves the moments of all towers alike, forward only those of its rows."""
    model = trained_model("star_clusters", SCHEMA)
    ranker = model.ranker
    assert isinstance(ranker, Star)
    assert ranker.norm is not None
    sides, _ = model.sides(random_batch(SCHEMA, 8, seed=1))
    idle = ranker.norm.num_seen.tolist()
    ranker(sides)
    assert ranker.norm.num_seen.tolist() == idle
    ranker.train()
    ranker.forward_all(sides)
    everyone = ranker.norm.num_seen.tolist()
    ranker(sides._replace(domain=torch.zeros(8, dtype=torch.int64)))

    assert everyone == pytest.approx([MOMENT_DECAY * n + 8 for n in idle])
    assert ranker.norm.num_seen.tolist() == pytest.approx([MOMENT_DECAY * everyone[0] + 8, everyone[1]])


@torch.no_grad()
def test_pepnet_gate_unit_and_towers_by_loops():
    """Chang et al. eq. 2-7: delta = 2 sigmoid(V relu(U x)); hidden layers times delta, tower by tower."""
    torch.manual_seed(0)
    K, widths = 2, (4, 3)
    model = PepNet(
        request_width=6,
        row_width=4,
        tower_of_domain=[0, 1, 0, 1],
        domain_width=2,
        request_ids=(0, 1),
        row_ids=(3,),
        embedding_gate_width=3,
        tower_gate_width=3,
        tower_widths=widths,
        dropout=0.0,
    ).eval()
    perturb(model)
    sides = random_sides(request=6)

    def gate(unit: GateUnit, x: Tensor, e: int) -> Tensor:
        hidden = torch.relu(affine(unit.hidden, x)).reshape(unit.num_gates, unit.hidden_width)[e]
        return 2 / (1 + torch.exp(-(hidden @ unit.out.weight[e] + unit.out.bias[e])))

    found = model.tower_logits(sides)
    for n in range(6):
        request, row = sides.request[n], sides.row[n]
        scaled_request = request * gate(model.embedding_gates.request, torch.cat([request[4:], request]), 0)
        scaled_row = row * gate(model.embedding_gates.row, torch.cat([request[4:], row]), 0)
        prior = torch.cat([request[:2], scaled_request, row[3:], scaled_row])
        first = affine(model.first, torch.cat([scaled_request, scaled_row])).reshape(K, widths[0])
        for k in range(K):
            x = torch.relu(first[k]) * gate(model.tower_gates[0], prior, k)
            x = torch.relu(x @ model.towers[0].weight[k] + model.towers[0].bias[k])
            x = x * gate(model.tower_gates[1], prior, k)
            expected = (x @ model.out.weight[k] + model.out.bias[k]).item()
            assert found[n, k].item() == pytest.approx(expected, abs=1e-4)


def test_pepnet_towers_share_no_parameters():
    """Each further tower adds the same number of parameters: its layers and its gates."""

    def size(num_towers: int) -> int:
        config = PepNetConfig(inputs=INPUTS, tower_gate_width=4, tower_widths=(12, 8), towers="clusters")
        table = [min(d, num_towers - 1) for d in range(4)]
        ranker = build_model(config, SCHEMA, table).ranker
        return sum(p.numel() for p in ranker.parameters())

    model = build_model(PepNetConfig(inputs=INPUTS), SCHEMA)
    P, Q = model.inputs.request_width, model.inputs.row_width
    ids = 3 + 5  # user_id in the narrow table, item_id in the other
    gates = 2 * (P + Q + ids + 1) * 4 + (4 + 1) * (12 + 8)
    layers = (P + Q + 1) * 12 + (12 + 1) * 8 + (8 + 1)

    assert size(2) - size(1) == gates + layers
    assert size(4) - size(1) == 3 * (gates + layers)


def test_pepnet_embedding_gates_send_no_gradient_into_what_they_read():
    """d(out)/d(input) is the gate itself, but for the domain columns, which the gates read with gradient."""
    torch.manual_seed(0)
    layer = EmbeddingGates(6, 4, domain_width=2, hidden_width=3)
    sides = random_sides(request=6)
    request, row = sides.request.requires_grad_(), sides.row.requires_grad_()
    out = layer(sides)
    (out.request.sum() + out.row.sum()).backward()

    torch.testing.assert_close(request.grad[:, :4], (out.request / request)[:, :4].detach())
    torch.testing.assert_close(row.grad, (out.row / row).detach())
    assert not torch.allclose(request.grad[:, 4:], (out.request / request)[:, 4:].detach())


def test_pepnet_reads_the_embeddings_of_ids_as_priors():
    """The id columns are where user_id and item_id are embedded: another id changes these and no others."""
    model = build_model(PepNetConfig(inputs=INPUTS), SCHEMA).eval()
    inputs = model.inputs
    batch = random_batch(SCHEMA, 4, seed=3)
    with torch.no_grad():
        before, _ = inputs.user(batch.user_ints, batch.user_floats)
        start = next(iter(inputs.banks["table_0"].offsets.values()))
        inputs.banks["table_0"].table.weight[start:] += 1.0
        after, _ = inputs.user(batch.user_ints, batch.user_floats)
    moved = (before != after).any(dim=0).nonzero().squeeze(1).tolist()

    assert list(inputs.user.id_columns) == moved
    assert len(inputs.item.id_columns) == 5
    assert inputs.context.id_columns == ()


@torch.no_grad()
def test_deepfm_pairwise_term_is_the_sum_over_pairs():
    """Guo et al. eq. 2: sum over a < b of <v_a, v_b> x_a x_b."""
    torch.manual_seed(0)
    layer = PairwiseTerm(5, 4, 3)
    sides = random_sides()
    x = torch.cat([sides.request, sides.row], dim=1)
    v = torch.cat([layer.factors.request.weight, layer.factors.row.weight], dim=1).T
    expected = [
        sum(float(v[a] @ v[b]) * float(x[n, a] * x[n, b]) for b in range(9) for a in range(b))
        for n in range(6)
    ]

    assert layer(sides).squeeze(1).tolist() == pytest.approx(expected, abs=1e-5)
