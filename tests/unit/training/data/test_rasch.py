"""The Rasch model by hand, and against what its optimum must satisfy."""

import math

import numpy as np
import pytest

from training.data.rasch import fit_rasch


def _fit(user, item, chosen, **changes):
    options = {"num_users": 3, "num_items": 3, "user_ridge": 1.0, "item_ridge": 2.0, "steps": 6} | changes
    return fit_rasch(np.array(user), np.array(item), np.array(chosen, dtype=bool), **options)


def test_one_step_by_hand():
    # u has i (chosen) and j (not); v has j (chosen) and i (not): half of all, so every probability is 1/2.
    found = _fit([0, 0, 0, 1], [0, 1, 2, 0], [1, 1, 0, 0], steps=1)

    # u: gradient 2 - 3/2, curvature 3/4 + 1. v: -1/2 over 1/4 + 1.
    u, v = 0.5 / 1.75, -0.5 / 1.25
    assert found.ability == pytest.approx([u, v, 0])
    pu, pv = 1 / (1 + math.exp(-u)), 1 / (1 + math.exp(-v))
    # i: chosen by u and not by v; j: chosen by u; k: not chosen by u. Difficulty falls with every choice.
    i = -(1 - pu - pv) / (pu * (1 - pu) + pv * (1 - pv) + 2)
    j, k = -(1 - pu) / (pu * (1 - pu) + 2), pu / (pu * (1 - pu) + 2)
    assert found.difficulty == pytest.approx([i, j, k])
    assert found.residual[3] == pytest.approx(-1 / (1 + math.exp(i - v)))


def test_many_steps_reach_the_penalised_optimum():
    rng = np.random.default_rng(0)
    user, item = np.divmod(np.arange(60), 6)
    chosen = rng.random(60) < 0.3

    found = _fit(user, item, chosen, num_users=11, num_items=7, user_ridge=0.5, steps=60)

    # At the optimum each side's sum of residuals equals its ridge times its value.
    assert np.bincount(user, found.residual, 11) == pytest.approx(0.5 * found.ability, abs=1e-9)
    assert np.bincount(item, found.residual, 7) == pytest.approx(-2.0 * found.difficulty, abs=1e-9)
    assert found.ability[10] == found.difficulty[6] == 0


@pytest.mark.parametrize("all_chosen", [True, False])
def test_rates_of_zero_and_one_stay_finite(all_chosen):
    found = _fit([0, 1], [0, 1], [all_chosen] * 2)

    assert np.isfinite(found.ability).all()
    assert np.isfinite(found.difficulty).all()


def test_no_pairs_give_zeros():
    found = _fit(np.zeros(0, dtype=int), np.zeros(0, dtype=int), [])

    assert found.ability.tolist() == found.difficulty.tolist() == [0, 0, 0]
