"""Rehearsals: large source domains play, one at a time, the new domain that has no clicks yet.

Each is pre-trained without, and measured on its validation part. From this come the head that a new domain
starts from, the prior of its counts and the strength of the head's pull. Invariant: neither the held-out
domain nor any test part is read, and a setting is judged on a domain whose rows did not fit its start.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.hier.clicks import Impressions
from training.hier.domain_line import line_from_prior
from training.hier.errors import GraphError
from training.hier.factors import Factors, compute_factors
from training.hier.head import fit_head, fit_logistic, head_inputs
from training.hier.pretrain import silent
from training.hier.rates import DEFAULT_PRIOR, Counted, Elsewhere, columns_before
from training.hier.source import SourceData, train_network
from training.hier.start import Start
from training.metrics import auc
from training.models.hier import HEAD_COLUMNS, RATES, zero_shot_head

PRIORS = (2.0, 5.0, 20.0)
STRENGTHS = (30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)
SHOTS = (0, 50, 200, 1000, 5000)
DRAWS = 2
MIN_CLICKS = 50
MIN_STAGES = 2
RIDGE = 1.0
"""Pull to 0 on the weights of a start, in rows. A stage counts by the root of its rows."""

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Stage:
    """A source domain that plays the new one.

    Attributes:
        name: Of it.
        factors: Of a pre-training without it.
        others: Train rows of the other sources.
        train, valid: Its own rows.
    """

    name: str
    factors: Factors
    others: Impressions
    train: Impressions
    valid: Impressions

    def elsewhere(self, prior: float) -> Elsewhere:
        """What the other sources say of items and users."""
        sizes = {"num_items": len(self.factors.items), "num_users": len(self.factors.users)}
        return Elsewhere.count(self.others, prior=prior, **sizes)


@dataclass(frozen=True)
class Tried:
    """A setting with its mean AUC over stages, numbers of rows and draws."""

    prior: float
    strength: float
    auc: float


@dataclass(frozen=True)
class Rehearsed:
    """What came of it: the start, all settings, and by stage and n the AUC under the chosen one."""

    start: Start
    tried: tuple[Tried, ...]
    stages: dict[str, dict[int, float]]


def make_stages(source: SourceData, *, number: int) -> list[Stage]:
    """Pre-train without each of the largest sources that have clicks to be measured on."""
    names = source.prepared.schema.domains
    train, valid = source.train, source.valid
    sizes = np.bincount(train.domain, minlength=len(names))
    clicks = np.bincount(valid.domain, weights=valid.label, minlength=len(names))
    shown = np.bincount(valid.domain, minlength=len(names))
    fit = [d for d in np.argsort(-sizes[: len(names)], kind="stable").tolist() if clicks[d] >= MIN_CLICKS]
    stages = []
    for domain in [d for d in fit if shown[d] > clicks[d]][:number]:
        rest = SourceData(source.prepared, source.config, source.raw, also_out=domain)
        net, _ = train_network(rest, silent)
        factors = compute_factors(net, rest.bags, rest.item_sets)
        stages.append(Stage(names[domain], factors, rest.train, train.of(domain), valid.of(domain)))
    return stages


def rehearse(stages: list[Stage], *, counted: bool = True) -> Rehearsed:
    """Choose a start.

    Args:
        stages: At least two, for each judges a start that the others made.
        counted: Whether the start may use rates; without, it is the zero-shot score and only the strength
            is chosen.

    Raises:
        GraphError: There are fewer than two.
    """
    if len(stages) < MIN_STAGES:
        raise GraphError(
            f"rehearsals need {MIN_STAGES} source domains with {MIN_CLICKS} validation clicks and with rows "
            f"that were not clicked, found {len(stages)}; set rehearsals to 0 to do without"
        )
    tried, curves = [], []
    for prior in PRIORS if counted else (DEFAULT_PRIOR,):
        heads = [
            fit_start([other for other in stages if other is not stage], prior=prior)
            if counted
            else plain_start([other for other in stages if other is not stage])
            for stage in stages
        ]
        for strength in STRENGTHS:
            found = {
                stage.name: shot_curve(stage, Start(head, prior, strength))
                for stage, head in zip(stages, heads, strict=True)
            }
            mean = float(np.mean([list(curve.values()) for curve in found.values()]))
            tried.append(Tried(prior, strength, mean))
            curves.append(found)
    best = int(np.argmax([one.auc for one in tried]))
    prior, strength = tried[best].prior, tried[best].strength
    head = fit_start(stages, prior=prior) if counted else plain_start(stages)
    return Rehearsed(Start(head, prior, strength), tuple(tried), curves[best])


def fit_start(stages: list[Stage], *, prior: float) -> tuple[float, ...]:
    """Weights of score and rates over the validation rows of all stages, after each of `SHOTS` and all rows.

    A weight below 0 is taken as 0: evidence for a click must not count against it.
    """
    blocks: list[FloatArray] = []
    labels: list[FloatArray] = []
    groups: list[NDArray[np.int64]] = []
    for stage in stages:
        elsewhere = stage.elsewhere(prior)
        for n in (*SHOTS, len(stage.train)):
            first = stage.train.where(np.arange(min(n, len(stage.train))))
            counted = Counted.of(first, elsewhere, prior=prior)
            columns = counted.columns(stage.valid.user, stage.valid.item)
            score = stage.factors.score(stage.valid.user, stage.valid.item).astype(np.float64)
            blocks.append(np.column_stack([score, columns[:, 1:]]))
            labels.append(stage.valid.label.astype(np.float64))
            groups.append(np.full(len(score), len(groups)))
    group = np.concatenate(groups)
    rows = np.concatenate([np.concatenate(blocks), np.eye(len(groups))[group]], axis=1)
    sizes = np.bincount(group)
    weights = (1.0 / np.sqrt(sizes))[group]
    weights /= weights.mean()
    pull = np.full(rows.shape[1], RIDGE)
    start = np.zeros(rows.shape[1])
    found = fit_logistic(rows, np.concatenate(labels), start=start, pull=pull, weights=weights)
    return as_head(found[: 1 + len(RATES)], width=stages[0].factors.width)


def as_head(weights: FloatArray, *, width: int) -> tuple[float, ...]:
    """(9 + d,) head of the weights (5,) of the score and of rates."""
    head = np.zeros(len(HEAD_COLUMNS) + width)
    head[HEAD_COLUMNS.index("score")] = max(float(weights[0]), 0.0)
    for name, weight in zip(RATES, weights[1:], strict=True):
        head[HEAD_COLUMNS.index(name)] = max(float(weight), 0.0)
    return tuple(head.tolist())


def plain_start(stages: list[Stage]) -> tuple[float, ...]:
    """The score alone, with the slope of one line through the stages' validation rows."""
    scores = [stage.factors.score(stage.valid.user, stage.valid.item).astype(np.float64) for stage in stages]
    group = np.repeat(np.arange(len(stages)), [len(own) for own in scores])
    rows = np.column_stack([np.concatenate(scores), np.eye(len(stages))[group]])
    labels = np.concatenate([stage.valid.label for stage in stages]).astype(np.float64)
    zero, pull = np.zeros(rows.shape[1]), np.full(rows.shape[1], RIDGE)
    slope = max(float(fit_logistic(rows, labels, start=zero, pull=pull)[0]), 1e-3)
    return tuple(slope * weight for weight in zero_shot_head(stages[0].factors.width))


def shot_curve(stage: Stage, start: Start) -> dict[int, float]:
    """Mean AUC of a stage's validation rows after each of `SHOTS` rows of its train part."""
    elsewhere = stage.elsewhere(start.prior)
    found: dict[int, float] = {}
    largest = few_rows(stage.train, len(stage.train), 0)
    for place, n in enumerate(SHOTS):
        if place and SHOTS[place - 1] >= len(largest):
            found[n] = found[SHOTS[place - 1]]
            continue
        values = []
        for draw in range(DRAWS if n else 1):
            rows = few_rows(stage.train, n, draw)
            score = few_shot_scorer(stage.factors, rows, elsewhere, start)
            values.append(float(auc(stage.valid.label, score(stage.valid.user, stage.valid.item))))
        found[n] = float(np.mean(values))
    return found


def few_rows(train: Impressions, n: int, draw: int) -> Impressions:
    """The n earliest of a random half of the rows."""
    half = np.random.default_rng([draw, 7]).permutation(len(train))[: (len(train) + 1) // 2]
    return train.where(np.sort(half)[:n])


def few_shot_scorer(
    factors: Factors, rows: Impressions, elsewhere: Elsewhere, start: Start
) -> Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float32]]:
    """Scorer of a domain after some labelled rows; without rows, that of the start."""
    head = np.asarray(start.head)
    if len(rows):
        before = columns_before(rows, elsewhere, prior=start.prior)
        inputs = head_inputs(factors, rows.user, rows.item, before)
        rate = float(np.clip(rows.label.mean(), 0.5 / len(rows), 1 - 0.5 / len(rows)))
        line = line_from_prior(inputs @ head, scale=1.0, rate=rate)
        head = fit_head(inputs, rows.label, scale=1.0, bias=line.bias, strength=start.strength, start=head)
    counted = Counted.of(rows, elsewhere, prior=start.prior)

    def score(users: NDArray[np.int64], items: NDArray[np.int64]) -> NDArray[np.float32]:
        inputs = head_inputs(factors, users, items, counted.columns(users, items))
        logits: NDArray[np.float32] = (inputs @ head).astype(np.float32)
        return logits

    return score
