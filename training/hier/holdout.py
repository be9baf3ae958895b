"""Each of the largest domains held out in turn: zero-shot and few-shot against popularity and its own model.

`python -m training.hier.holdout --config CONFIG --data DIR --out OUT` pre-trains once per target and writes
`OUT/holdout.json`. A draw takes a random half of the target's train rows and of these the n earliest. Test
rows are the target's test part, all of it. Invariant: what is compared on a target meets the same rows and
the same candidates.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from scipy.sparse import csr_matrix  # type: ignore[import-untyped,unused-ignore]
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped,unused-ignore]

from training.data.prepared import PreparedDataset
from training.engine.files import write_text
from training.hier.bags import UserBags
from training.hier.clicks import Impressions
from training.hier.config import load_pretrain_config
from training.hier.factors import compute_factors
from training.hier.pretrain import silent
from training.hier.ragged import IntArray, Ragged
from training.hier.ranking import PairScorer, RankingTask
from training.hier.rates import Elsewhere, rates
from training.hier.rehearsal import (
    SHOTS,
    Rehearsed,
    few_rows,
    few_shot_scorer,
    make_stages,
    rehearse,
)
from training.hier.sampling import items_of_domains
from training.hier.source import SourceData, open_prepared, train_network
from training.hier.start import Start
from training.metrics import auc
from training.models.hier import HEAD_COLUMNS

MAX_RANKED = 1000
RATE_PRIOR = 5.0
METHODS = ("hier", "score_alone", "popularity", "click_rate", "target_only")
WITHOUT_CLICKS = ("hier", "with_items", "score_alone")

Told = Callable[[str], None]


@dataclass(frozen=True)
class Figure:
    """AUC over test impressions, and NDCG@10 and HR@10 of test clicks among 99 others of the domain."""

    auc: float
    ndcg: float
    hit_rate: float


@dataclass(frozen=True)
class TargetFigures:
    """Figures of one target.

    Attributes:
        zero_shot: Without a click of the target, by `WITHOUT_CLICKS`: the score with rates of items and users
            elsewhere, with those of items, alone.
        popularity, click_rate, chance: By the target's own train clicks, by their rate, by chance.
        shots: By method and n, one figure for each draw.
        cold_share: Share of test rows of users without a known entity.
        rehearsed: What the sources gave, with rates and without.
    """

    target: str
    num_test_rows: int
    cold_share: float
    zero_shot: dict[str, Figure]
    popularity: Figure
    click_rate: Figure
    chance: Figure
    shots: dict[str, dict[int, list[Figure]]]
    rehearsed: dict[str, Rehearsed]
    seconds: float


@dataclass(frozen=True, eq=False)
class TargetTest:
    """What scorers of one target are measured on."""

    rows: Impressions
    task: RankingTask

    def figure(self, score: PairScorer) -> Figure:
        """Figures of a scorer."""
        ranked = self.task.measure(score)
        value = float(auc(self.rows.label, score(self.rows.user, self.rows.item)))
        return Figure(value, ranked.ndcg, ranked.hit_rate)


def measure_target(prepared: PreparedDataset, source: SourceData, *, draws: int) -> TargetFigures:
    """Pre-train without the target and measure on it."""
    began = time.perf_counter()
    if source.held_out is None:
        raise ValueError("measure_target needs a source with a domain held out")
    train = Impressions.read(prepared, "train").of(source.held_out)
    test = make_test(prepared, train, source)
    stages = make_stages(source, number=source.config.rehearsals)
    rehearsed = {"hier": rehearse(stages), "score_alone": rehearse(stages, counted=False)}
    net, _ = train_network(source, silent)
    factors = compute_factors(net, source.bags, source.item_sets)
    sizes = {"num_items": len(source.item_sets), "num_users": len(source.bags)}

    def hier(rows: Impressions, start: Start) -> PairScorer:
        elsewhere = Elsewhere.count(source.train, prior=start.prior, **sizes)
        return few_shot_scorer(factors, rows, elsewhere, start)

    starts = {name: found.start for name, found in rehearsed.items()}
    shots: dict[str, dict[int, list[Figure]]] = {method: {n: [] for n in SHOTS} for method in METHODS}
    for draw in range(draws):
        for n in SHOTS:
            rows = few_rows(train, n, draw)
            for method, scorer in (
                *((name, hier(rows, start)) for name, start in starts.items()),
                ("popularity", popularity_scorer(rows, sizes["num_items"])),
                ("click_rate", click_rate_scorer(rows, sizes["num_items"])),
                ("target_only", target_only_scorer(rows, source.item_sets, sizes["num_users"])),
            ):
                shots[method][n].append(test.figure(scorer))
    none = train.where(np.zeros(0, dtype=np.int64))
    starts["with_items"] = without_users(starts["hier"])
    known = np.append(~source.bags.is_cold, values=False)
    rng = np.random.default_rng(0)
    return TargetFigures(
        target=prepared.schema.domains[source.held_out],
        num_test_rows=len(test.rows),
        cold_share=float(1.0 - known[test.rows.user].mean()),
        zero_shot={name: test.figure(hier(none, starts[name])) for name in WITHOUT_CLICKS},
        popularity=test.figure(popularity_scorer(train, sizes["num_items"])),
        click_rate=test.figure(click_rate_scorer(train, sizes["num_items"])),
        chance=test.figure(lambda _, items: rng.random(len(items)).astype(np.float32)),
        shots=shots,
        rehearsed=rehearsed,
        seconds=time.perf_counter() - began,
    )


def without_users(start: Start) -> Start:
    """A start that leaves the rates of users out."""
    kept = [0.0 if name.startswith("user_") else 1.0 for name in HEAD_COLUMNS]
    head = np.asarray(start.head)
    head[: len(kept)] *= kept
    return replace(start, head=tuple(head.tolist()))


def make_test(prepared: PreparedDataset, train: Impressions, source: SourceData) -> TargetTest:
    """Test rows of the held-out domain, and candidates for their clicks from its train and test items."""
    test = Impressions.read(prepared, "test").of(source.held_out or 0)
    shown = train.plus(test)
    pools = items_of_domains(shown, num_domains=prepared.schema.num_domains)
    pool = pools.take(np.array([source.held_out]))[0][0]
    clicked = UserBags.of(test.clicks(), source.item_sets, num_users=len(source.bags))
    task = RankingTask.draw(test.clicks(), pool, clicked, seed=0, max_rows=MAX_RANKED)
    return TargetTest(test, task)


def popularity_scorer(rows: Impressions, num_items: int) -> PairScorer:
    """Clicks of each item in some rows; ties by chance."""
    counts = np.bincount(rows.item[rows.label > 0], minlength=num_items)
    luck = np.random.default_rng(1).random(num_items)
    heat = (counts + 1e-3 * luck).astype(np.float32)
    return lambda _, items: heat[items]


def click_rate_scorer(rows: Impressions, num_items: int) -> PairScorer:
    """Click rate of each item in some rows, shrunk to the mean by `RATE_PRIOR` clicks."""
    heat = rates(rows.item, rows, size=num_items, prior=RATE_PRIOR).astype(np.float32)
    luck = 1e-6 * np.random.default_rng(1).random(num_items).astype(np.float32)
    return lambda _, items: heat[items] + luck[items]


def target_only_scorer(rows: Impressions, item_sets: Ragged, num_users: int) -> PairScorer:
    """Logistic regression on user, item and the item's entities, on the target's rows alone."""
    luck = popularity_scorer(rows.where(rows.label < 0), len(item_sets))
    if len(np.unique(rows.label)) < 2:
        return luck
    num_rows = int(item_sets.values.max(initial=0)) + 1

    def columns(users: IntArray, items: IntArray) -> csr_matrix:
        entities, present = item_sets.take(items)
        each = np.broadcast_to(np.arange(len(items))[:, None], entities.shape)[present]
        line = np.arange(len(items))
        known = users >= 0
        places = np.concatenate(
            [
                items,
                len(item_sets) + users[known],
                len(item_sets) + num_users + entities[present],
            ]
        )
        owners = np.concatenate([line, line[known], each])
        shape = (len(items), len(item_sets) + num_users + num_rows)
        return csr_matrix((np.ones(len(places)), (owners, places)), shape=shape)

    model = LogisticRegression(C=1.0, max_iter=200).fit(columns(rows.user, rows.item), rows.label)

    def score(users: IntArray, items: IntArray) -> NDArray[np.float32]:
        found: NDArray[np.float32] = model.decision_function(columns(users, items)).astype(np.float32)
        return found

    return score


def report(figures: list[TargetFigures]) -> str:
    """Tables of the figures, mean and standard deviation over draws."""
    lines = []
    for own in figures:
        lines.append(
            f"{own.target}: {own.num_test_rows} test rows, {own.cold_share:.0%} of users without "
            f"source clicks, {own.seconds:.0f} s"
        )
        singles = [(f"zero-shot {name}", figure) for name, figure in own.zero_shot.items()]
        singles += [(name, getattr(own, name)) for name in ("popularity", "click_rate", "chance")]
        for name, one in singles:
            lines.append(f"  {name:21s} AUC {one.auc:.4f}  NDCG {one.ndcg:.4f}  HR {one.hit_rate:.4f}")
        lines += [f"  {line}" for line in rehearsal_lines(own.rehearsed)]
        lines.append("  n      " + "  ".join(f"{method + ' AUC / NDCG':32s}" for method in METHODS))
        for n in SHOTS:
            cells = []
            for method in METHODS:
                values = np.array([(f.auc, f.ndcg) for f in own.shots[method][n]])
                mean, spread = values.mean(axis=0), values.std(axis=0)
                cells.append(f"{mean[0]:.4f} ({spread[0]:.4f}) / {mean[1]:.4f} ({spread[1]:.4f})")
            lines.append(f"  {n:<5d}  " + "  ".join(f"{cell:32s}" for cell in cells))
    return "\n".join(lines)


def rehearsal_lines(rehearsed: dict[str, Rehearsed]) -> list[str]:
    """What was tried on the sources, and what was chosen."""
    lines = []
    for name, found in rehearsed.items():
        weights = ", ".join(f"{c} {w:.3f}" for c, w in zip(HEAD_COLUMNS, found.start.head, strict=False) if w)
        lines.append(
            f"rehearsed {name}: prior {found.start.prior:g}, strength {found.start.strength:g}; {weights}"
        )
        lines += [f"  tried prior {t.prior:g}, strength {t.strength:g}: {t.auc:.4f}" for t in found.tried]
        for stage, curve in found.stages.items():
            cells = ", ".join(f"{n} {value:.4f}" for n, value in curve.items())
            lines.append(f"  {stage} in the part of the new domain, AUC at n: {cells}")
    return lines


def main(
    config: Annotated[Path, typer.Option(help="YAML config of the pre-training.")],
    data: Annotated[Path, typer.Option(help="Raw data.")],
    out: Annotated[Path, typer.Option(help="Folder for prepared data and figures.")],
    targets: Annotated[int, typer.Option(min=1, help="How many of the largest domains.")] = 3,
    draws: Annotated[int, typer.Option(min=1, help="Draws of the few-shot rows.")] = 5,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a config key; repeatable."),
    ] = None,
) -> None:
    """Hold out each of the largest domains in turn and print how it is ranked without and with its clicks."""
    settings = load_pretrain_config(config, override or ())
    prepared = open_prepared(out / "prepared", settings, data)
    rows = prepared.domain_rows["train"]
    figures = []
    for name in sorted(rows, key=lambda own: -rows[own])[:targets]:
        source = SourceData(prepared, settings.model_copy(update={"hold_out": name}), data)
        figures.append(measure_target(prepared, source, draws=draws))
        typer.echo(report(figures[-1:]))
        write_text(out / "holdout.json", json.dumps([asdict(own) for own in figures], indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
