"""SyNCRec's net: who learns from which loss, whose parameters are whose, and what sees what."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.unit.training.sequences.toy import random_log, small_net
from training.models.acmoe import TaskHeads
from training.models.sequence_encoder import SequenceEncoder, compact
from training.models.syncrec_net import EventRows, SasrecNet, SyncrecNet
from training.sequences.batches import SequenceBatch, TrainBatches
from training.sequences.losses import TransferWeights, agreement_loss
from training.sequences.objective import PlainObjective, SyncrecObjective, target_losses


def batch_of(log_seed: int = 0, **choices: object) -> SequenceBatch:
    """One batch of a random log."""
    batches = TrainBatches(random_log(log_seed), max_len=8, batch_size=8, seed=0, **choices)  # type: ignore[arg-type]
    return next(iter(batches.epoch(0)))


def learns(net: SyncrecNet) -> dict[str, bool]:
    """Which parts have a gradient that is not exactly 0."""

    def some(*grads: Tensor | None) -> bool:
        return any(g is not None and bool((g.to_dense() if g.is_sparse else g).any()) for g in grads)

    def task(place: int) -> bool:
        return some(*(None if p.grad is None else p.grad[place] for p in net.heads.parameters()))

    experts = [some(*(p.grad for p in expert.parameters())) for expert in net.bank.experts]
    return {
        "expert 0": experts[0],
        "expert 1": experts[1],
        "expert 2": experts[2],
        "cross head": task(0),
        "head a": task(1),
        "head b": task(2),
        "head c": task(3),
        "items": some(net.items.weight.grad),
        "agreement a": some(None if net.agreement.grad is None else net.agreement.grad[0]),
        "agreement b": some(None if net.agreement.grad is None else net.agreement.grad[1]),
    }


NOBODY = dict.fromkeys(
    [
        "expert 0", "expert 1", "expert 2", "cross head", "head a", "head b", "head c", "items",
        "agreement a", "agreement b",
    ],
    False,
)  # fmt: skip


def test_a_single_loss_teaches_single_experts_and_its_own_head() -> None:
    """Experts of the cross side and heads of other tasks get exactly nothing."""
    net, batch = small_net(), batch_of()
    vectors, _ = batch.split(net.single(batch.singles, batch.single_at, batch.position_sizes))
    target_losses(net, batch, vectors, form="bce")[: batch.sizes[0]].sum().backward()

    assert learns(net) == NOBODY | {"expert 2": True, "head a": True, "items": True}


def test_the_cross_loss_teaches_cross_experts_and_the_cross_head() -> None:
    """The single expert and all single heads get exactly nothing."""
    net, batch = small_net(), batch_of()
    vectors, _ = batch.split(net.cross(batch.mixed, batch.cross_at))
    target_losses(net, batch, vectors, form="bce").sum().backward()

    assert learns(net) == NOBODY | {"expert 0": True, "expert 1": True, "cross head": True, "items": True}


def test_agreement_teaches_both_sides() -> None:
    """All experts, the cross head, the domain's own head and bilinear form, the items."""
    net, batch = small_net(), batch_of()
    _, cross = batch.split(net.cross(batch.mixed, batch.cross_at))
    _, single = batch.split(net.single(batch.singles, batch.single_at, batch.position_sizes))
    agreement_loss(single[0], cross[0], net.agreement[0]).backward()
    wanted = dict.fromkeys(NOBODY, True) | {"head b": False, "head c": False, "agreement b": False}

    assert learns(net) == wanted


def test_without_the_stop_gradient_all_experts_learn_from_a_loss() -> None:
    """The ablation: heads keep to their tasks."""
    net, batch = small_net(), batch_of()
    net.bank.stop_gradient = False
    vectors, _ = batch.split(net.cross(batch.mixed, batch.cross_at))
    target_losses(net, batch, vectors, form="bce").sum().backward()
    experts = dict.fromkeys(("expert 0", "expert 1", "expert 2"), True)

    assert learns(net) == NOBODY | experts | {"cross head": True, "items": True}


def test_every_expert_has_parameters_of_its_own() -> None:
    """Five one-layer experts have 70 distinct tensors; one encoder listed five times has 14."""
    own = [SequenceEncoder(width=8, num_layers=1, num_heads=1, dropout=0.0) for _ in range(5)]
    shared = [own[0]] * 5

    assert len({id(p) for expert in own for p in expert.parameters()}) == 70
    assert len({id(p) for expert in shared for p in expert.parameters()}) == 14
    net = small_net()
    experts = net.bank.encoders()
    assert len({id(p) for e in experts for p in e.parameters()}) == len(experts) * 28
    assert len({p.data_ptr() for e in experts for p in e.parameters()}) == len(experts) * 28


def mixed_rows() -> EventRows:
    """Two users: one with 5 events, one with 3."""
    items = torch.tensor([[2, 3, 4, 5, 6], [7, 8, 9, 0, 0]])
    return EventRows(items, torch.tensor([[0, 1, 2, 0, 1], [2, 2, 0, 0, 0]]), torch.tensor([5, 3]))


def changed_last(rows: EventRows) -> EventRows:
    """The newest event of each user replaced by another."""
    items = rows.items.clone()
    items[0, 4], items[1, 2] = 11, 12
    return rows._replace(items=items)


@pytest.mark.parametrize(("gate", "moves"), [("prefix_mean", False), ("flat", True)])
def test_a_gate_on_the_past_does_not_see_the_last_event(gate: str, moves: bool) -> None:
    """Another last event leaves earlier outputs bit for bit with prefix gates; flat ones move."""
    net, rows = small_net(gate=gate).eval(), mixed_rows()
    at = torch.tensor(
        [0, 1, 2, 3, 4, 6, 7, 8]
    )  # before the last event: positions 0-4 of one user, 0-2 of the other
    before, after = net.cross(rows, at), net.cross(changed_last(rows), at)

    assert bool((before != after).any()) is moves
    last = torch.tensor([5, 9])
    assert bool((net.cross(rows, last) != net.cross(changed_last(rows), last)).all())


def test_padding_changes_nothing() -> None:
    """A longer neighbour in the batch leaves a user's outputs as they are."""
    net, rows = small_net().eval(), mixed_rows()
    alone = EventRows(rows.items[1:, :3], rows.domains[1:, :3], rows.length[1:])

    torch.testing.assert_close(
        net.cross(rows, torch.tensor([6, 7, 8, 9])), net.cross(alone, torch.arange(4)), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("gate", ["prefix_mean", "flat"])
def test_inference_gives_the_training_view_s_last_position(gate: str) -> None:
    """`last` computes one position and takes heads by row; it is `cross` and `single` all the same."""
    net, rows = small_net(gate=gate).eval(), mixed_rows()
    torch.testing.assert_close(
        net.last(rows, torch.tensor([0, 0])), net.cross(rows, torch.tensor([5, 9])), atol=1e-5, rtol=0
    )
    single = EventRows(
        torch.tensor([[2, 5], [9, 0]]), torch.zeros(2, 2, dtype=torch.int64), torch.tensor([2, 1])
    )
    torch.testing.assert_close(
        net.last(single, torch.tensor([1, 1])),
        net.single((single,), torch.tensor([2, 4]), (2, 0, 0)),
        atol=1e-5,
        rtol=0,
    )


def test_an_empty_history_has_a_finite_vector() -> None:
    """Only the start mark is read."""
    rows = EventRows(
        torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 4, dtype=torch.int64), torch.tensor([0])
    )

    assert bool(small_net().eval().last(rows, torch.tensor([0])).isfinite().all())


def test_holes_are_not_read() -> None:
    """In-place single sequences: what stands in a hole changes nothing, and no nan comes of it."""
    net = small_net().eval()
    items = torch.tensor([[0, 3, 0, 5]])
    rows = EventRows(items, torch.ones_like(items), torch.tensor([4]), with_holes=True)
    others = rows._replace(domains=torch.tensor([[2, 1, 0, 1]]))
    at, sizes = torch.tensor([2, 4]), (0, 2, 0)

    found = net.single((rows,), at, sizes)
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found, net.single((others,), at, sizes), atol=0, rtol=0)


def test_in_place_batches_train() -> None:
    """The same targets, each with a finite loss."""
    packed, holes = batch_of(), batch_of(single_view="in_place")
    net = small_net()
    assert holes.item.equal(packed.item)
    vectors, _ = holes.split(net.single(holes.singles, holes.single_at, holes.position_sizes))
    assert bool(target_losses(net, holes, vectors, form="bce").isfinite().all())


def test_the_whole_loss_is_the_sum_of_its_parts() -> None:
    """With eta 1 and even weights: single and cross losses, by domain."""
    net, batch = small_net(), batch_of()
    objective = SyncrecObjective(
        TransferWeights(num_domains=3, floor=1.0), loss="bce", eta=1.0, agreement="infonce"
    )
    found = objective(net, batch)

    torch.testing.assert_close(found.total.detach(), (found.single + found.cross).sum())


def test_another_net_is_refused() -> None:
    """SyNCRec's loss needs both views."""
    net = SasrecNet(
        num_rows=20, num_domains=3, width=8, max_len=8, num_layers=1, num_heads=1, dropout=0.0, view="mixed"
    )
    objective = SyncrecObjective(TransferWeights(num_domains=3), loss="bce", eta=1.0, agreement="infonce")

    with pytest.raises(TypeError, match="SyNCRec's loss needs its net, got a SasrecNet"):
        objective(net, batch_of())


@pytest.mark.parametrize("view", ["mixed", "single"])
def test_sasrec_learns_from_its_view(view: str) -> None:
    """One encoder for mixed sequences, one a domain for single ones; inference gives the same vectors."""
    torch.manual_seed(0)
    net = SasrecNet(
        num_rows=20, num_domains=3, width=8, max_len=8, num_layers=2, num_heads=1, dropout=0.0, view=view  # type: ignore[arg-type]
    )  # fmt: skip
    batch = batch_of()
    loss = PlainObjective(loss="bce", num_domains=3)(net, batch).total
    loss.backward()
    dense = [p.grad for p in net.dense_parameters()]

    assert bool(loss.isfinite())
    assert all(grad is not None for grad in dense)
    rows = EventRows(torch.tensor([[2, 5]]), torch.zeros(1, 2, dtype=torch.int64), torch.tensor([2]))
    at = torch.tensor([2])
    trained = net.cross(rows, at) if view == "mixed" else net.single((rows,), at, (1, 0, 0))
    torch.testing.assert_close(
        net.last(rows, torch.tensor([0 if view == "mixed" else 1])), trained, atol=1e-6, rtol=0
    )


def test_heads_by_row_are_heads_by_task() -> None:
    """One row a task, against each task on its own."""
    torch.manual_seed(1)
    heads = TaskHeads(num_tasks=3, num_experts=4, width=6, context_width=6)
    outputs, context = torch.randn(3, 4, 6), torch.randn(3, 6)
    each = torch.cat([heads(t, outputs[t : t + 1], context[t : t + 1]) for t in range(3)])

    torch.testing.assert_close(heads.by_row(torch.arange(3), outputs, context), each, atol=1e-6, rtol=0)


def test_compacting_moves_kept_entries_to_the_front() -> None:
    """In order, with zeros behind."""
    keep = torch.tensor([[False, True, False, True], [True, True, True, True], [False] * 4])
    values = torch.tensor([[5, 6, 7, 8], [1, 2, 3, 4], [9, 9, 9, 9]])
    moved, count = compact(keep, values)

    assert moved.tolist() == [[6, 8, 0, 0], [1, 2, 3, 4], [0, 0, 0, 0]]
    assert count.tolist() == [2, 4, 0]
