"""Seeded synthetic multi-domain click log with a known truth.

`generate` reads nothing and writes a folder: `interactions.parquet` (the log in time order), `users.parquet`,
`items.parquet`, `truth.json` (planted groups, reachable figures), `dataset.yaml` (for the loader).

Invariants: a label is drawn with exactly the `true_probability` of its row; equal configs give equal content;
memory does not grow with `num_rows`; `dataset.yaml` is written last, so a folder that holds it is complete.
Letters: as in `synthetic_truth`, and H history length.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, model_validator

from training.data import synthetic_truth as truth
from training.data.synthetic_description import description_yaml
from training.data.synthetic_truth import Exposures, Floats, Ints, World

DAY_MS = 86_400_000
LOG_START_MS = 1_704_067_200_000
"""2024-01-01 00:00 UTC; every history click is earlier."""
SPLITS = ("train", "valid", "test")
AGE_BANDS = ("under_18", "18_24", "25_34", "35_49", "50_64", "over_64")
COUNTRIES = ("br", "de", "fr", "in", "jp", "ng", "uk", "us")
Progress = Callable[[int, int], None]

MAX_INTERESTS, HISTORY_SPAN_MS = 5, 60 * DAY_MS

_HISTORY_CANDIDATES, _CHUNK_CANDIDATES = 6, 250_000
_HOURLY = 1.0 + 0.7 * np.cos((np.arange(24) - 20) * 2 * np.pi / 24)
_HOUR_CDF = np.concatenate([[0.0], np.cumsum(_HOURLY / _HOURLY.sum())])


class SyntheticConfig(BaseModel):
    """Size and character of a synthetic data set; the defaults are the `demo` preset."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    seed: int = Field(default=7, ge=0, description="Seed of every draw.")
    num_domains: int = Field(default=60, ge=2, le=2000, description="Domains, tail domains included.")
    num_groups: int = Field(default=6, ge=1, le=64, description="Groups that share a preference structure.")
    opposite_pairs: int = Field(default=2, ge=0, le=32, description="Pairs of groups that harm each other.")
    num_users: int = Field(default=5_000, ge=10, le=10_000_000, description="Users.")
    num_items: int = Field(default=3_000, ge=10, le=10_000_000, description="Items.")
    num_rows: int = Field(default=250_000, ge=1_000, le=500_000_000, description="Rows of the log.")
    days: int = Field(default=14, ge=3, le=366, description="The last day is test, the one before valid.")
    domain_zipf: float = Field(default=1.0, ge=0, le=3, description="Zipf exponent of rows per domain.")
    item_zipf: float = Field(default=0.8, ge=0, le=3, description="Zipf exponent of item popularity.")
    user_zipf: float = Field(default=0.6, ge=0, le=3, description="Zipf exponent of user activity.")
    num_tail_domains: int = Field(default=6, ge=0, le=1999, description="Domains of `tail_rows` rows each.")
    tail_rows: int = Field(default=150, ge=1, description="Rows of each tail domain over the whole log.")
    extra_domains: float = Field(default=0.8, ge=0, le=5, description="Mean domains beside an item's home.")
    num_attributes: int = Field(default=40, ge=4, le=10_000, description="Distinct item attributes.")
    num_latents: int = Field(default=8, ge=2, le=64, description="Latent dimensions of taste.")
    history_length: int = Field(default=20, ge=1, le=500, description="Most clicks in a user's history.")
    base_click_rate: float = Field(default=0.25, gt=0, lt=1, description="Middle of domains' click rates.")
    base_rate_spread: float = Field(default=0.5, ge=0, le=3, description="Spread of click rates, in logits.")
    signal: float = Field(default=1.25, ge=0, le=10, description="Spread of personal preference, in logits.")
    common: float = Field(default=0.15, ge=0, le=1, description="Share of preference common to groups.")
    noise: float = Field(default=0.2, ge=0, le=5, description="A domain's deviation from its group.")
    drift: float = Field(default=0.0, ge=0, le=10, description="How far taste and quality move; 0 off.")
    missing_ratio: float = Field(default=0.1, ge=0, lt=1, description="Share of missing numeric values.")
    row_group_rows: int = Field(default=65_536, ge=256, le=4_194_304, description="Most rows of a row group.")

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        """Refuse sizes that do not fit each other; the message names field, value and limit."""
        for field, limit, formula in (
            ("opposite_pairs", self.num_groups // 2, "num_groups // 2"),
            ("num_groups", self.num_domains, "num_domains"),
            ("num_tail_domains", self.num_domains - 1, "num_domains - 1"),
        ):
            if (value := getattr(self, field)) > limit:
                raise ValueError(f"{field} is {value}; at most {formula} = {limit} allowed")
        if self.num_latents < (needed := 1 + self.num_groups - self.opposite_pairs):
            formula = "1 + num_groups - opposite_pairs"
            raise ValueError(f"num_latents is {self.num_latents}; at least {formula} = {needed} needed")
        left = int(self.domain_rows()[: self.num_domains - self.num_tail_domains].min())
        least = self.tail_rows if self.num_tail_domains else 1
        if left < least:
            share = f"that leaves {left} for the smallest non-tail domain, at least {least} needed"
            raise ValueError(f"num_rows is {self.num_rows}; {share}")
        return self

    def domain_rows(self) -> Ints:
        """Rows of each domain in the whole log: (D,) int64, largest first, tail domains last."""
        head, tail = self.num_domains - self.num_tail_domains, self.num_tail_domains
        zipf, tail_rows = self.domain_zipf, self.tail_rows
        return truth.split_rows(self.num_rows, head, tail, exponent=zipf, tail_rows=tail_rows)


PRESETS = {
    "small": SyntheticConfig(num_domains=20, num_groups=4, opposite_pairs=1, num_users=1_000, num_items=600,
                             num_rows=20_000, days=8, num_tail_domains=3, tail_rows=60, num_attributes=24),
    "demo": SyntheticConfig(),
    "large": SyntheticConfig(num_domains=300, num_groups=12, opposite_pairs=3, num_users=60_000,
                             num_items=30_000, num_rows=3_000_000, num_tail_domains=40, tail_rows=600,
                             num_attributes=120, num_latents=12),
}  # fmt: skip
"""`small` for tests, `demo` for the five-minute run, `large` with 300 domains for figures of cost."""


@dataclass(frozen=True)
class SyntheticSummary:
    """What `generate` wrote; `best` holds the figures of the true probability on the test rows."""

    folder: Path
    config: SyntheticConfig
    num_row_groups: int
    rows_per_split: dict[str, int]
    click_rate: float
    best: dict[str, float | int | None]


class LogChunk(NamedTuple):
    """n rows of one day in time order: (n,) int64, `probability` float64; `split` indexes `SPLITS`."""

    split: int
    rows: Exposures
    time_ms: Ints
    probability: Floats
    label: Ints
    dwell_ms: Ints


def generate(config: SyntheticConfig, out_dir: Path, progress: Progress | None = None) -> SyntheticSummary:
    """Write a data set folder.

    Args:
        config: What to write.
        out_dir: Folder, made if missing; files of an earlier run in it are replaced.
        progress: Called with (rows written, all rows) after each chunk of the log.

    Returns:
        Counts and the best reachable figures.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / "dataset.yaml").unlink(missing_ok=True)
    history_rng, item_rng, log_rng = _streams(config.seed)[5:]
    plan = _plan(config)
    tally = _Tally(plan)
    _write(out_dir / "items.parquet", _item_tables(plan, item_rng))
    _write(out_dir / "users.parquet", _user_tables(plan, history_rng))

    def tables() -> Iterator[pa.Table]:
        for chunk in log_chunks(config, plan.world, log_rng):
            yield _log_table(plan, chunk)
            tally.add(chunk)
            if progress is not None:
                progress(int(tally.rows.sum()), config.num_rows)

    log_file = out_dir / "interactions.parquet"
    _write(log_file, tables())
    described = json.dumps(tally.describe(), indent=1)
    (out_dir / "truth.json").write_text(described + "\n", encoding="utf-8")
    description = description_yaml(history_length=config.history_length)
    (out_dir / "dataset.yaml").write_text(description, encoding="utf-8")
    num_row_groups = pq.read_metadata(log_file).num_row_groups
    click_rate, best = int(tally.clicks.sum()) / config.num_rows, tally.sums["best"].value()
    rows_per_split = _by_split(tally.rows.sum(axis=0))
    return SyntheticSummary(out_dir, config, num_row_groups, rows_per_split, click_rate, best)


def build_world(config: SyntheticConfig) -> World:
    """Draw the planted truth; the same world that `generate` writes from."""
    structure_rng, user_rng, item_rng, catalogue_rng, drift_rng = _streams(config.seed)[:5]
    planted = {"num_groups", "opposite_pairs", "num_latents", "common", "noise"}
    fields = config.model_dump(include=planted | {"base_click_rate", "base_rate_spread"})
    structure = truth.draw_structure(structure_rng, config.domain_rows(), **fields)
    drifting, latents = drift_rng if config.drift > 0 else None, config.num_latents
    users = truth.draw_users(user_rng, drifting, config.num_users, num_latents=latents, zipf=config.user_zipf)
    fields = {"num_attributes": config.num_attributes, "num_latents": latents, "zipf": config.item_zipf}
    items = truth.draw_items(item_rng, drifting, config.num_items, **fields)
    shown = truth.draw_catalogue(catalogue_rng, structure.rows, items.popularity, config.extra_domains)
    world = World(
        structure, users, items, shown, np.zeros(len(shown.starts) - 1), config.signal, config.drift
    )
    return replace(world, intercept=world.solve_intercepts(catalogue_rng))


def log_chunks(config: SyntheticConfig, world: World, rng: np.random.Generator) -> Iterator[LogChunk]:
    """Yield the log in time order, at most `row_group_rows` rows of one day at a time.

    Domains are dealt without replacement from each one's fixed number of rows: the totals come out exactly.
    """
    left = world.structure.rows.copy()
    bounds = np.linspace(0, config.num_rows, config.days + 1).astype(np.int64)
    for day, day_rows in enumerate(np.diff(bounds).tolist()):
        split = max(0, day - config.days + len(SPLITS))
        for start in range(0, day_rows, config.row_group_rows):
            count = min(config.row_group_rows, day_rows - start)
            dealt = rng.multivariate_hypergeometric(left, count, method="marginals")
            left -= dealt
            domain = rng.permutation(np.repeat(np.arange(len(left)), dealt))
            quantile = (start + np.arange(count) + rng.random(count)) / day_rows
            moment = np.interp(quantile, _HOUR_CDF, np.linspace(0.0, DAY_MS - 1, 25)).astype(np.int64)
            rows = world.draw(rng, domain, moment * 24 // DAY_MS, day / (config.days - 1))
            probability = truth.sigmoid(world.logits(rows))
            label = (rng.random(count) < probability).astype(np.int64)
            dwell = rng.lognormal(np.where(label == 1, np.log(20_000), np.log(1_500)), 0.8).astype(np.int64)
            yield LogChunk(split, rows, LOG_START_MS + day * DAY_MS + moment, probability, label, dwell)


def _streams(seed: int) -> list[np.random.Generator]:
    """Independent generators: structure, users, items, catalogue, drift, histories, missing values, log."""
    return [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(8)]


class _Plan(NamedTuple):
    """What every table is made from; the last four are Arrow string arrays from code to name."""

    config: SyntheticConfig
    world: World
    domains: pa.Array
    users: pa.Array
    items: pa.Array
    attributes: pa.Array


def _plan(config: SyntheticConfig) -> _Plan:
    digits = max(2, len(str(config.num_domains - 1)))
    domains, attributes = _numbered("d", config.num_domains, digits), _numbered("a", config.num_attributes)
    users, items = _numbered("u", config.num_users), _numbered("i", config.num_items)
    return _Plan(config, build_world(config), domains, users, items, attributes)


def _numbered(prefix: str, count: int, digits: int = 1) -> pa.Array:
    return pa.array([f"{prefix}{index:0{digits}d}" for index in range(count)])


def _lists(values: pa.Array, lengths: Ints) -> pa.ListArray:
    """Cut values, in order, into lists of the lengths (n,)."""
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32()), values)


def _write(path: Path, tables: Iterator[pa.Table]) -> None:
    """Write tables as one row group each."""
    first = next(tables)
    with pq.ParquetWriter(path, first.schema, compression="zstd") as writer:
        for table in chain([first], tables):
            writer.write_table(table, row_group_size=table.num_rows)


def _item_tables(plan: _Plan, rng: np.random.Generator) -> Iterator[pa.Table]:
    """Item features; `domains` lists every domain that shows the item, in order, its home among them."""
    items, catalogue = plan.world.items, plan.world.catalogue
    domain = np.repeat(np.arange(len(plan.domains)), np.diff(catalogue.starts))
    domain = domain[np.argsort(catalogue.members, kind="stable")]
    brands, held = _numbered("b", int(items.brand.max()) + 1), items.attributes >= 0
    columns = {
        "item_id": plan.items,
        "home_domain": plan.domains.take(pa.array(catalogue.home)),
        "domains": _lists(plan.domains.take(pa.array(domain)), np.bincount(catalogue.members)),
        "brand": brands.take(pa.array(items.brand)),
        "attributes": _lists(plan.attributes.take(pa.array(items.attributes[held])), held.sum(axis=1)),
        "price": pa.array(items.price, mask=rng.random(len(plan.items)) < plan.config.missing_ratio),
        "age_days": items.age_days,
    }
    yield pa.table(columns)


def _user_tables(plan: _Plan, rng: np.random.Generator) -> Iterator[pa.Table]:
    """User features and histories, oldest click first; interests are the attributes nearest to own taste."""
    config, users, length = plan.config, plan.world.users, plan.config.history_length
    step = max(1, _CHUNK_CANDIDATES // (length * _HISTORY_CANDIDATES))
    for start in range(0, config.num_users, step):
        user = np.arange(start, min(start + step, config.num_users))
        liking = (users.taste[user] - truth.SHARED_TASTE) @ plan.world.items.embedding.T
        ranked = np.argsort(-liking, axis=1, kind="stable")[:, :MAX_INTERESTS]
        weights = np.maximum(0.01, np.round(np.take_along_axis(liking, ranked, axis=1), 2))
        num_listed = rng.binomial(ranked.shape[1], 0.75, len(user)) * (rng.random(len(user)) > 0.05)
        listed = np.arange(ranked.shape[1]) < num_listed[:, None]
        clicked, shown_in = _history(plan.world, user, length, rng)
        age_ms = np.sort(rng.integers(1, HISTORY_SPAN_MS, (len(user), length)), axis=1)[:, ::-1]
        wanted = rng.exponential(length * np.exp(0.5 * users.activity[user]))
        num_held = np.minimum(length, wanted).astype(np.int64)
        held = np.arange(length) >= length - num_held[:, None]
        columns = {
            "user_id": plan.users.slice(start, len(user)),
            "age_band": pa.array(AGE_BANDS).take(pa.array(users.age_band[user])),
            "country": pa.array(COUNTRIES).take(pa.array(users.country[user])),
            "activity": pa.array(users.activity[user], mask=rng.random(len(user)) < config.missing_ratio),
            "interests": _lists(plan.attributes.take(pa.array(ranked[listed])), num_listed),
            "interest_weights": _lists(pa.array(weights[listed]), num_listed),
            "history_items": _lists(plan.items.take(pa.array(clicked[held])), num_held),
            "history_domains": _lists(plan.domains.take(pa.array(shown_in[held])), num_held),
            "history_time_ms": _lists(pa.array(LOG_START_MS - age_ms[held]), num_held),
        }
        yield pa.table(columns)


def _history(world: World, user: Ints, length: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Draw H clicks for each of n users before the log starts: items and their domains, each (n, H) int64.

    A click is picked from six exposures by click probability: near the law of clicks, at a fixed cost.
    """
    shape = (len(user), length, _HISTORY_CANDIDATES)
    count = int(np.prod(shape))
    cdf = np.cumsum(world.structure.rows) / world.structure.rows.sum()
    domain = np.searchsorted(cdf, rng.random(count), side="right")
    drawn = world.draw(rng, domain, rng.integers(0, 24, count), 0.0)
    rows = replace(drawn, user=np.repeat(user, length * _HISTORY_CANDIDATES))
    mass = np.cumsum(truth.sigmoid(world.logits(rows)).reshape(shape), axis=2)
    chosen = (mass < rng.random(shape[:2])[:, :, None] * mass[:, :, -1:]).sum(axis=2)[:, :, None]
    item = np.take_along_axis(rows.item.reshape(shape), chosen, axis=2)[:, :, 0]
    return item, np.take_along_axis(domain.reshape(shape), chosen, axis=2)[:, :, 0]


def _log_table(plan: _Plan, chunk: LogChunk) -> pa.Table:
    rows = chunk.rows
    columns = {
        "user_id": plan.users.take(pa.array(rows.user)),
        "item_id": plan.items.take(pa.array(rows.item)),
        "domain": plan.domains.take(pa.array(rows.domain)),
        "time_ms": chunk.time_ms,
        "hour": pa.array(rows.hour, pa.int8()),
        "device": pa.array(truth.DEVICES).take(pa.array(rows.device)),
        "label": pa.array(chunk.label, pa.int8()),
        "split": pa.repeat(SPLITS[chunk.split], len(rows.user)),
        "dwell_ms": chunk.dwell_ms,
        "true_probability": chunk.probability,
    }
    return pa.table(columns)


class _Tally:
    """Running counts of the log, (D, 3) by domain and split, and reachable figures of the test rows."""

    def __init__(self, plan: _Plan) -> None:
        self._plan = plan
        structure, shape = plan.world.structure, (len(plan.domains), len(SPLITS))
        self.rows, self.clicks, self.expected = np.zeros(shape, int), np.zeros(shape, int), np.zeros(shape)
        by_group = structure.group_weights[structure.group]
        self._weights = {"best": structure.weights, "group": by_group, "pooled": structure.pooled_weights()}
        self.sums = {name: truth.ReachableSums(len(plan.domains)) for name in self._weights}

    def add(self, chunk: LogChunk) -> None:
        domain, count = chunk.rows.domain, len(self.rows)
        self.rows[:, chunk.split] += np.bincount(domain, minlength=count)
        self.clicks[:, chunk.split] += np.bincount(domain[chunk.label == 1], minlength=count)
        self.expected[:, chunk.split] += np.bincount(domain, weights=chunk.probability, minlength=count)
        if SPLITS[chunk.split] == "test":
            for name, weights in self._weights.items():
                self.sums[name].add(domain, chunk.label, self._plan.world.logits(chunk.rows, weights))

    def describe(self) -> dict[str, Any]:
        """Everything planted, and the figures on the test rows of three scorers."""
        config, structure = self._plan.config, self._plan.world.structure
        domains = {
            name: {
                "group": int(structure.group[index]),
                "tail": index >= config.num_domains - config.num_tail_domains,
                "base_rate": float(structure.base_rate[index]),
                "rows": _by_split(self.rows[index]),
                "clicks": _by_split(self.clicks[index]),
                "expected_clicks": _by_split(self.expected[index]),
            }
            for index, name in enumerate(self._plan.domains.to_pylist())
        }
        return {
            "config": config.model_dump(),
            "domains": domains,
            "opposite_group": [int(group) if group >= 0 else None for group in structure.opposite],
            "group_similarity": structure.similarity().round(6).tolist(),
            "reachable_on_test": {name: sums.value() for name, sums in self.sums.items()},
        }


def _by_split(counts: Ints) -> dict[str, int]:
    return dict(zip(SPLITS, counts.tolist(), strict=True))
