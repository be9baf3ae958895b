"""Rasch model of a choice: which users choose much, and which items are hard to be chosen.

Source: Rasch, "Probabilistic Models for Some Intelligence and Attainment Tests" (1960): the log-odds that
user u chooses item i are ability minus difficulty. We add the log-odds of all pairs as a constant, pull both
sides to 0 by a ridge, and fit by alternating Newton steps, so that a user is not praised for easy items nor
an item for keen users.

Letters: U users, I items, E distinct (user, item) pairs of the history `among`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.contract.schema import Entity
from training.data.columns import Floats, Ints
from training.data.events import HistoryInputs, entity_number
from training.data.made import Made
from training.data.statistics import clipped, logit
from training.data.table import RaschSpec


@dataclass(frozen=True)
class RaschFit:
    """A fitted model.

    Attributes:
        user: (E,) slots of the pairs; item: likewise.
        ability: (U,) log-odds, 0 without history.
        difficulty: (I,) log-odds, 0 for an item that nobody has among.
        residual: (E,) chosen (0 or 1) less its probability.
    """

    user: Ints
    item: Ints
    ability: Floats
    difficulty: Floats
    residual: Floats


def fit_rasch(
    user: Ints,
    item: Ints,
    chosen: NDArray[np.bool_],
    *,
    num_users: int,
    num_items: int,
    user_ridge: float,
    item_ridge: float,
    steps: int,
) -> RaschFit:
    """Fit abilities and difficulties.

    Args:
        user: (E,) slots.
        item: (E,) slots.
        chosen: (E,) whether the pair was chosen.
        num_users: U.
        num_items: I.
        user_ridge: Weight of ability**2 / 2 against the log-likelihood.
        item_ridge: Weight of difficulty**2 / 2.
        steps: Rounds, each one Newton step of all abilities, then one of all difficulties.
    """
    base = float(logit(clipped(np.array([chosen.mean() if len(chosen) else 0.5])))[0])
    ability, difficulty = np.zeros(num_users), np.zeros(num_items)

    def probability() -> Floats:
        return np.asarray(1 / (1 + np.exp(difficulty[item] - ability[user] - base)))

    def step(slots: Ints, n: int, values: Floats, ridge: float, sign: float) -> Floats:
        p = probability()
        gradient = sign * np.bincount(slots, weights=chosen - p, minlength=n) - ridge * values
        curvature = np.bincount(slots, weights=p * (1 - p), minlength=n) + ridge
        return np.asarray(values + gradient / curvature)

    for _ in range(steps):
        ability = step(user, num_users, ability, user_ridge, 1.0)
        difficulty = step(item, num_items, difficulty, item_ridge, -1.0)
    return RaschFit(user, item, ability, difficulty, chosen - probability())


def rasch_of(inputs: HistoryInputs, spec: RaschSpec) -> RaschFit:
    """Fit a described model to the recorded histories."""
    num_users, num_items = len(inputs.users), len(inputs.items)
    among = inputs.events[spec.among].pairs(num_items)
    return fit_rasch(
        among // max(num_items, 1),
        among % max(num_items, 1),
        np.isin(among, inputs.events[spec.chosen].pairs(num_items), assume_unique=True),
        num_users=num_users,
        num_items=num_items,
        user_ridge=spec.user_ridge,
        item_ridge=spec.item_ridge,
        steps=spec.steps,
    )


def make_rasch(inputs: HistoryInputs, spec: RaschSpec, fit: RaschFit) -> Made:
    """Ability of each user, and difficulty of each item."""
    text = f"of {spec.chosen} given {spec.among}"
    return Made(
        [
            entity_number(
                f"{spec.name}_user", Entity.USER, fit.ability, inputs.users.train_rows, f"ability {text}"
            ),
            entity_number(
                f"{spec.name}_item",
                Entity.ITEM,
                fit.difficulty,
                inputs.items.train_rows,
                f"difficulty {text}",
            ),
        ]
    )
