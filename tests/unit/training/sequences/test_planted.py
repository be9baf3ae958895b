"""The planted experiment: its data, and how it says where the acceptance line is not met."""

from __future__ import annotations

import numpy as np

from training.sequences.planted import DEFAULT, Found, failures, make_log, run_variant

GOOD = Found(
    single=(0.95, 0.88, 0.93),
    cross=(0.95, 0.95, 0.60),
    served=(0.95, 0.95, 0.93),
    phi=(0.0, 0.2, -0.15),
    weight=(0.33, 0.37, 0.30),
    switched=(False, False, True),
)


def test_a_run_within_the_line_passes() -> None:
    """No sentence."""
    assert failures([GOOD, GOOD]) == []


def test_each_miss_is_a_sentence() -> None:
    """Phi, weight, the served figure of C, and a loss against the single view."""
    bad = GOOD._replace(phi=(0.0, 0.2, -0.05), weight=(0.3, 0.3, 0.4), served=(0.90, 0.95, 0.60))

    assert failures([GOOD, bad]) == [
        "seed 1: phi of C is -0.050, must be below -0.1 and the smallest",
        "seed 1: the weight of C is 0.400, must be below 1/3 and that of A or B above, but they are 0.300 "
        "and 0.300",
        "seed 1: served HR of C is 0.600, must be 0.9 or more",
        "seed 1: served HR of A is 0.900, by its single view 0.950",
        "seed 1: served HR of C is 0.600, by its single view 0.930",
    ]


def test_users_keep_to_their_type_and_c_to_its_chain() -> None:
    """A's and B's items of a user come from three ids of 30 and the same type; C's follow few successors."""
    log = make_log(0, num_users=300)
    names = np.array([int(name) for name in log.items])
    known = log.item >= 2
    item = np.where(known, names[np.maximum(log.item - 2, 0)], -1)
    user = log.user_of_event
    own = known & (log.domain < 2)
    kinds = (item[own] % 30) // 3
    agreed = [
        (np.bincount(kinds[user[own] == u]).max() / (user[own] == u).sum())
        for u in range(50)
        if (user[own] == u).any()
    ]
    chained = known & (log.domain == 2)
    steps = item[chained] - 60
    follows = user[chained][1:] == user[chained][:-1]
    followers = np.zeros((30, 30))
    np.add.at(followers, (steps[:-1][follows], steps[1:][follows]), 1)
    four = np.sort(followers, axis=1)[:, -4:].sum() / followers.sum()

    assert np.mean(agreed) > 0.9
    assert four > 0.9
    assert np.allclose(np.bincount(log.domain) / len(log.domain), (0.45, 0.10, 0.45), atol=0.02)


def test_a_short_run_gives_every_figure() -> None:
    """In bounds; weights sum to 1."""
    found = run_variant(DEFAULT, 0, num_steps=4, num_users=128)

    assert all(0 <= value <= 1 for view in (found.single, found.cross, found.served) for value in view)
    assert np.isclose(sum(found.weight), 1.0)
    assert len(found.phi) == len(found.switched) == 3
