"""Seeded synthetic multi-domain click log with a known truth.

`generate` reads nothing and writes one folder: `interactions.parquet` (the log in time order), `users.parquet`,
`items.parquet`, `dataset.yaml` (what the loader reads) and `truth.json` (planted groups, reachable figures).

Invariants: a label is drawn from exactly the `true_probability` of its row; equal configs give equal content;
memory does not grow with `num_rows`; `dataset.yaml` is written last, so a folder that holds it is complete.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped,unused-ignore]
import pyarrow.parquet as pq  # type: ignore[import-untyped,unused-ignore]
import yaml
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from training.data import synthetic_truth as truth
from training.data.synthetic_truth import Exposures, Floats, Floats32, Ints, World

DAY_MS = 86_400_000
LOG_START_MS = 1_704_067_200_000
"""2024-01-01 00:00 UTC; every history click is earlier."""
SPLITS = ("train", "valid", "test")
AGE_BANDS = ("under_18", "18_24", "25_34", "35_49", "50_64", "over_64")
COUNTRIES = ("br", "de", "fr", "in", "jp", "ng", "uk", "us")

_MAX_INTERESTS = 5
_USER_CHUNK = 4096
_HISTORY_CANDIDATES = 6
_HISTORY_SPAN_MS = 60 * DAY_MS
_HOURLY = 1.0 + 0.7 * np.cos((np.arange(24) - 20) * 2 * np.pi / 24)
_HOUR_CDF = np.concatenate([[0.0], np.cumsum(_HOURLY / _HOURLY.sum())])


class SyntheticConfig(BaseModel):
    """Size and character of a synthetic data set; the defaults are the `demo` preset."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    seed: int = Field(7, ge=0, description="Seed of every draw.")
    num_domains: int = Field(60, ge=2, le=2000, description="Domains, tail domains included.")
    num_groups: int = Field(6, ge=1, le=64, description="Planted groups of domains with one preference structure.")
    opposite_pairs: int = Field(2, ge=0, le=32, description="Pairs of groups with opposite (harmful) preferences.")
    num_users: int = Field(5_000, ge=10, le=10_000_000, description="Users.")
    num_items: int = Field(3_000, ge=10, le=10_000_000, description="Items.")
    num_rows: int = Field(250_000, ge=100, le=500_000_000, description="Rows (exposures) of the log.")
    days: int = Field(14, ge=3, le=366, description="Days of the log; the last is test, the one before valid.")
    domain_zipf: float = Field(1.0, ge=0, le=3, description="Zipf exponent of rows per non-tail domain.")
    item_zipf: float = Field(0.8, ge=0, le=3, description="Zipf exponent of item popularity.")
    user_zipf: float = Field(0.6, ge=0, le=3, description="Zipf exponent of user activity.")
    num_tail_domains: int = Field(6, ge=0, le=1999, description="Smallest domains, held at `tail_rows` rows each.")
    tail_rows: int = Field(150, ge=1, description="Rows of each tail domain over the whole log.")
    audience_ratio: float = Field(0.5, gt=0, le=1, description="Least share of users' activity a domain can meet.")
    extra_domains: float = Field(0.8, ge=0, le=5, description="Mean further domains of an item beside its home.")
    num_attributes: int = Field(40, ge=4, le=10_000, description="Distinct item attributes.")
    num_latents: int = Field(8, ge=2, le=64, description="Latent dimensions of taste.")
    history_length: int = Field(20, ge=1, le=500, description="Most clicks in a user's history before the log.")
    base_click_rate: float = Field(0.25, gt=0, lt=1, description="Row-weighted middle of the domains' base rates.")
    base_rate_spread: float = Field(0.5, ge=0, le=3, description="Spread of domain base rates, in logits.")
    signal: float = Field(1.25, ge=0, le=10, description="Spread of personal preference, in logits.")
    common: float = Field(0.15, ge=0, le=1, description="Share of preference that all groups have in common.")
    noise: float = Field(0.2, ge=0, le=5, description="A domain's own deviation from its group, relative.")
    drift: float = Field(0.0, ge=0, le=10, description="How far taste and item quality move by the last day; 0 off.")
    missing_ratio: float = Field(0.1, ge=0, lt=1, description="Share of missing activity and price values.")
    row_group_rows: int = Field(65_536, ge=256, le=4_194_304, description="Most rows of a chunk and row group.")

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        """Refuse sizes that do not fit each other; the message names field, value and limit."""
        if 2 * self.opposite_pairs > self.num_groups:
            limit = self.num_groups // 2
            raise ValueError(f"opposite_pairs is {self.opposite_pairs}; at most num_groups // 2 = {limit} allowed")
        if self.num_groups > self.num_domains:
            limit = self.num_domains
            raise ValueError(f"num_groups is {self.num_groups}; at most num_domains = {limit} allowed")
        if (needed := 1 + self.num_groups - self.opposite_pairs) > self.num_latents:
            formula = "1 + num_groups - opposite_pairs"
            raise ValueError(f"num_latents is {self.num_latents}; at least {formula} = {needed} needed")
        if self.num_tail_domains >= self.num_domains:
            limit = self.num_domains - 1
            raise ValueError(f"num_tail_domains is {self.num_tail_domains}; at most num_domains - 1 = {limit} allowed")
        smallest = int(self.domain_rows()[: self.num_domains - self.num_tail_domains].min())
        if smallest < max(1, self.tail_rows if self.num_tail_domains else 1):
            raise ValueError(f"tail_rows is {self.tail_rows}; at most {max(smallest, 0)} allowed, the rows left for "
                             f"the smallest other domain of num_rows = {self.num_rows}")  # fmt: skip
        return self

    def domain_rows(self) -> Ints:
        """Rows of each domain in the whole log, (num_domains,) int64, largest first."""
        return truth.split_rows(
            num_rows=self.num_rows, num_domains=self.num_domains, exponent=self.domain_zipf,
            num_tail_domains=self.num_tail_domains, tail_rows=self.tail_rows,
        )  # fmt: skip


PRESETS = {
    "small": SyntheticConfig(
        num_domains=20, num_groups=4, opposite_pairs=1, num_users=1_000, num_items=600, num_rows=20_000, days=8,
        num_tail_domains=3, tail_rows=60, num_attributes=24,
    ),
    "demo": SyntheticConfig(),
}  # fmt: skip
"""`small` for tests, `demo` for the five-minute run."""


@dataclass(frozen=True)
class SyntheticSummary:
    """What `generate` wrote; AUC figures are those of the true probability on the test rows."""

    folder: Path
    num_domains: int
    num_groups: int
    num_users: int
    num_items: int
    num_rows: int
    num_row_groups: int
    rows_per_split: dict[str, int]
    click_rate: float
    best: truth.Reachable


@dataclass(frozen=True)
class LogChunk:
    """n rows of one day in time order: `time_ms`, `label`, `dwell_ms` (n,) int64, `logit`, `probability` (n,) f64."""

    day: int
    split: Literal["train", "valid", "test"]
    rows: Exposures
    time_ms: Ints
    logit: Floats
    probability: Floats
    label: Ints
    dwell_ms: Ints


def domain_names(count: int) -> list[str]:
    """Names d00, d01, ... with as many digits as the last one needs, at least two."""
    width = max(2, len(str(count - 1)))
    return [f"d{index:0{width}d}" for index in range(count)]


def _streams(seed: int) -> list[np.random.Generator]:
    """Independent generators: structure, users, items, catalogue, drift, calibration, histories, log."""
    return [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(8)]


def build_world(config: SyntheticConfig) -> World:
    """Draw the planted truth of a config; the same world that `generate` writes from."""
    structure_rng, user_rng, item_rng, catalogue_rng, drift_rng, calibration_rng = _streams(config.seed)[:6]
    structure = truth.plant_structure(
        structure_rng,
        rows=config.domain_rows(),
        num_tail_domains=config.num_tail_domains,
        num_groups=config.num_groups,
        num_latents=config.num_latents,
        opposite_pairs=config.opposite_pairs,
        common=config.common,
        noise=config.noise,
        base_click_rate=config.base_click_rate,
        base_rate_spread=config.base_rate_spread,
    )
    users = truth.draw_users(user_rng, config.num_users, config.num_latents, config.user_zipf)
    items = truth.draw_items(
        item_rng, config.num_items, config.num_attributes, config.num_latents, config.item_zipf
    )
