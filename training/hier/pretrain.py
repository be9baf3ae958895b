"""Pre-training over source domains: one network for all of them, by pairs of clicked and other items.

Reads the clicks it is given and nothing else. Invariant: a row's user is that of a log in which the row's
item was not clicked; the best weights are chosen by the mean over source domains, never by a target.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.hier.bags import UserBags
from training.hier.clicks import Impressions
from training.hier.errors import GraphError
from training.hier.factors import compute_factors
from training.hier.ragged import IntArray, Ragged
from training.hier.ranking import RankingTask
from training.hier.sampling import draw_negatives
from training.models.hier_losses import exemplar_contrast, pairwise_loss, view_information
from training.models.hier_net import HierNet

Told = Callable[[int, float], None]
"""Called with the step and the mean validation NDCG@10."""


def silent(step: int, ndcg: float) -> None:
    """Tells nobody."""
    del step, ndcg


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms beside the pairwise loss of the score, which has 1.

    Attributes:
        intent: Pairwise loss from the intent view alone.
        information: What the intent view keeps of the user.
        exemplar: Contrast of items with their exemplars.
        open_gates: Each gate expected open.
        l2: Squared length of the step's vectors, mean over rows.
        temperature: Of both contrastive terms.
    """

    intent: float = 1.0
    information: float = 0.02
    exemplar: float = 0.1
    open_gates: float = 1e-4
    l2: float = 1e-5
    temperature: float = 0.2


@dataclass(frozen=True)
class PretrainPlan:
    """The loop.

    Attributes:
        max_steps: Steps at most.
        batch_size: Clicks of a step, all of one domain.
        evaluate_every: Steps between validations.
        patience: Validations without a new best after which it stops.
        lr: Of Adam.
        seed: Of draws and noise; the network comes with its weights.
        domain_power: A step's domain is drawn with probability proportional to its clicks to this power.
    """

    max_steps: int = 1500
    batch_size: int = 1024
    evaluate_every: int = 100
    patience: int = 4
    lr: float = 1e-3
    seed: int = 0
    domain_power: float = 0.5


@dataclass(frozen=True, eq=False)
class PretrainData:
    """What a run learns from.

    Attributes:
        clicks: Of the source domains.
        bags: Users by the same clicks.
        item_sets: Entities of all items.
        pools: Items of each domain.
        tasks: What each source domain is validated on.
    """

    clicks: Impressions
    bags: UserBags
    item_sets: Ragged
    pools: Ragged
    tasks: tuple[RankingTask, ...]


@dataclass(frozen=True)
class Pretrained:
    """How a run ended: best mean validation NDCG@10, its step, and the share of gates that are open there."""

    ndcg: float
    step: int
    open_share: float


@dataclass(frozen=True, eq=False)
class StepRows:
    """B rows of a step as tensors.

    Attributes:
        user_ids, user_weights: (B, L), without the row's own item.
        clicked, other: (B, L') entities of the clicked item and of one that was not.
        first_of_user, first_of_item: Rows on which each user, and each clicked item, is met first.
    """

    user_ids: Tensor
    user_weights: Tensor
    clicked: Tensor
    other: Tensor
    first_of_user: Tensor
    first_of_item: Tensor


def pretrain(
    net: HierNet, data: PretrainData, weights: LossWeights, plan: PretrainPlan, told: Told
) -> Pretrained:
    """Train a network and leave it, in evaluation mode, with its best weights.

    Raises:
        GraphError: There are no clicks to learn from.
    """
    domains, counts = np.unique(data.clicks.domain, return_counts=True)
    if not len(domains):
        raise GraphError("pre-training needs clicks of source domains, got none")
    chance = counts**plan.domain_power / (counts**plan.domain_power).sum()
    rows_of = {int(d): np.flatnonzero(data.clicks.domain == d) for d in domains}
    rng = np.random.default_rng(plan.seed)
    torch.manual_seed(plan.seed)
    optimiser = torch.optim.Adam(net.parameters(), lr=plan.lr)
    best, state, stale = Pretrained(-1.0, 0, 1.0), copy.deepcopy(net.state_dict()), 0
    for step in range(1, plan.max_steps + 1):
        domain = int(rng.choice(domains, p=chance))
        rows = rng.choice(rows_of[domain], plan.batch_size)
        net.train()
        loss = step_loss(net, draw_rows(data, rows, domain, rng), weights)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        net.gates.keep_in_range()
        if step % plan.evaluate_every == 0 or step == plan.max_steps:
            value = validate(net, data)
            told(step, value)
            stale += 1
            if value > best.ndcg:
                best, stale = Pretrained(value, step, net.gates.open_share()), 0
                state = copy.deepcopy(net.state_dict())
            if stale >= plan.patience:
                break
    net.load_state_dict(state)
    net.eval()
    return best


def draw_rows(data: PretrainData, rows: IntArray, domain: int, rng: np.random.Generator) -> StepRows:
    """The rows (B,) of the clicks, with a negative each."""
    users, items = data.clicks.user[rows], data.clicks.item[rows]
    pool = data.pools.take(np.array([domain]))[0][0]
    others = draw_negatives(rng, users, pool, data.bags, count=1)[:, 0]
    ids, weights = data.bags.take(users, left_out=items)
    return StepRows(
        user_ids=torch.from_numpy(ids),
        user_weights=torch.from_numpy(weights),
        clicked=torch.from_numpy(data.item_sets.take(items)[0]),
        other=torch.from_numpy(data.item_sets.take(others)[0]),
        first_of_user=torch.from_numpy(np.unique(users, return_index=True)[1]),
        first_of_item=torch.from_numpy(np.unique(items, return_index=True)[1]),
    )


def step_loss(net: HierNet, rows: StepRows, weights: LossWeights) -> Tensor:
    """The whole objective on one step, a scalar."""
    layers, paths = net.entity_layers(), net.paths()
    users = net.users(layers, rows.user_ids, rows.user_weights)
    clicked, other = net.items(layers, rows.clicked), net.items(layers, rows.other)
    left = net.user_factors(users, paths)
    loss = pairwise_loss((left * net.item_factors(clicked)).sum(1), (left * net.item_factors(other)).sum(1))
    views = net.intent_view(users)
    loss = loss + weights.intent * pairwise_loss((views * clicked).sum(1), (views * other).sum(1))
    one_each = rows.first_of_user
    loss = loss + weights.information * view_information(
        users[one_each], views[one_each], temperature=weights.temperature
    )
    distinct = clicked[rows.first_of_item]
    loss = loss + weights.exemplar * exemplar_contrast(
        distinct, net.exemplar_view(distinct), temperature=weights.temperature
    )
    squares = (users.square() + clicked.square() + other.square()).sum(1).mean()
    return loss + weights.open_gates * net.gates.expected_open() + weights.l2 * squares


def validate(net: HierNet, data: PretrainData) -> float:
    """Mean over source domains of NDCG@10 on their validation clicks; 0 where there are none."""
    net.eval()
    factors = compute_factors(net, data.bags, data.item_sets)
    found = [task.measure(factors.score).ndcg for task in data.tasks]
    return float(np.mean(found)) if found else 0.0
