"""Planted clusters: data whose true clusters are known, and how often an update finds them.

`python -m training.clustering.planted --seeds 20` regenerates the recovery table and exits 1 where the
acceptance line is not met. Invariant: a run depends on its setting and seed alone.

It is a toy (one shared logistic vector, no towers): it checks plumbing and noise control, not benefit.
"""

import time
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import numpy as np
import typer
from sklearn.metrics import adjusted_rand_score  # type: ignore[import-untyped,unused-ignore]

from training.clustering.affinity import LookaheadGram, LookaheadLosses, LookaheadPlan
from training.clustering.arrays import FloatArray, IntArray
from training.clustering.rules import CdcRules
from training.clustering.source_sets import SourceRules
from training.clustering.state import CdcState, start, update
from training.clustering.toy_lookahead import (
    domain_gradients,
    domain_losses,
    exact_lookahead,
    first_order_lookahead,
)

NUM_FEATURES = 16
NUM_ROWS, NUM_STEP_ROWS = 6000, 5000
WARMUP_STEPS, WARMUP_RATE = 60, 0.3
NUM_UPDATES, STEPS_BETWEEN, STEP_RATE = 6, 40, 0.06
LOOKAHEAD_RATE = 0.3
TRAIN_BATCH = 512
SHOWN_UPDATES = (0, 1, 2, 5)
SPEC_SEEDS = 20

LookaheadMode = Literal["exact", "first_order", "fresh"]
"""`fresh` draws another batch of training rows for every (row, domain) pair: the noise drowns the effects."""


@dataclass(frozen=True)
class PlantedSetting:
    """One line of the table.

    Attributes:
        name: As in the table.
        sizes: Domains of each true cluster; K is their number.
        num_seeds: Runs.
        rules: Settings of the updates; K and seed are set per run.
        spread: s, standard deviation of a domain's own part of the weights.
        batch_size: Rows per domain of a lookahead batch.
        mode: How losses are measured.
        expected: Share of exact recoveries at updates 0, 1, 2, 5 to compare with, if known.
    """

    name: str
    sizes: tuple[int, ...]
    num_seeds: int
    rules: CdcRules = field(
        default_factory=lambda: CdcRules(
            num_clusters=1, num_treatments=50, max_treatment_size=None, floor_ratio=0.0, fallback=False
        )
    )
    spread: float = 0.15
    batch_size: int = 512
    mode: LookaheadMode = "exact"
    expected: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class PlantedData:
    """`features` (D, 6000, 16), `labels` (D, 6000) 0.0 or 1.0, `truth` (D,) true cluster."""

    features: FloatArray
    labels: FloatArray
    truth: IntArray


def make_planted(setting: PlantedSetting, rng: np.random.Generator) -> PlantedData:
    """Draw the planted data.

    w_d = Q[:, 15] + 2 Q[:, c] + s N(0, I) for d in cluster c; x ~ N(0, I); y ~ Bernoulli(sigmoid(x w_d)).
    """
    basis, _ = np.linalg.qr(rng.standard_normal((NUM_FEATURES, NUM_FEATURES)))
    truth = np.repeat(np.arange(len(setting.sizes)), setting.sizes)
    own = setting.spread * rng.standard_normal((len(truth), NUM_FEATURES))
    weights = basis[:, -1] + 2 * basis[:, truth].T + own
    features = rng.standard_normal((len(truth), NUM_ROWS, NUM_FEATURES))
    odds = 1 / (1 + np.exp(-np.einsum("dbp,dp->db", features, weights)))
    labels = (rng.random(odds.shape) < odds).astype(np.float64)
    return PlantedData(features=features, labels=labels, truth=truth)


def recovery(setting: PlantedSetting, seed: int) -> list[float]:
    """Adjusted Rand index of T against the truth after each of the six updates of one run."""
    rng = np.random.default_rng([seed, 5])
    data = make_planted(setting, rng)
    theta = _trained(np.zeros(NUM_FEATURES), data, rng, steps=WARMUP_STEPS, rate=WARMUP_RATE)
    state = start(
        np.ones(len(data.truth)), replace(setting.rules, num_clusters=len(setting.sizes), seed=seed)
    )
    scores = []
    for t in range(NUM_UPDATES):
        if t:
            theta = _trained(theta, data, rng, steps=STEPS_BETWEEN, rate=STEP_RATE)
        plan = state.plan()
        state = update(state, plan, measure(setting, data, theta, plan, rng))
        scores.append(_agreement(state, data.truth))
    return scores


def _agreement(state: CdcState, truth: IntArray) -> float:
    return float(adjusted_rand_score(truth, state.require_clusters().labels))


def _trained(
    theta: FloatArray, data: PlantedData, rng: np.random.Generator, *, steps: int, rate: float
) -> FloatArray:
    """SGD on batches of 512 rows of one random domain each."""
    for _ in range(steps):
        d = int(rng.integers(len(data.truth)))
        rows = rng.choice(NUM_STEP_ROWS, TRAIN_BATCH, replace=False)
        theta = (
            theta
            - rate * domain_gradients(theta, data.features[d, rows][None], data.labels[d, rows][None])[0]
        )
    return theta


def measure(
    setting: PlantedSetting,
    data: PlantedData,
    theta: FloatArray,
    plan: LookaheadPlan,
    rng: np.random.Generator,
) -> LookaheadLosses | LookaheadGram:
    """One lookahead of the toy model in the setting's mode."""
    num_domains = len(data.truth)
    step_x, step_y = _batches(data, rng, 0, NUM_STEP_ROWS, setting.batch_size)
    gradients = domain_gradients(theta, step_x, step_y)
    if setting.mode == "fresh":

        def fresh(thetas: FloatArray) -> FloatArray:
            losses = np.empty((len(thetas), num_domains))
            for row, one in enumerate(thetas):
                x, y = _batches(data, rng, 0, NUM_STEP_ROWS, setting.batch_size)
                losses[row] = domain_losses(one[None], x, y)[0]
            return losses

        return exact_lookahead(theta, gradients, plan, fresh, step_size=LOOKAHEAD_RATE)
    eval_x, eval_y = _batches(data, rng, NUM_STEP_ROWS, NUM_ROWS, setting.batch_size)
    if setting.mode == "first_order":
        base = domain_losses(theta[None], eval_x, eval_y)[0]
        eval_gradients = domain_gradients(theta, eval_x, eval_y)
        return first_order_lookahead(base, gradients, eval_gradients, step_size=LOOKAHEAD_RATE)

    def common(thetas: FloatArray) -> FloatArray:
        return domain_losses(thetas, eval_x, eval_y)

    return exact_lookahead(theta, gradients, plan, common, step_size=LOOKAHEAD_RATE)


def _batches(
    data: PlantedData, rng: np.random.Generator, first: int, end: int, size: int
) -> tuple[FloatArray, FloatArray]:
    """`size` rows of [first, end) per domain without replacement: (D, size, 16) and (D, size)."""
    rows = [first + rng.choice(end - first, size, replace=False) for _ in data.truth]
    picked = np.stack(rows)
    domains = np.arange(len(picked))[:, None]
    return data.features[domains, picked], data.labels[domains, picked]


def spec_settings() -> list[PlantedSetting]:
    """The reference settings in order, then two with the product's own defaults."""
    plain = PlantedSetting("D 12, K 3 equal", (4, 4, 4), 20, expected=(1.0, 1.0, 1.0, 1.0))
    uneven = replace(plain, name="D 12, K 3 sizes 6/4/2", sizes=(6, 4, 2), expected=(0.3, 0.95, 0.95, 1.0))
    pair = replace(plain, name="D 8, K 2 equal, depcon", sizes=(4, 4), expected=(0.0, 0.6, 0.75, 1.0))
    signed = replace(plain.rules, distance="signed")
    code = replace(plain.rules, source=SourceRules(interaction="code"))
    small = replace(plain.rules, max_treatment_size=8)
    product = CdcRules(num_clusters=1)
    fresh = replace(plain, name="D 12, K 3, fresh batch per row", num_seeds=10, mode="fresh")
    first = replace(plain, mode="first_order")
    many = (10, 10, 10, 10)
    return [
        plain,
        replace(plain, name="D 20, K 5 equal", sizes=(4,) * 5, num_seeds=10),
        uneven,
        pair,
        replace(pair, name="D 8, K 2 equal, signed", rules=signed, expected=(1.0, 1.0, 1.0, 1.0)),
        replace(plain, name="D 12, K 3, s = .5", num_seeds=10, spread=0.5, expected=(0.0, 0.5, 0.7, 0.8)),
        replace(fresh, expected=(0.0, 0.0, 0.0, 0.0)),
        replace(fresh, name="same, batch 1024", batch_size=1024, expected=(0.0, 0.0, 0.1, 0.0)),
        replace(fresh, name="same, batch 4096", num_seeds=5, batch_size=4096, expected=(0.0, 0.0, 0.8, 0.8)),
        replace(
            plain,
            name="D 12, K 3 equal, common batches of 128",
            num_seeds=10,
            batch_size=128,
            expected=(0.8, 1.0, 1.0, 1.0),
        ),
        replace(uneven, name="6/4/2 with the code's lambda", rules=code, expected=(0.3, 0.95, 0.9, 0.85)),
        replace(first, name="first-order, D 12, K 3", expected=(0.95, 1.0, 1.0, 1.0)),
        replace(uneven, name="first-order, 6/4/2", mode="first_order", expected=(0.25, 1.0, 1.0, 1.0)),
        replace(
            first,
            name="first-order, D 40, K 4, sizes 2..39",
            sizes=many,
            num_seeds=4,
            expected=(0.75, 1.0, 1.0, 1.0),
        ),
        replace(
            first,
            name="first-order, D 40, K 4, sizes 2..8",
            sizes=many,
            num_seeds=4,
            rules=small,
            expected=(1.0, 1.0, 1.0, 1.0),
        ),
        replace(uneven, name="6/4/2, product defaults", rules=product, expected=()),
        replace(pair, name="D 8, K 2 equal, product defaults", rules=product, expected=()),
    ]


def recovered_shares(setting: PlantedSetting, num_seeds: int) -> list[float]:
    """Share of runs with an adjusted Rand index of 1 after each update."""
    perfect = np.array([recovery(setting, seed) for seed in range(num_seeds)]) >= 1.0
    shares: list[float] = perfect.mean(axis=0).tolist()
    return shares


def failures(shares: dict[str, list[float]]) -> list[str]:
    """Where the acceptance line is not met, by name of the line.

    Lines 1 and 2 perfect from update 1 on, and on 95 % of seeds at update 0; 6/4/2 and K = 2 signed perfect
    at update 5 on 18 of 20 seeds or more.
    """
    early = [
        f"{name}: {shares[name]}, must be 0.95 at update 0 and 1 from update 1 on"
        for name in ("D 12, K 3 equal", "D 20, K 5 equal")
        if min(shares[name][1:]) < 1.0 or shares[name][0] < 0.95
    ]
    late = [
        f"{name}: {shares[name][5]} at update 5, must be 0.9"
        for name in ("D 12, K 3 sizes 6/4/2", "D 8, K 2 equal, signed")
        if shares[name][5] < 0.9
    ]
    return early + late


def main(
    seeds: Annotated[int, typer.Option(min=1, help="Runs of a line that has 20 in the spec.")] = SPEC_SEEDS,
) -> None:
    """Regenerate the table of planted clusters; exit 1 where the acceptance line is not met."""
    typer.echo(f"{'setting':42s} seeds  perfect at update 0 / 1 / 2 / 5   spec                  seconds")
    shares = {}
    for setting in spec_settings():
        count = max(1, round(setting.num_seeds * seeds / SPEC_SEEDS))
        began = time.perf_counter()
        shares[setting.name] = recovered_shares(setting, count)
        seconds = time.perf_counter() - began
        found = " ".join(f"{shares[setting.name][t]:.2f}" for t in SHOWN_UPDATES)
        spec = " ".join(f"{value:.2f}" for value in setting.expected) or "-"
        typer.echo(f"{setting.name:42s} {count:5d}  {found:33s}  {spec:20s} {seconds:8.1f}")
    missed = failures(shares)
    typer.echo("acceptance: met" if not missed else "acceptance: NOT met\n" + "\n".join(missed))
    raise typer.Exit(code=1 if missed else 0)


if __name__ == "__main__":
    typer.run(main)
