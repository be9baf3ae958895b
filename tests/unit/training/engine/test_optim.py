"""Optimisers: rows outside the batch keep their bits; values against hand and torch; the schedule."""

import math

import pytest
import torch
from torch import nn

from training.engine.optim import RowwiseAdagrad, Schedule, build_optimisers
from training.models.base import TableGroup


def _constant():
    return Schedule(kind="constant", warmup_steps=0, total_steps=10)


def _table(rows=6, width=3):
    torch.manual_seed(0)
    return nn.Embedding(rows, width, sparse=True)


@pytest.mark.parametrize("method", ["sparse_adam", "rowwise_adagrad"])
def test_rows_outside_the_batch_keep_their_bits(method):
    table, dense = _table(), nn.Linear(3, 1)
    before = table.weight.detach().clone()
    optimisers = build_optimisers(
        dense=list(dense.parameters()),
        tables=[TableGroup("t", [table.weight], 1.0)],
        dense_lr=0.1,
        weight_decay=0.5,
        table_method=method,
        table_lr=0.1,
        schedule=_constant(),
    )
    # Row 5 is touched once, so that a dense optimiser's momentum would move it later on.
    for step, ids in enumerate([[1, 5], [1, 3], [1, 1]]):
        if step == 1:
            after_first = table.weight.detach().clone()
        optimisers.zero_grad()
        dense(table(torch.tensor(ids))).pow(2).sum().backward()
        optimisers.step(step)
    assert torch.equal(table.weight[[0, 2, 4]], before[[0, 2, 4]])
    assert torch.equal(table.weight[5], after_first[5])
    assert not torch.equal(table.weight[1], after_first[1])
    assert not torch.equal(table.weight[3], before[3])


def test_rowwise_adagrad_by_hand():
    """Row 1 twice in one batch: gradients add up to (2, 4), mean square 10; then (1, 1) once more."""
    table = nn.Embedding(2, 2, sparse=True)
    with torch.no_grad():
        table.weight.zero_()
    optimiser = RowwiseAdagrad([table.weight], lr=0.5, eps=0.0)
    (table(torch.tensor([1, 1])) * torch.tensor([1.0, 2.0])).sum().backward()
    optimiser.step()
    first = [-0.5 * 2 / math.sqrt(10), -0.5 * 4 / math.sqrt(10)]
    torch.testing.assert_close(table.weight[1].detach(), torch.tensor(first))
    optimiser.zero_grad()
    table(torch.tensor([1])).sum().backward()
    optimiser.step()
    torch.testing.assert_close(
        table.weight[1].detach(), torch.tensor([v - 0.5 / math.sqrt(11) for v in first])
    )
    assert table.weight[0].detach().tolist() == [0.0, 0.0]


def test_a_table_scale_multiplies_its_rate():
    """Adam's first step is lr * sign(gradient), whatever the gradient."""
    fast, slow = _table(), _table()
    optimisers = build_optimisers(
        dense=[],
        tables=[TableGroup("fast", [fast.weight], 1.0), TableGroup("slow", [slow.weight], 0.25)],
        dense_lr=1.0,
        weight_decay=0.0,
        table_method="sparse_adam",
        table_lr=0.01,
        schedule=_constant(),
    )
    before = fast.weight.detach()[2].clone()
    ids = torch.tensor([2])
    (fast(ids) + slow(ids)).sum().backward()
    optimisers.step(0)
    torch.testing.assert_close(before - fast.weight.detach()[2], torch.full((3,), 0.01), atol=1e-6, rtol=0)
    torch.testing.assert_close(before - slow.weight.detach()[2], torch.full((3,), 0.0025), atol=1e-6, rtol=0)


def test_warm_up_rises_and_decay_ends_at_the_final_ratio():
    linear = Schedule(kind="linear_decay", warmup_steps=4, total_steps=14, final_ratio=0.2)
    assert [linear.factor(s) for s in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert linear.factor(4) == 1.0
    assert linear.factor(9) == pytest.approx(0.6)
    assert linear.factor(14) == pytest.approx(0.2)
    assert linear.factor(99) == pytest.approx(0.2)
    cosine = Schedule(kind="cosine", warmup_steps=0, total_steps=8)
    assert [cosine.factor(s) for s in (0, 4, 8)] == pytest.approx([1.0, 0.5, 0.0])
    assert _constant().factor(1000) == 1.0


def test_the_schedule_scales_the_base_rate_each_step_and_does_not_compound():
    weight = nn.Parameter(torch.zeros(1))
    optimisers = build_optimisers(
        dense=[weight],
        tables=[],
        dense_lr=0.1,
        weight_decay=0.0,
        table_method="sparse_adam",
        table_lr=0.1,
        schedule=Schedule(kind="linear_decay", warmup_steps=0, total_steps=4),
    )
    moves = []
    for step in range(3):
        before = weight.item()
        optimisers.zero_grad()
        weight.sum().backward()  # a constant gradient: Adam moves by the rate
        optimisers.step(step)
        moves.append(before - weight.item())
    assert moves == pytest.approx([0.1, 0.075, 0.05], abs=1e-5)
