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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from scipy.sparse import csr_matrix  # type: ignore[import-untyped,unused-ignore]
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped,unused-ignore]

from training.data.prepare import prepare
from training.data.prepared import MANIFEST_FILE, PreparedDataset
from training.data.source import open_data
from training.engine.files import write_text
from training.hier.bags import UserBags
from training.hier.clicks import Impressions
from training.hier.config import load_pretrain_config
from training.hier.domain_line import line_from_prior
from training.hier.factors import Factors, compute_factors
from training.hier.head import DEFAULT_STRENGTH, fit_head, head_inputs, popularity_before
from training.hier.pretrain import silent
from training.hier.ragged import IntArray, Ragged
from training.hier.ranking import PairScorer, RankingTask
from training.hier.run import SourceData, train_network
from training.hier.sampling import items_of_domains
from training.metrics import auc
from training.models.hier import zero_shot_head

SHOTS = (0, 50, 200, 1000, 5000)
MAX_RANKED = 1000
METHODS = ("hier", "popularity", "target_only")

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
        zero_shot, popularity, chance: Without a click of the target; by its own train clicks; by chance.
        shots: By method and n, one figure for each draw.
        cold_share: Share of test rows of users without a known entity.
    """

    target: str
    num_test_rows: int
    cold_share: float
    zero_shot: Figure
    popularity: Figure
    chance: Figure
    shots: dict[str, dict[int, list[Figure]]]
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
    net, _ = train_network(source, silent)
    factors = compute_factors(net, source.bags, source.item_sets)
    num_items = len(source.item_sets)
    rng = np.random.default_rng(0)
    shots: dict[str, dict[int, list[Figure]]] = {method: {n: [] for n in SHOTS} for method in METHODS}
    for draw in range(draws):
        half = np.sort(np.random.default_rng([draw, 7]).permutation(len(train))[: (len(train) + 1) // 2])
        for n in SHOTS:
            rows = train.where(half[:n])
            for method, scorer in (
                ("hier", few_shot_scorer(factors, rows, source)),
                ("popularity", popularity_scorer(rows, num_items)),
                ("target_only", target_only_scorer(rows, source.item_sets, len(source.bags))),
            ):
                shots[method][n].append(test.figure(scorer))
    known = np.append(~source.bags.is_cold, values=False)
    return TargetFigures(
        target=prepared.schema.domains[source.held_out],
        num_test_rows=len(test.rows),
        cold_share=float(1.0 - known[test.rows.user].mean()),
        zero_shot=test.figure(factors.score),
        popularity=test.figure(popularity_scorer(train, num_items)),
        chance=test.figure(lambda _, items: rng.random(len(items)).astype(np.float32)),
        shots=shots,
        seconds=time.perf_counter() - began,
    )


def make_test(prepared: PreparedDataset, train: Impressions, source: SourceData) -> TargetTest:
    """Test rows of the held-out domain, and candidates for their clicks from its train and test items."""
    test = Impressions.read(prepared, "test").of(source.held_out or 0)
    shown = train.plus(test)
    pools = items_of_domains(shown, num_domains=prepared.schema.num_domains)
    pool = pools.take(np.array([source.held_out]))[0][0]
    clicked = UserBags.of(test.clicks(), source.item_sets, num_users=len(source.bags))
    task = RankingTask.draw(test.clicks(), pool, clicked, seed=0, max_rows=MAX_RANKED)
    return TargetTest(test, task)


def few_shot_scorer(factors: Factors, rows: Impressions, source: SourceData) -> PairScorer:
    """HIER with a head fitted to n rows; without rows, its zero-shot score."""
    if not len(rows):
        return factors.score
    before = popularity_before(rows.item, rows.label)
    inputs = head_inputs(factors, rows.user, rows.item, before)
    start = inputs @ np.asarray(zero_shot_head(factors.width))
    # Of scale and bias only the fit of the head depends; ranks within a domain do not.
    rate = float(np.clip(rows.label.mean(), 0.5 / len(rows), 1 - 0.5 / len(rows)))
    line = line_from_prior(start, scale=_source_scale(factors, source), rate=rate)
    head = fit_head(inputs, rows.label, scale=line.scale, bias=line.bias, strength=DEFAULT_STRENGTH)
    counts = np.log1p(np.bincount(rows.item[rows.label > 0], minlength=len(factors.items)))

    def score(users: IntArray, items: IntArray) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = (head_inputs(factors, users, items, counts[items]) @ head).astype(
            np.float32
        )
        return logits

    return score


def _source_scale(factors: Factors, source: SourceData) -> float:
    """Slope of a line through all source validation rows."""
    rows = source.valid
    logits = factors.score(rows.user, rows.item).astype(np.float64)
    model = LogisticRegression(C=1e3).fit(logits[:, None], rows.label)
    return max(float(model.coef_[0, 0]), 1e-3)


def popularity_scorer(rows: Impressions, num_items: int) -> PairScorer:
    """Clicks of each item in some rows; ties by chance."""
    counts = np.bincount(rows.item[rows.label > 0], minlength=num_items)
    luck = np.random.default_rng(1).random(num_items)
    heat = (counts + 1e-3 * luck).astype(np.float32)
    return lambda _, items: heat[items]


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
        for name in ("zero_shot", "popularity", "chance"):
            one: Figure = getattr(own, name)
            lines.append(f"  {name:11s} AUC {one.auc:.4f}  NDCG {one.ndcg:.4f}  HR {one.hit_rate:.4f}")
        lines.append("  n      " + "  ".join(f"{method + ' AUC / NDCG':32s}" for method in METHODS))
        for n in SHOTS:
            cells = []
            for method in METHODS:
                values = np.array([(f.auc, f.ndcg) for f in own.shots[method][n]])
                mean, spread = values.mean(axis=0), values.std(axis=0)
                cells.append(f"{mean[0]:.4f} ({spread[0]:.4f}) / {mean[1]:.4f} ({spread[1]:.4f})")
            lines.append(f"  {n:<5d}  " + "  ".join(f"{cell:32s}" for cell in cells))
    return "\n".join(lines)


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
    folder = out / "prepared"
    if not (folder / MANIFEST_FILE).is_file():
        prepare(open_data(data, settings.data.recipe), folder)
    prepared = PreparedDataset.open(folder)
    rows = prepared.domain_rows["train"]
    figures = []
    for name in sorted(rows, key=lambda own: -rows[own])[:targets]:
        source = SourceData(prepared, settings.model_copy(update={"hold_out": name}), data)
        figures.append(measure_target(prepared, source, draws=draws))
        typer.echo(report(figures[-1:]))
        write_text(out / "holdout.json", json.dumps([asdict(own) for own in figures], indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
