"""Planted groups: what is measured of them, the acceptance line, the trap of an over-weighted loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.routing.planted import (
    DEFAULT,
    PLAIN,
    TOO_MUCH,
    Found,
    best_expert_shares,
    failures,
    make_rows,
    run_line,
    same_best,
)

GOOD = {
    PLAIN: [Found(0.90, 0.88, 0.75, 0.99, 0.94)],
    DEFAULT: [Found(0.90, 0.88, 0.88, 0.99, 0.94)],
    TOO_MUCH: [Found(0.80, 0.70, 1.07, 0.2, 0.94)],
}


def test_pair_by_hand():
    """Group 0 agrees with chance .6 * .5 + .4 * .5, group 1 always, group 2 never."""
    shares = np.array([[0.6, 0.4, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1.0]])
    assert same_best(shares) == pytest.approx((0.5 + 1.0 + 0.0) / 3)


def test_shares_count_rows_of_each_domain():
    best = torch.tensor([0, 1, 1, 2, 0, 2, 2])
    domain = torch.tensor([0, 0, 1, 2, 3, 4, 5])
    found = best_expert_shares(best, domain)

    assert found[0].tolist() == [0.5, 0.5, 0.0]
    assert found[5].tolist() == [0.0, 0.0, 1.0]


def test_two_domains_of_a_group_have_one_truth():
    """Rows of equal features have equal chances in both, and others in another group."""
    train, test = make_rows(3)

    assert (len(train.label), len(test.label)) == (6000, 20000)
    assert set(train.label.tolist()) == {0.0, 1.0}
    shares = torch.bincount(test.domain) / 20000
    torch.testing.assert_close(shares, torch.tensor([0.3, 0.25, 0.2, 0.15, 0.06, 0.04]), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("line", "found", "message"),
    [
        (DEFAULT, Found(0.9, 0.88, 0.88, 0.90, 0.94), "pair at the default is 0.900"),
        (
            DEFAULT,
            Found(0.9, 0.88, 0.80, 0.99, 0.94),
            r"I at the default is 0.800, must be in \[0.85, 0.95\]",
        ),
        (DEFAULT, Found(0.897, 0.88, 0.88, 0.99, 0.94), "that without the loss is -0.0030, at least -0.002"),
        (TOO_MUCH, Found(0.9, 0.88, 0.88, 0.99, 0.94), r"it should be above H\(group\), 0.9265"),
    ],
)
def test_the_acceptance_line(line: object, found: Found, message: str):
    assert failures(GOOD) == []
    (sentence,) = failures({**GOOD, line: [found]})  # type: ignore[dict-item]
    assert message.replace("\\", "") in sentence


def test_trap_over_weighted_information_binds_domains_by_chance():
    """With weight 1 from the first step I rises above H(group) = .9265 before groups are found."""
    found = run_line(TOO_MUCH, 0, num_steps=250)

    assert found.information > 0.9265
    assert found.pair < 0.9
