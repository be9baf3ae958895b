"""A planted world: attributes carry the taste of users, one domain is held out, and how well it is ranked.

`python -m training.hier.planted` measures and exits 1 where the acceptance lines are not met. Four domains of
200 items over 60 shared attributes; users have one of 6 hidden intents; the last domain's clicks are in no
graph and no loss. Invariant: a run depends on its setting and seed alone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import typer

from training.hier.bags import UserBags
from training.hier.clicks import Impressions
from training.hier.entities import EntityVocabulary
from training.hier.factors import Factors, compute_factors
from training.hier.graph import build_graph
from training.hier.network import NetSizes, make_net
from training.hier.pretrain import LossWeights, PretrainData, Pretrained, PretrainPlan, pretrain, silent
from training.hier.ragged import IntArray, Ragged
from training.hier.ranking import Ranked, RankingTask
from training.hier.sampling import items_of_domains

MIN_OVER_POPULARITY = 1.2
MIN_OVER_RANDOM = 4.0
OPEN_SHARES = (0.05, 0.60)


@dataclass(frozen=True)
class PlantedSetting:
    """Sizes of the world.

    Attributes:
        num_domains: The last one is the target.
        num_items: Of each domain.
        num_attributes: Shared by all domains.
        attributes_per_item: Of each item.
        num_users: In all domains.
        num_intents: Hidden; each user has one.
        clicks: Of each user in each domain; the last in time validates sources.
        taste: Factor on an item's mean attribute weight in the log odds of a click.
        popularity: Exponent of the Zipf weights of a domain's items.
    """

    num_domains: int = 4
    num_items: int = 200
    num_attributes: int = 60
    attributes_per_item: int = 3
    num_users: int = 1500
    num_intents: int = 6
    clicks: int = 8
    taste: float = 3.0
    popularity: float = 0.2


@dataclass(frozen=True, eq=False)
class PlantedWorld:
    """Clicks of all domains in time order, and the attributes of all items.

    Attributes:
        names: Attributes of each item.
        clicks: Of sources, without those that validate.
        held: Clicks of sources that validate.
        target: Clicks of the target.
    """

    setting: PlantedSetting
    names: list[list[str]]
    clicks: Impressions
    held: Impressions
    target: Impressions


@dataclass(frozen=True)
class Outcome:
    """What one seed gave, on the target's clicks."""

    random: Ranked
    popularity: Ranked
    zero_shot: Ranked
    trained: Pretrained
    seconds: float


def make_world(setting: PlantedSetting, seed: int) -> PlantedWorld:
    """Draw items, users and clicks."""
    rng = np.random.default_rng(seed)
    num_items = setting.num_domains * setting.num_items
    held = np.stack(
        [
            rng.choice(setting.num_attributes, setting.attributes_per_item, replace=False)
            for _ in range(num_items)
        ]
    )
    taste = rng.normal(size=(setting.num_intents, setting.num_attributes))
    intent = rng.integers(0, setting.num_intents, setting.num_users)
    rows: list[IntArray] = []
    for domain in range(setting.num_domains):
        items = domain * setting.num_items + rng.permutation(setting.num_items)
        heat = -setting.popularity * np.log(np.arange(1, setting.num_items + 1))
        odds = setting.taste * taste[:, held[items]].mean(axis=2) + heat  # (intents, items)
        noise = rng.gumbel(size=(setting.num_users, setting.num_items))
        chosen = np.argsort(-(odds[intent] + noise), axis=1)[:, : setting.clicks]  # without replacement
        chosen = rng.permuted(chosen, axis=1)
        users = np.repeat(np.arange(setting.num_users), setting.clicks)
        turn = np.tile(np.arange(setting.clicks), setting.num_users)
        rows.append(np.stack([users, items[chosen].reshape(-1), np.full(users.size, domain), turn], axis=1))
    every = np.concatenate(rows)
    every = every[np.argsort(every[:, 3], kind="stable")]
    log = Impressions(every[:, 0], every[:, 1], every[:, 2], np.ones(len(every), dtype=np.float32))
    last = every[:, 3] == setting.clicks - 1
    target = setting.num_domains - 1
    return PlantedWorld(
        setting,
        [[f"attribute:{a}" for a in own] for own in held.tolist()],
        clicks=log.where(~last).without(target),
        held=log.where(last).without(target),
        target=log.of(target),
    )


def learn(
    world: PlantedWorld, *, sizes: NetSizes, weights: LossWeights, plan: PretrainPlan
) -> tuple[Factors, Pretrained]:
    """Pre-train on the sources; U and V of everybody."""
    setting = world.setting
    vocabulary = EntityVocabulary.fit(world.names, min_items=2, max_share=0.2)
    sets = vocabulary.sets(world.names)
    bags = UserBags.of(world.clicks, sets, num_users=setting.num_users)
    pools = _pools(setting)
    tasks = [
        RankingTask.draw(world.held.of(d), pools.take(np.array([d]))[0][0], bags, seed=d, max_rows=400)
        for d in range(setting.num_domains - 1)
    ]
    net = make_net(build_graph(sets, vocabulary), sizes, seed=plan.seed)
    data = PretrainData(world.clicks, bags, sets, pools, tuple(tasks))
    found = pretrain(net, data, weights, plan, silent)
    return compute_factors(net, bags, sets), found


def measure(
    setting: PlantedSetting, seed: int, *, sizes: NetSizes, weights: LossWeights, plan: PretrainPlan
) -> Outcome:
    """One seed: learn, then rank half of the target's clicks."""
    began = time.perf_counter()
    world = make_world(setting, seed)
    factors, trained = learn(world, sizes=sizes, weights=weights, plan=plan)
    rng = np.random.default_rng([seed, 1])
    counted = rng.random(len(world.target)) < 0.5
    pool = _pools(setting).take(np.array([setting.num_domains - 1]))[0][0]
    # Nobody's clicks in the target are known to the scorer, so its negatives are drawn from those who ask.
    asked = world.target.where(~counted)
    clicked = UserBags.of(world.target, Ragged.of([[] for _ in world.names]), num_users=setting.num_users)
    task = RankingTask.draw(asked, pool, clicked, seed=seed, max_rows=3000)
    heat = np.bincount(world.target.item[counted], minlength=len(world.names)).astype(np.float32)
    luck = rng.random(len(world.names)).astype(np.float32)
    return Outcome(
        random=task.measure(lambda _, items: rng.random(len(items)).astype(np.float32)),
        popularity=task.measure(lambda _, items: heat[items] + 1e-3 * luck[items]),
        zero_shot=task.measure(factors.score),
        trained=trained,
        seconds=time.perf_counter() - began,
    )


def _pools(setting: PlantedSetting) -> Ragged:
    items = np.arange(setting.num_domains * setting.num_items, dtype=np.int64)
    shown = Impressions(items, items, items // setting.num_items, np.ones(len(items), dtype=np.float32))
    return items_of_domains(shown, num_domains=setting.num_domains)


def failures(outcomes: list[Outcome]) -> list[str]:
    """Acceptance lines that the mean over seeds misses."""
    ndcg, heat, luck = (
        float(np.mean([getattr(o, name).ndcg for o in outcomes]))
        for name in ("zero_shot", "popularity", "random")
    )
    shares = [o.trained.open_share for o in outcomes]
    found = []
    if ndcg < MIN_OVER_POPULARITY * heat:
        found.append(
            f"zero-shot NDCG {ndcg:.3f}, must be {MIN_OVER_POPULARITY} times popularity's {heat:.3f}"
        )
    if ndcg < MIN_OVER_RANDOM * luck:
        found.append(f"zero-shot NDCG {ndcg:.3f}, must be {MIN_OVER_RANDOM} times random's {luck:.3f}")
    low, high = OPEN_SHARES
    if min(shares) < low or max(shares) > high:
        found.append(f"open gates {[round(s, 3) for s in shares]}, must be within {low} and {high}")
    return found


def main(
    seeds: Annotated[int, typer.Option(min=1, help="Worlds.")] = 3,
    open_gates: Annotated[float, typer.Option(help="Weight of each gate expected open.")] = 1e-4,
    steps: Annotated[int, typer.Option(min=1, help="Steps at most.")] = 800,
) -> None:
    """Measure zero-shot ranking of a held-out planted domain; exit 1 where the acceptance is not met."""
    plan = PretrainPlan(max_steps=steps, evaluate_every=100, lr=1e-2, batch_size=512)
    torch.set_num_threads(1)
    outcomes = []
    typer.echo("seed  random NDCG/HR   popularity NDCG/HR   zero-shot NDCG/HR   open gates  step  seconds")
    for seed in range(seeds):
        own = PretrainPlan(**(vars(plan) | {"seed": seed}))
        weights = LossWeights(open_gates=open_gates)
        out = measure(PlantedSetting(), seed, sizes=NetSizes(width=32), weights=weights, plan=own)
        outcomes.append(out)
        cells = [f"{r.ndcg:.3f} / {r.hit_rate:.3f}" for r in (out.random, out.popularity, out.zero_shot)]
        typer.echo(
            f"{seed:4d}  {cells[0]:15s}  {cells[1]:19s}  {cells[2]:18s}  {out.trained.open_share:10.3f}  "
            f"{out.trained.step:4d}  {out.seconds:7.1f}"
        )
    missed = failures(outcomes)
    typer.echo("acceptance: met" if not missed else "acceptance: NOT met\n" + "\n".join(missed))
    raise typer.Exit(code=1 if missed else 0)


if __name__ == "__main__":
    typer.run(main)
