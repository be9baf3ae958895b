"""Planted groups of domains: data whose experts are known, and how CESAA finds them.

`python -m training.routing.planted` trains every line of the table on five seeds and exits 1 where the
acceptance line is not met. Six domains, two to a group; a group has a linear truth of its own, and all share
a part. Invariant: a run depends on its line and seed alone; lines of one seed see the same rows in the same
order, so that differences are paired.

    pair    mean over groups of the chance that a row of one domain and a row of the other have the same best
            expert
    I       of the clean gate on the test rows, in nats; H(group) = .9265, log 3 = 1.0986

An information loss that weighs too much from the first step on prefers experts of equal load to true pairs:
it shows by an I above H(group).

Source: CESAA, arXiv 2411.06826; the experiment is ours.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from training.metrics import auc
from training.models.base import Sides
from training.models.cesaa import Cesaa
from training.models.routing_information import joint_distribution, mutual_information

SHARES = (0.30, 0.25, 0.20, 0.15, 0.06, 0.04)
GROUP_OF_DOMAIN = (0, 0, 1, 1, 2, 2)
NUM_DOMAINS, NUM_GROUPS = 6, 3
SMALL_DOMAINS = (4, 5)
NUM_FEATURES, DOMAIN_WIDTH = 16, 64
NUM_TRAIN, NUM_TEST = 6_000, 20_000
NUM_STEPS, BATCH, LEARNING_RATE = 1_500, 512, 1e-3
OWN_SCALE, SHARED_SCALE = 3.6, 1.4
"""Standard deviations of the part of the logit that a group has to itself, and of the part of all."""
LEAST_PAIR, INFORMATION_RANGE, LEAST_CHANGE = 0.95, (0.85, 0.95), -0.002


class Line(NamedTuple):
    """One line of the table.

    Attributes:
        top_k: k.
        weight: Factor on the information.
        warmup: Steps before it counts.
    """

    top_k: int
    weight: float
    warmup: int = 0

    def __str__(self) -> str:
        return f"k {self.top_k}  weight {self.weight:<6g} warm-up {self.warmup:<4d}"


PLAIN, DEFAULT, TOO_MUCH = Line(2, 0.0), Line(2, 0.01, 500), Line(2, 1.0)
LINES = (
    PLAIN,
    DEFAULT,
    TOO_MUCH,
    Line(2, 0.01),
    Line(2, 0.1, 500),
    Line(1, 0.0),
    Line(1, 0.003),
)


@dataclass(frozen=True, eq=False)
class PlantedRows:
    """n rows.

    Attributes:
        features: (n, 16) float32.
        domain: (n,) int64.
        label: (n,) float32.
        truth: (n,) float32, true click probability.
    """

    features: Tensor
    domain: Tensor
    label: Tensor
    truth: Tensor


class Found(NamedTuple):
    """What one run is judged by.

    Attributes:
        auc: Mean over domains.
        small_auc: Mean over the two small ones.
        information: I in nats.
        pair: As in the module's table.
        oracle: AUC of the true probabilities, mean over domains.
    """

    auc: float
    small_auc: float
    information: float
    pair: float
    oracle: float


class PlantedModel(nn.Module):
    """A domain embedding and the ranker, half of the features on each side.

    The linear term beside the tower is off: it would take from the experts what all groups share.
    """

    def __init__(self, top_k: int) -> None:
        super().__init__()
        self.domain = nn.Embedding(NUM_DOMAINS + 1, DOMAIN_WIDTH)
        self.ranker = Cesaa(
            request_width=NUM_FEATURES // 2 + DOMAIN_WIDTH,
            row_width=NUM_FEATURES // 2,
            domain_width=DOMAIN_WIDTH,
            num_domains=NUM_DOMAINS,
            num_experts=NUM_GROUPS,
            top_k=top_k,
            expert_widths=(16, 16),
            tower_widths=(16,),
            shared_expert=True,
            fusion="sum",
            gate_input="features+domain",
            expert_input="features",
            mi_weight=0.0,
            mi_prior="batch",
            dropout=0.0,
            batch_norm=False,
        )
        for parameter in self.ranker.linear.parameters():
            nn.init.zeros_(parameter)
            parameter.requires_grad = False

    def sides(self, features: Tensor, domain: Tensor) -> Sides:
        """Inputs of n rows."""
        half = NUM_FEATURES // 2
        request = torch.cat([features[:, :half], self.domain(domain)], dim=1)
        return Sides(request, features[:, half:], None, domain)


def make_rows(seed: int) -> tuple[PlantedRows, PlantedRows]:
    """Train and test rows of one truth: y ~ Bernoulli(sigmoid(x (w_shared + w_group)))."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(NUM_FEATURES, NUM_FEATURES, generator=generator))
    weights = OWN_SCALE * basis[:NUM_GROUPS] + SHARED_SCALE * basis[-1]

    def rows(count: int) -> PlantedRows:
        domain = torch.multinomial(torch.tensor(SHARES), count, replacement=True, generator=generator)
        features = torch.randn(count, NUM_FEATURES, generator=generator)
        truth = torch.sigmoid((features * weights[torch.tensor(GROUP_OF_DOMAIN)[domain]]).sum(dim=1))
        label = torch.bernoulli(truth, generator=generator)
        return PlantedRows(features, domain, label, truth)

    return rows(NUM_TRAIN), rows(NUM_TEST)


def run_line(line: Line, seed: int, *, num_steps: int = NUM_STEPS) -> Found:
    """Train one model and judge it."""
    train, test = make_rows(seed)
    torch.manual_seed(1_000 + seed)
    model = PlantedModel(line.top_k)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)
    order = torch.Generator().manual_seed(2_000 + seed)
    model.train()
    for step in range(num_steps):
        if step == line.warmup:
            model.ranker.set_mi_weight(line.weight)
        batch = torch.randint(NUM_TRAIN, (BATCH,), generator=order)
        logits = model.ranker(model.sides(train.features[batch], train.domain[batch]))
        loss = functional.binary_cross_entropy_with_logits(logits, train.label[batch])
        penalty = model.ranker.penalty()
        optimiser.zero_grad()
        total = loss if penalty is None else loss + penalty
        total.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return _judged(model.eval(), test)


def best_expert_shares(best: Tensor, domain: Tensor) -> NDArray[np.float64]:
    """(D, E): share of each domain's rows whose best expert it is."""
    counts = torch.zeros(NUM_DOMAINS, NUM_GROUPS).index_put(
        (domain, best), torch.ones(len(best)), accumulate=True
    )
    shares: NDArray[np.float64] = (counts / counts.sum(dim=1, keepdim=True)).double().numpy()
    return shares


def same_best(shares: NDArray[np.float64]) -> float:
    """Chance that two rows, one of each domain of a group, have the same best expert; mean over groups."""
    pairs = shares.reshape(NUM_GROUPS, 2, NUM_GROUPS)
    return float((pairs[:, 0] * pairs[:, 1]).sum(axis=1).mean())


def mean_found(found: list[Found]) -> Found:
    """Mean over seeds."""
    return Found(*np.mean(found, axis=0).tolist())


def failures(found: dict[Line, list[Found]]) -> list[str]:
    """Where the acceptance line is not met, one sentence each."""
    default, too_much = mean_found(found[DEFAULT]), mean_found(found[TOO_MUCH])
    change = float(np.mean([d.auc - p.auc for d, p in zip(found[DEFAULT], found[PLAIN], strict=True)]))
    group_entropy = float(_group_entropy())
    low, high = INFORMATION_RANGE
    out = []
    if default.pair < LEAST_PAIR:
        out.append(f"pair at the default is {default.pair:.3f}, must be {LEAST_PAIR} or more")
    if not low <= default.information <= high:
        out.append(f"I at the default is {default.information:.3f}, must be in [{low}, {high}]")
    if change < LEAST_CHANGE:
        out.append(f"AUC of the default less that without the loss is {change:.4f}, at least {LEAST_CHANGE}")
    if too_much.information <= group_entropy:
        out.append(
            f"I with a weight of 1 from the first step on is {too_much.information:.3f}; it should be above "
            f"H(group), {group_entropy:.4f}, by which over-weighting shows"
        )
    return out


def _group_entropy() -> float:
    shares = np.bincount(GROUP_OF_DOMAIN, weights=SHARES)
    return float(-(shares * np.log(shares)).sum())


@torch.no_grad()
def _judged(model: PlantedModel, test: PlantedRows) -> Found:
    sides = model.sides(test.features, test.domain)
    routing = model.ranker.gate(sides)
    joint = joint_distribution(routing.probabilities, test.domain, num_domains=NUM_DOMAINS, prior="batch")
    logits = model.ranker(sides)

    def domain_aucs(scores: Tensor) -> list[float]:
        return [
            auc(test.label[test.domain == d].numpy() > 0, scores[test.domain == d].double().numpy())
            for d in range(NUM_DOMAINS)
        ]

    found = domain_aucs(logits)
    return Found(
        auc=float(np.mean(found)),
        small_auc=float(np.mean([found[d] for d in SMALL_DOMAINS])),
        information=float(mutual_information(joint)),
        pair=same_best(best_expert_shares(routing.experts[:, 0], test.domain)),
        oracle=float(np.mean(domain_aucs(test.truth))),
    )


def main(
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each line.")] = 5,
) -> None:
    """Regenerate the table of planted groups; exit 1 where the acceptance line is not met."""
    torch.set_num_threads(1)
    typer.echo(f"{'line':34s} seeds  AUC     small   I       pair    AUC against weight 0 (least)  seconds")
    found: dict[Line, list[Found]] = {}
    for line in LINES:
        began = time.perf_counter()
        found[line] = [run_line(line, seed) for seed in range(seeds)]
        plain = found[Line(line.top_k, 0.0)]
        change = [f.auc - p.auc for f, p in zip(found[line], plain, strict=True)]
        mean = mean_found(found[line])
        took = time.perf_counter() - began
        typer.echo(
            f"{line!s:34s} {seeds:5d}  {mean.auc:.4f}  {mean.small_auc:.4f}  {mean.information:.4f}  "
            f"{mean.pair:.4f}  {np.mean(change):+.4f} ({min(change):+.4f})  {took:22.1f}"
        )
    typer.echo(
        f"{line!s:34s} {seeds:5d}  {mean.auc:.4f}  {mean.small_auc:.4f}  {mean.information:.4f}  "
        f"{mean.pair:.4f}  {np.mean(change):+.4f} ({min(change):+.4f})  {time.perf_counter() - began:22.1f}"
    )
    typer.echo(
        f"{'truth':34s}        {mean_found(found[PLAIN]).oracle:.4f}   H(group) {_group_entropy():.4f}"
    )
    broken = failures(found)
    for sentence in broken:
        typer.echo(sentence, err=True)
    if broken:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
