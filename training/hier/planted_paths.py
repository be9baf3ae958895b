"""Planted paths: whether the gates find a table of links that is the only cause of clicks.

`python -m training.hier.planted_paths` measures and exits 1 where the acceptance lines are not met. Users
belong to one of 8 intents, items to one of 24 exemplars, centres are given; a user clicks an item where a
random 0/1 table links the two. The score is the path term alone. Invariant: a run depends on its seed alone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor

from training.metrics import auc
from training.models.hier_losses import pairwise_loss
from training.models.hier_parts import shares
from training.models.hier_paths import PathGates

NUM_INTENTS, NUM_EXEMPLARS, WIDTH = 8, 24, 32
NOISE, TEMPERATURE = 0.3, 0.25
LINK_RATE = 0.22
BATCH_SIZE, LR = 512, 1e-2
LEARNED_WEIGHT = 1e-3
"""Weight of a gate expected open at which the table must be found."""
TEST_USERS, TEST_ITEMS = 200, 200


@dataclass(frozen=True)
class PathOutcome:
    """What one seed gave.

    Attributes:
        planted_share, open_share: Of links that exist, and of gates that are open.
        gate_auc, strength_auc: Of the gates, and of gates times strengths, against the table.
        ranking_auc: Mean over users.
    """

    planted_share: float
    open_share: float
    gate_auc: float
    strength_auc: float
    ranking_auc: float
    seconds: float


@dataclass(frozen=True, eq=False)
class PathWorld:
    """Given centres and the table that causes clicks.

    Attributes:
        table: (M, K) bool, whether intent m clicks exemplar k.
        intents: (M, d); exemplars: (K, d).
    """

    rng: np.random.Generator
    table: NDArray[np.bool_]
    intents: Tensor
    exemplars: Tensor

    @staticmethod
    def draw(seed: int) -> PathWorld:
        """A world; every intent clicks something."""
        rng = np.random.default_rng(seed)
        table = rng.random((NUM_INTENTS, NUM_EXEMPLARS)) < LINK_RATE
        for row in table:
            row[rng.integers(NUM_EXEMPLARS)] = True
        intents = torch.from_numpy(rng.normal(size=(NUM_INTENTS, WIDTH)).astype(np.float32))
        exemplars = torch.from_numpy(rng.normal(size=(NUM_EXEMPLARS, WIDTH)).astype(np.float32))
        return PathWorld(rng, table, intents, exemplars)

    def shares(self, centres: Tensor, which: NDArray[np.int64]) -> Tensor:
        """Shares (B, C) of noisy members of the centres (B,)."""
        noise = torch.from_numpy(self.rng.normal(size=(len(which), WIDTH)).astype(np.float32))
        members = centres[torch.from_numpy(which)] + NOISE * noise
        return shares(members, centres, temperature=TEMPERATURE)


def measure(seed: int, *, weight: float, steps: int) -> PathOutcome:
    """Train the path term on one planted table."""
    began = time.perf_counter()
    torch.manual_seed(seed)
    world = PathWorld.draw(seed)
    gates = PathGates(num_intents=NUM_INTENTS, num_exemplars=NUM_EXEMPLARS)
    mixing = torch.nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH)
    optimiser = torch.optim.Adam([*gates.parameters(), mixing], lr=LR)
    for _ in range(steps):
        loss = _step_loss(world, gates, mixing) + weight * gates.expected_open()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        gates.keep_in_range()
    gates.eval()
    with torch.no_grad():
        fixed = gates()
        links = fixed * (world.intents @ mixing @ world.exemplars.T)
    truth = world.table.reshape(-1)
    return PathOutcome(
        planted_share=float(truth.mean()),
        open_share=gates.open_share(),
        gate_auc=auc(truth, fixed.numpy().reshape(-1)),
        strength_auc=auc(truth, links.numpy().reshape(-1)),
        ranking_auc=_ranking_auc(world, links),
        seconds=time.perf_counter() - began,
    )


def _step_loss(world: PathWorld, gates: PathGates, mixing: Tensor) -> Tensor:
    rng = world.rng
    intent = rng.integers(0, NUM_INTENTS, BATCH_SIZE)
    keys = rng.random((BATCH_SIZE, NUM_EXEMPLARS))
    linked = np.where(world.table[intent], keys, -1.0).argmax(axis=1)
    other = np.where(world.table[intent], -1.0, keys).argmax(axis=1)
    links = gates() * (world.intents @ mixing @ world.exemplars.T)
    left = world.shares(world.intents, intent) @ links
    clicked, passed = ((left * world.shares(world.exemplars, which)).sum(dim=1) for which in (linked, other))
    return pairwise_loss(clicked, passed)


def _ranking_auc(world: PathWorld, links: Tensor) -> float:
    """Mean AUC of new users over new items."""
    intent = world.rng.integers(0, NUM_INTENTS, TEST_USERS)
    exemplar = world.rng.integers(0, NUM_EXEMPLARS, TEST_ITEMS)
    scores = world.shares(world.intents, intent) @ links @ world.shares(world.exemplars, exemplar).T
    clicked = world.table[intent][:, exemplar].astype(np.float64)
    pairs = zip(clicked, scores.numpy(), strict=True)
    return float(np.mean([auc(own, rank) for own, rank in pairs if 0 < own.sum() < TEST_ITEMS]))


def failures(outcomes: list[PathOutcome]) -> list[str]:
    """Acceptance lines that a seed misses."""
    found = []
    for seed, out in enumerate(outcomes):
        if out.gate_auc < 0.98:
            found.append(f"seed {seed}: AUC of gates {out.gate_auc:.3f}, must be 0.98")
        if abs(out.open_share - out.planted_share) > 0.05:
            found.append(
                f"seed {seed}: open share {out.open_share:.3f}, must be within 0.05 of "
                f"{out.planted_share:.3f}"
            )
        if out.ranking_auc < 0.99:
            found.append(f"seed {seed}: ranking AUC {out.ranking_auc:.3f}, must be 0.99")
    return found


def main(
    seeds: Annotated[int, typer.Option(min=1, help="Tables.")] = 2,
    steps: Annotated[int, typer.Option(min=1, help="Steps of 512 rows.")] = 1500,
    weights: Annotated[str, typer.Option(help="Weights of a gate, with commas.")] = "0,1e-4,1e-3,1e-2",
) -> None:
    """Measure how well gates find planted links; exit 1 where the acceptance at weight 1e-3 is not met."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # sharp softmaxes leave numbers that the processor is slow at
    typer.echo("weight  seed  planted  open   AUC of z  AUC of z*S  ranking AUC  seconds")
    missed = []
    for weight in (float(text) for text in weights.split(",")):
        outcomes = []
        for seed in range(seeds):
            out = measure(seed, weight=weight, steps=steps)
            outcomes.append(out)
            typer.echo(
                f"{weight:<6g}  {seed:4d}  {out.planted_share:7.3f}  {out.open_share:.3f}  "
                f"{out.gate_auc:8.3f}  {out.strength_auc:10.3f}  {out.ranking_auc:11.3f}  {out.seconds:7.1f}"
            )
        missed += failures(outcomes) if weight == LEARNED_WEIGHT else []
    typer.echo("acceptance: met" if not missed else "acceptance: NOT met\n" + "\n".join(missed))
    raise typer.Exit(code=1 if missed else 0)


if __name__ == "__main__":
    typer.run(main)
