"""Both alignments of mixed and single sequences, on the worked example and on random sequences."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.training.sequences.toy import FIGURE, figure_domains, random_log
from training.sequences.align import align
from training.sequences.batches import TrainBatches


def test_the_worked_example_aligns_by_target() -> None:
    """Targets A1 A3 A5 sit at mixed positions 0 2 4, B2 B4 B8 at 1 3 7, C6 C7 at 5 6."""
    found = align(figure_domains(), np.array([8]), num_domains=3)
    by_target = {
        (FIGURE[place], int(rank)): int(place) for place, rank in zip(found.place, found.rank, strict=True)
    }

    assert by_target == {
        ("A1", 0): 0,
        ("A3", 1): 2,
        ("A5", 2): 4,
        ("B2", 0): 1,
        ("B4", 1): 3,
        ("B8", 2): 7,
        ("C6", 0): 5,
        ("C7", 1): 6,
    }


def test_the_worked_example_aligns_by_input() -> None:
    """A1 is read at mixed position 1, A3 at 3, A5 at 5, B2 at 2, B4 at 4, C6 at 6, C7 at 7; B8 never."""
    found = align(figure_domains(), np.array([8]), num_domains=3)
    mine = found.is_input
    read = {
        FIGURE[place]: (int(place) + 1, int(rank) + 1)
        for place, rank in zip(found.place[mine], found.rank[mine], strict=True)
    }

    assert {name: mixed for name, (mixed, _) in read.items()} == {
        "A1": 1, "A3": 3, "A5": 5, "B2": 2, "B4": 4, "C6": 6, "C7": 7
    }  # fmt: skip
    assert {name: single for name, (_, single) in read.items()} == {
        "A1": 1, "A3": 2, "A5": 3, "B2": 1, "B4": 2, "C6": 1, "C7": 2
    }  # fmt: skip
    assert found.group_inputs.tolist() == [3, 2, 2]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000))
def test_no_target_is_lost_and_each_input_is_the_same_item_in_both_views(seed: int) -> None:
    """Over random sequences: targets by domain are those of the mixed view, inputs map onto themselves."""
    log = random_log(seed)
    batches = TrainBatches(log, max_len=6, batch_size=16, seed=seed)
    batch = next(iter(batches.epoch(0)))
    mixed, width = batch.mixed, batch.mixed.items.shape[1] + 1
    flat_cross = np.pad(mixed.items.numpy(), ((0, 0), (1, 0))).reshape(-1)  # the item read at each position
    flat_single = np.concatenate(
        [np.pad(rows.items.numpy(), ((0, 0), (1, 0))).reshape(-1) for rows in batch.singles]
    )
    targets, last = [], []
    at = 0
    for p, q in zip(batch.sizes, batch.agree_sizes, strict=True):
        targets += range(at, at + p)
        last += range(at + p, at + p + q)
        at += p + q
    cross_at, single_at = batch.cross_at.numpy(), batch.single_at.numpy()

    # A target stands right after the position that predicts it, where its window goes on.
    inside = (cross_at[targets] % width) + 1 < width
    follows = flat_cross[np.minimum(cross_at[targets] + 1, len(flat_cross) - 1)]
    is_read = inside & (follows != 0)
    assert (follows[is_read] == batch.item.numpy()[is_read]).all()
    ends = ((mixed.length.numpy() + 1) * 1).sum()
    assert sum(batch.sizes) == ends  # every event of every window is a target once
    assert len(np.unique(cross_at[targets])) == len(targets)
    assert len(np.unique(single_at[targets])) == len(targets)
    # The last event of a domain that both views have read is one item.
    assert (flat_cross[cross_at[last]] == flat_single[single_at[last]]).all()
    assert (flat_cross[cross_at[last]] != 0).all()
    # Items are of the domain that the sort by domain says.
    domain = np.repeat(np.arange(3), batch.sizes)
    names = np.array([int(name) for name in log.items])
    assert (names[batch.item.numpy() - 2] % 3 == domain).all()
    assert (names[batch.negative.numpy() - 2] % 3 == domain).all()
