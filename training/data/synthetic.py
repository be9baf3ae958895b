"""Seeded synthetic multi-domain click log with a known truth.

`generate` reads nothing and writes one folder: `interactions.parquet` (the log in time order), `users.parquet`,
`items.parquet`, `truth.json` (planted groups, reachable figures) and `dataset.yaml` (what the loader reads).

Invariants: a label is drawn with exactly the `true_probability` of its row; equal configs give equal content;
memory does not grow with `num_rows`; `dataset.yaml` is written last, so a folder that holds it is complete.

Letters: D domains, G groups, L latents, A attributes, H history length, n rows.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from training.data import synthetic_truth as truth
from training.data.synthetic_truth import Exposures, Floats, Ints, World

DAY_MS = 86_400_000
LOG_START_MS = 1_704_067_200_000
"""2024-01-01 00:00 UTC; every history click is earlier."""
HISTORY_SPAN_MS = 60 * DAY_MS
SPLITS = ("train", "valid", "test")
AGE_BANDS = ("under_18", "18_24", "25_34", "35_49", "50_64", "over_64")
COUNTRIES = ("br", "de", "fr", "in", "jp", "ng", "uk", "us")

_MAX_INTERESTS = 5
_HISTORY_CANDIDATES = 6
_CHUNK_CANDIDATES = 250_000
_HOURLY = 1.0 + 0.7 * np.cos((np.arange(24) - 20) * 2 * np.pi / 24)
_HOUR_CDF = np.concatenate([[0.0], np.cumsum(_HOURLY / _HOURLY.sum())])


class SyntheticConfig(BaseModel):
    """Size and character of a synthetic data set; the defaults are the `demo` preset."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    seed: int = Field(7, ge=0, description="Seed of every draw.")
    num_domains: int = Field(60, ge=2, le=2000, description="Domains, tail domains included.")
    num_groups: int = Field(6, ge=1, le=64, description="Groups of domains with one preference structure.")
    opposite_pairs: int = Field(2, ge=0, le=32, description="Pairs of groups that harm each other.")
    num_users: int = Field(5_000, ge=10, le=10_000_000, description="Users.")
    num_items: int = Field(3_000, ge=10, le=10_000_000, description="Items.")
    num_rows: int = Field(250_000, ge=1_000, le=500_000_000, description="Rows (exposures) of the log.")
    days: int = Field(14, ge=3, le=366, description="Days of the log: the last is test, the one before valid.")
    domain_zipf: float = Field(1.0, ge=0, le=3, description="Zipf exponent of rows per non-tail domain.")
    item_zipf: float = Field(0.8, ge=0, le=3, description="Zipf exponent of item popularity.")
    user_zipf: float = Field(0.6, ge=0, le=3, description="Zipf exponent of user activity.")
    num_tail_domains: int = Field(6, ge=0, le=1999, description="Domains held at `tail_rows` rows each.")
    tail_rows: int = Field(150, ge=1, description="Rows of each tail domain over the whole log.")
    extra_domains: float = Field(0.8, ge=0, le=5, description="Mean domains of an item beside its home.")
    num_attributes: int = Field(40, ge=4, le=10_000, description="Distinct item attributes.")
    num_latents: int = Field(8, ge=2, le=64, description="Latent dimensions of taste.")
    history_length: int = Field(20, ge=1, le=500, description="Most clicks in a history before the log.")
    base_click_rate: float = Field(0.25, gt=0, lt=1, description="Row-weighted middle of base click rates.")
    base_rate_spread: float = Field(0.5, ge=0, le=3, description="Spread of domain base rates, in logits.")
    signal: float = Field(1.25, ge=0, le=10, description="Spread of personal preference, in logits.")
    common: float = Field(0.15, ge=0, le=1, description="Share of preference that all groups have in common.")
    noise: float = Field(0.2, ge=0, le=5, description="A domain's own deviation from its group, relative.")
    drift: float = Field(0.0, ge=0, le=10, description="How far tastes and item quality move; 0 is off.")
    missing_ratio: float = Field(0.1, ge=0, lt=1, description="Share of missing activity and price values.")
    row_group_rows: int = Field(65_536, ge=256, le=4_194_304, description="Most rows of a row group.")

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        """Refuse sizes that do not fit each other; the message names field, value and limit."""
        needed = 1 + self.num_groups - self.opposite_pairs
        most = {
            "opposite_pairs": (self.num_groups // 2, "num_groups // 2"),
            "num_groups": (self.num_domains, "num_domains"),
            "num_tail_domains": (self.num_domains - 1, "num_domains - 1"),
        }
        for field, (limit, formula) in most.items():
            if (value := getattr(self, field)) > limit:
                raise ValueError(f"{field} is {value}; at most {formula} = {limit} allowed")
        if self.num_latents < needed:
            formula = "1 + num_groups - opposite_pairs"
            raise ValueError(f"num_latents is {self.num_latents}; at least {formula} = {needed} needed")
        head = self.domain_rows()[: self.num_domains - self.num_tail_domains]
        least = self.tail_rows if self.num_tail_domains else 1
        if head.min() < least:
            raise ValueError(
                f"num_rows is {self.num_rows}; too few: the smallest of the {len(head)} domains that are not "
                f"tail domains would get {max(0, int(head.min()))} rows, at least {least} needed"
            )
        return self

    def domain_rows(self) -> Ints:
        """Rows of each domain in the whole log: (D,) int64, largest first, tail domains last."""
        return truth.split_rows(
            self.num_rows,
            num_head=self.num_domains - self.num_tail_domains,
            exponent=self.domain_zipf,
            num_tail=self.num_tail_domains,
            tail_rows=self.tail_rows,
        )


SMALL_SIZES = {"num_domains": 20, "num_groups": 4, "opposite_pairs": 1, "num_users": 1_000, "num_items": 600}
SMALL_ROWS = {"num_rows": 20_000, "days": 8, "num_tail_domains": 3, "tail_rows": 60, "num_attributes": 24}
PRESETS = {"small": SyntheticConfig(**SMALL_SIZES, **SMALL_ROWS), "demo": SyntheticConfig()}
"""`small` for tests, `demo` for the five-minute run."""


@dataclass(frozen=True)
class SyntheticSummary:
    """What `generate` wrote; `best` holds the figures of the true probability on the test rows."""

    folder: Path
    num_domains: int
    num_groups: int
    num_users: int
    num_items: int
    num_rows: int
    num_row_groups: int
    rows_per_split: dict[str, int]
    click_rate: float
    best: dict[str, float | int | None]


@dataclass(frozen=True, eq=False)
class LogChunk:
    """n rows of one day, in time order.

    `split` indexes `SPLITS`; `time_ms`, `label` (0/1), `dwell_ms` (n,) int64; `probability` (n,) float64.
    """

    split: int
    rows: Exposures
    time_ms: Ints
    probability: Floats
    label: Ints
    dwell_ms: Ints


def generate(
    config: SyntheticConfig, out_dir: Path, progress: Callable[[int, int], None] | None = None
) -> SyntheticSummary:
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
    world = build_world(config)
    names = _Names.of(config)
    _write(out_dir / "items.parquet", _item_tables(config, world, names, item_rng))
    _write(out_dir / "users.parquet", _user_tables(config, world, names, history_rng))

    tally = _Tally(world)

    def tables() -> Iterator[pa.Table]:
        for chunk in log_chunks(config, world, log_rng):
            yield _log_table(chunk, names)
            tally.add(chunk)
            if progress is not None:
                progress(int(tally.rows.sum()), config.num_rows)

    num_row_groups = _write(out_dir / "interactions.parquet", tables())
    described = {"config": config.model_dump(), **tally.describe(names.domains.to_pylist())}
    (out_dir / "truth.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    (out_dir / "dataset.yaml").write_text(dataset_yaml(config), encoding="utf-8")
    return SyntheticSummary(
        folder=out_dir,
        num_domains=config.num_domains,
        num_groups=config.num_groups,
        num_users=config.num_users,
        num_items=config.num_items,
        num_rows=config.num_rows,
        num_row_groups=num_row_groups,
        rows_per_split=dict(zip(SPLITS, tally.rows.sum(axis=0).tolist(), strict=True)),
        click_rate=float(tally.clicks.sum() / config.num_rows),
        best=tally.best.value(),
    )


def build_world(config: SyntheticConfig) -> World:
    """Draw the planted truth; the same world that `generate` writes from."""
    structure_rng, user_rng, item_rng, catalogue_rng, drift_rng = _streams(config.seed)[:5]
    structure = truth.draw_structure(
        structure_rng,
        config.domain_rows(),
        num_groups=config.num_groups,
        opposite_pairs=config.opposite_pairs,
        num_latents=config.num_latents,
        common=config.common,
        noise=config.noise,
        base_click_rate=config.base_click_rate,
        base_rate_spread=config.base_rate_spread,
    )
    size = {"num_latents": config.num_latents}
    drifts = config.drift > 0
    users = truth.draw_users(
        user_rng, drift_rng, count=config.num_users, zipf=config.user_zipf, drifts=drifts, **size
    )
    items = truth.draw_items(
        item_rng,
        drift_rng,
        count=config.num_items,
        num_attributes=config.num_attributes,
        zipf=config.item_zipf,
        drifts=drifts,
        **size,
    )
    catalogue = truth.draw_catalogue(
        catalogue_rng, rows=structure.rows, popularity=items.popularity, extra=config.extra_domains
    )
    intercept = np.zeros(config.num_domains)
    world = World(structure, users, items, catalogue, intercept, config.signal, config.drift)
    return replace(world, intercept=world.solve_intercepts(catalogue_rng))


def log_chunks(config: SyntheticConfig, world: World, rng: np.random.Generator) -> Iterator[LogChunk]:
    """Yield the log in time order, at most `row_group_rows` rows of one day at a time.

    Domains are dealt without replacement from the fixed number of rows of each, so the totals come out exactly.
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


def dataset_yaml(config: SyntheticConfig) -> str:
    """Describe the folder for the loader: files, columns, outcomes that no model may read, features."""
    vocabulary = {"type": "vocabulary"}
    ids = {"type": "vocabulary", "min_count": 2}
    fields = [
        {"name": "item", "column": "history_items", "encoder": "item_id"},
        {"name": "domain", "column": "history_domains", "encoder": vocabulary},
    ]
    weighted = {"max_len": _MAX_INTERESTS, "weights": "interest_weights"}
    features = [
        _feature("user_id", "user", "categorical", encoder=ids),
        _feature("age_band", "user", "categorical", encoder=vocabulary),
        _feature("country", "user", "categorical", encoder=vocabulary),
        _feature("activity", "user", "numeric", encoder={"type": "standardise"}),
        _feature("interests", "user", "multi", **weighted, encoder=vocabulary),
        _feature("history", "user", "sequence", max_len=config.history_length, fields=fields),
        _feature("item_id", "item", "categorical", encoder=ids),
        _feature("brand", "item", "categorical", encoder=vocabulary),
        _feature("attributes", "item", "multi", max_len=truth.MAX_ATTRIBUTES, encoder=vocabulary),
        _feature("price", "item", "numeric", encoder={"type": "standardise"}),
        _feature("age_days", "item", "numeric", encoder={"type": "bucketise"}),
        _feature("hour", "context", "categorical", encoder=vocabulary),
        _feature("device", "context", "categorical", encoder=vocabulary),
    ]
    columns = {"user": "user_id", "item": "item_id", "domain": "domain", "label": "label"}
    columns |= {"time": {"column": "time_ms", "unit": "ms"}, "split": "split"}
    described = {
        "name": "synthetic",
        "interactions": "interactions.parquet",
        "users": {"file": "users.parquet", "key": "user_id"},
        "items": {"file": "items.parquet", "key": "item_id"},
        "columns": columns | {"true_probability": "true_probability"},
        "outcomes": ["dwell_ms"],
        "features": features,
        "statistics": [],
    }
    return yaml.dump(described, Dumper=_NoAliases, sort_keys=False, default_flow_style=None, width=110)
