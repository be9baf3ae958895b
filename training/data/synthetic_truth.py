"""The planted truth of the synthetic click log: who likes what in which domain, and how well a model can do.

Reads nothing and writes nothing; `synthetic.py` turns a `World` into files.

Invariant: `World.logits` is the only place where a click probability is made. For a row of domain d, user u,
item i, hour h and device v at progress p through the log (0 at its start, 1 on its last day):

    logit = intercept_d + signal * sum_l w_dl taste_ul(p) appeal_il + quality_i(p) + bias_u + hour_h + dev_v
    w_d   = unit(w_g + noise * e_d / sqrt(L)),   w_g = sqrt(common) * q_0 + sqrt(1 - common) * s_g * q_g

for the domain's group g, with orthonormal q_0 (shared), q_g, and e_d standard normal. The second group of an
opposite pair has its partner's q_g and s_g = -1; all others have their own and s_g = 1. Appeal follows from
the item's attributes alone, so an unseen item can be scored from its metadata. With m = drift * p,
taste(p) = 1/2 + (taste - 1/2 + m t') / sqrt(1 + m^2) and quality(p) = (quality + m q') / sqrt(1 + m^2), for
independent t', q' of equal spread; so the strength of tastes stays the same.

Letters: D domains, G groups, L latents, U users, I items, A attributes, n rows, M (domain, item) memberships.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]
Ints = NDArray[np.int64]

NUM_AGE_BANDS, NUM_COUNTRIES = 6, 8
DEVICES = ("phone", "desktop", "tablet", "tv")
DEVICE_CDF = np.array([0.6, 0.85, 0.95, 1.0])
DEVICE_EFFECT = np.array([0.10, -0.10, 0.05, -0.30])
HOUR_EFFECT = 0.2 * np.cos((np.arange(24) - 21) * 2 * np.pi / 24)
MIN_ATTRIBUTES, MAX_ATTRIBUTES = 2, 4
SHARED_TASTE = 0.5
"""Taste that every user has in every latent: it makes some attributes popular as such."""
QUALITY_STD, BIAS_STD = 0.4, 0.3
"""Spread of the item and of the user main effect, in logits."""
MIN_CATALOGUE = 8
"""Least number of items a domain shows (or all items, where there are fewer)."""

_SOLVER_PAIRS = 2048
_NUM_BINS = 2048
_MAX_LOGIT = 8.0
_BINS_PER_LOGIT = _NUM_BINS / (2 * _MAX_LOGIT)


def sigmoid(logit: Floats) -> Floats:
    """Return 1 / (1 + exp(-logit)); shape kept, float64."""
    chance: Floats = 1.0 / (1.0 + np.exp(-np.clip(logit, -40.0, 40.0)))
    return chance


def zipf_shares(count: int, exponent: float) -> Floats:
    """Return shares proportional to rank^-exponent: (count,) float64, falling, summing to 1."""
    weights: Floats = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    return weights / float(weights.sum())


def split_rows(num_rows: int, num_head: int, num_tail: int, *, exponent: float, tail_rows: int) -> Ints:
    """Divide rows: Zipf shares for the head domains, then `tail_rows` each for the tail domains.

    Returns:
        (num_head + num_tail,) int64 rows per domain, summing to `num_rows`; head domains first, falling.
    """
    head_rows = num_rows - num_tail * tail_rows
    rows = np.floor(zipf_shares(num_head, exponent) * head_rows).astype(np.int64)
    rows[: head_rows - int(rows.sum())] += 1
    return np.concatenate([rows, np.full(num_tail, tail_rows, dtype=np.int64)])


@dataclass(frozen=True, eq=False)
class Structure:
    """What is planted per domain and group.

    `group` and `rows` (D,) int64; `base_rate` (D,) float64, the click rate aimed at (before drift);
    `weights` (D, L) float64 unit rows; `group_weights` (G, L) float64 unit rows; `opposite` (G,) int64, the
    mutually harmful partner of each group, -1 for none.
    """

    group: Ints
    rows: Ints
    base_rate: Floats
    weights: Floats
    group_weights: Floats
    opposite: Ints

    def similarity(self) -> Floats:
        """Cosine between the groups' preference weights, (G, G) float64."""
        return self.group_weights @ self.group_weights.T

    def pooled_weights(self) -> Floats:
        """Weights (D, L) float64 of a model blind to domains' tastes: their row-weighted mean, for all."""
        mean = (self.rows / self.rows.sum()) @ self.weights
        return np.tile(mean, (len(self.rows), 1))


def draw_structure(
    rng: np.random.Generator,
    rows: Ints,
    *,
    num_groups: int,
    opposite_pairs: int,
    num_latents: int,
    common: float,
    noise: float,
    base_click_rate: float,
    base_rate_spread: float,
) -> Structure:
    """Plant groups, weights and base rates for domains of `rows` (D,) int64 rows, largest first.

    Each block of G domains in order of size holds every group once, so each has large and small domains.
    Base rates have evenly spaced logits, shifted to a row-weighted mean of that of `base_click_rate`.
    """
    num_domains = len(rows)
    blocks = [rng.permutation(num_groups) for _ in range(-(-num_domains // num_groups))]
    group = np.concatenate(blocks)[:num_domains].astype(np.int64)

    basis, _ = np.linalg.qr(rng.standard_normal((num_latents, num_latents)))
    groups = np.arange(num_groups)
    paired = groups < 2 * opposite_pairs
    opposite = np.where(paired, groups ^ 1, -1).astype(np.int64)
    direction = 1 + np.where(paired, groups // 2, groups - opposite_pairs)
    sign = np.where(paired & (groups % 2 == 1), -1.0, 1.0)[:, None]
    group_weights = np.sqrt(common) * basis[0] + np.sqrt(1.0 - common) * sign * basis[direction]

    own = rng.standard_normal((num_domains, num_latents)) / np.sqrt(num_latents)
    weights = group_weights[group] + noise * own
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)

    offsets = base_rate_spread * np.linspace(-1.7, 1.7, num_domains)[rng.permutation(num_domains)]
    offsets -= float(offsets @ rows) / float(rows.sum())
    base_rate = sigmoid(np.log(base_click_rate / (1.0 - base_click_rate)) + offsets)
    return Structure(group, rows, base_rate, weights, group_weights, opposite)


@dataclass(frozen=True, eq=False)
class Users:
    """Users: `taste` and what it drifts to beside `SHARED_TASTE`, `later_taste` or None, (U, L) float32.

    `bias` (U,) float32 logits; `cdf` (U,) float64 cumulative share of activity; `activity` (U,) float32, log
    of that share relative to the mean; `age_band`, `country` (U,) int64 codes, each with a taste of its own.
    """

    taste: Floats32
    later_taste: Floats32 | None
    bias: Floats32
    cdf: Floats
    activity: Floats32
    age_band: Ints
    country: Ints


def draw_users(
    rng: np.random.Generator,
    drift_rng: np.random.Generator | None,
    count: int,
    *,
    num_latents: int,
    zipf: float,
) -> Users:
    """Draw users; taste has unit mean square: 1/4 shared by all, 1/4 by age band and country, 1/2 own."""
    shares = rng.permutation(zipf_shares(count, zipf))
    activity = np.log(shares * count).astype(np.float32)
    age_band, country = rng.integers(0, NUM_AGE_BANDS, count), rng.integers(0, NUM_COUNTRIES, count)
    segment = rng.standard_normal((NUM_AGE_BANDS + NUM_COUNTRIES, num_latents), dtype=np.float32) * np.sqrt(
        1 / 8
    )

    own = np.sqrt(0.5) * rng.standard_normal((count, num_latents), dtype=np.float32)
    taste = SHARED_TASTE + segment[age_band] + segment[NUM_AGE_BANDS + country] + own
    later = drift_rng.standard_normal((count, num_latents), dtype=np.float32) if drift_rng else None
    bias = 0.3 * activity + rng.standard_normal(count, dtype=np.float32)
    return Users(
        taste=taste.astype(np.float32),
        later_taste=None if later is None else np.float32(np.sqrt(0.75)) * later,
        bias=(BIAS_STD * _standardised(bias)).astype(np.float32),
        cdf=np.cumsum(shares),
        activity=activity,
        age_band=age_band,
        country=country,
    )


@dataclass(frozen=True, eq=False)
class Items:
    """Items: `attributes` (I, 4) int64 codes, -1 where fewer; `embedding` (A, L) float32 of the attributes.

    `appeal` (I, L) float32, mean embedding of the attributes, unit variance; `quality` and what it drifts to,
    `later_quality` (None without drift), (I,) float32 logits; `popularity` (I,) float64 shares; `brand` (I,)
    int64; `price` (I,) float32 currency units; `age_days` (I,) int64, days at the log start.
    """

    attributes: Ints
    embedding: Floats32
    appeal: Floats32
    quality: Floats32
    later_quality: Floats32 | None
    popularity: Floats
    brand: Ints
    price: Floats32
    age_days: Ints


def draw_items(
    rng: np.random.Generator,
    drift_rng: np.random.Generator | None,
    count: int,
    *,
    num_attributes: int,
    num_latents: int,
    zipf: float,
) -> Items:
    """Draw items; quality mixes brand, freshness, a low price and a part that no metadata shows."""
    embedding = _standardised(rng.standard_normal((num_attributes, num_latents))).astype(np.float32)
    first = rng.integers(0, num_attributes, (count, 1))
    bands = np.linspace(1, num_attributes, MAX_ATTRIBUTES).astype(np.int64)
    further = rng.integers(bands[:-1], bands[1:], (count, MAX_ATTRIBUTES - 1))
    attributes = np.hstack([first, (first + further) % num_attributes])
    held = np.arange(MAX_ATTRIBUTES) < rng.integers(MIN_ATTRIBUTES, MAX_ATTRIBUTES + 1, count)[:, None]
    appeal = (embedding[attributes] * held[:, :, None]).sum(axis=1) / held.sum(axis=1, keepdims=True)

    num_brands = max(4, count // 25)
    brand = rng.choice(num_brands, count, p=zipf_shares(num_brands, 0.7))
    brand_level = rng.standard_normal(num_brands)[brand]
    log_price = 0.6 * brand_level + 0.6 * rng.standard_normal(count)
    age_days = rng.exponential(150.0, count).astype(np.int64)
    visible = 0.6 * brand_level - 0.4 * log_price - 0.4 * _standardised(np.log1p(age_days))

    quality = QUALITY_STD * _standardised(visible + 0.5 * rng.standard_normal(count))
    later = drift_rng.standard_normal(count, dtype=np.float32) if drift_rng else None
    return Items(
        attributes=np.where(held, attributes, -1),
        embedding=embedding,
        appeal=_standardised(appeal).astype(np.float32),
        quality=quality.astype(np.float32),
        later_quality=None if later is None else np.float32(QUALITY_STD) * later,
        popularity=rng.permutation(zipf_shares(count, zipf)),
        brand=brand.astype(np.int64),
        price=np.exp(3.0 + log_price).astype(np.float32),
        age_days=age_days,
    )


def _standardised(values: Floats | Floats32) -> Floats:
    """Shift and scale each column to mean 0 and standard deviation 1; a constant column becomes 0."""
    spread = values.std(axis=0, dtype=np.float64)
    result: Floats = (values - values.mean(axis=0, dtype=np.float64)) / np.where(spread > 0, spread, 1.0)
    return result


@dataclass(frozen=True, eq=False)
class Catalogue:
    """Which items a domain shows: `members` (M,) int64 items, sliced by `starts` (D + 1,) int64.

    `cdf` (M,) float64 is domain index + cumulative popularity inside the domain: it rises over the whole
    array. `home` (I,) int64 is each item's home domain.
    """

    home: Ints
    starts: Ints
    members: Ints
    cdf: Floats

    def pick(self, domain: Ints, uniform: Floats) -> Ints:
        """Pick items of the domains by popularity: (n,) int64, (n,) float64 in [0, 1) -> (n,) int64."""
        slot = np.searchsorted(self.cdf, domain + uniform, side="right")
        return self.members[np.clip(slot, self.starts[domain], self.starts[domain + 1] - 1)]


def draw_catalogue(rng: np.random.Generator, rows: Ints, popularity: Floats, extra: float) -> Catalogue:
    """Give each item a home domain and, on average, `extra` more; large domains show more, none too few.

    Args:
        rng: Source of the draws.
        rows: (D,) int64 rows of each domain; a domain's share of items goes by their square root.
        popularity: (I,) float64 shares.
        extra: Mean number of further domains of an item, before doubles are dropped.
    """
    num_domains, num_items = len(rows), len(popularity)
    shares = np.sqrt(rows) / np.sqrt(rows).sum()
    home = rng.choice(num_domains, num_items, p=shares)
    further = np.repeat(np.arange(num_items), rng.poisson(extra, num_items))
    filler = [rng.choice(num_items, min(MIN_CATALOGUE, num_items), replace=False) for _ in range(num_domains)]
    filler_domain = np.repeat(np.arange(num_domains), len(filler[0]))
    domains = np.concatenate([home, rng.choice(num_domains, len(further), p=shares), filler_domain])
    items = np.concatenate([np.arange(num_items), further, *filler])

    pairs = np.unique(domains * num_items + items)
    domain, members = np.divmod(pairs, num_items)
    starts = np.searchsorted(domain, np.arange(num_domains + 1))
    weights = popularity[members]
    total = np.cumsum(weights)
    before = np.concatenate([[0.0], total])[starts]
    cdf = domain + (total - before[domain]) / np.diff(before)[domain]
    return Catalogue(home.astype(np.int64), starts.astype(np.int64), members, cdf)


@dataclass(frozen=True, eq=False)
class Exposures:
    """Rows before the click: domain, user, item, hour (0-23), device, each (n,) int64; progress in [0, 1]."""

    domain: Ints
    user: Ints
    item: Ints
    hour: Ints
    device: Ints
    progress: float


@dataclass(frozen=True, eq=False)
class World:
    """All that fixes a click probability; `intercept` (D,) float64 logits."""

    structure: Structure
    users: Users
    items: Items
    catalogue: Catalogue
    intercept: Floats
    signal: float
    drift: float

    def draw(self, rng: np.random.Generator, domain: Ints, hour: Ints, progress: float) -> Exposures:
        """Draw who sees what on which device: domain and hour (n,) int64, independent of taste."""
        user = np.searchsorted(self.users.cdf, rng.random(len(domain)), side="right")
        item = self.catalogue.pick(domain, rng.random(len(domain)))
        device = np.searchsorted(DEVICE_CDF, rng.random(len(domain)), side="right")
        return Exposures(domain, np.minimum(user, len(self.users.cdf) - 1), item, hour, device, progress)

    def logits(self, rows: Exposures, weights: Floats | None = None) -> Floats:
        """Click logits (n,) float64 of n rows, under the truth or under other weights, (D, L) float64."""
        weights = self.structure.weights if weights is None else weights
        taste = self.users.taste[rows.user]
        quality = self.items.quality[rows.item]
        move = np.float32(self.drift * rows.progress)
        if self.users.later_taste is not None and self.items.later_quality is not None and move > 0:
            kept = np.float32(1 / np.sqrt(1 + move * move))
            own = taste - np.float32(SHARED_TASTE) + move * self.users.later_taste[rows.user]
            taste = np.float32(SHARED_TASTE) + kept * own
            quality = kept * (quality + move * self.items.later_quality[rows.item])
        matched = np.einsum("nl,nl,nl->n", weights[rows.domain], taste, self.items.appeal[rows.item])
        shift = self.intercept[rows.domain] + HOUR_EFFECT[rows.hour] + DEVICE_EFFECT[rows.device]
        logits: Floats = shift + self.signal * matched + quality + self.users.bias[rows.user]
        return logits

    def solve_intercepts(self, rng: np.random.Generator) -> Floats:
        """Intercepts (D,) float64 that give a sample of each domain its base rate, by bisection."""
        num_domains = len(self.structure.rows)
        domain = np.repeat(np.arange(num_domains), _SOLVER_PAIRS)
        rows = self.draw(rng, domain, rng.integers(0, 24, len(domain)), 0.0)
        free = (self.logits(rows) - self.intercept[domain]).reshape(num_domains, _SOLVER_PAIRS)
        low, high = np.full(num_domains, -40.0), np.full(num_domains, 40.0)
        for _ in range(24):
            middle = (low + high) / 2
            below = sigmoid(free + middle[:, None]).mean(axis=1) < self.structure.base_rate
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return low


class ReachableSums:
    """Counts of test rows by domain, label and score bin, so that memory does not grow with rows.

    Bins are 1/128 logit wide over [-8, 8]; scores in one bin count as ties (1/2), which moves an AUC of
    thousands of rows by less than 1e-4. Log loss is summed exactly, in nats per row.
    """

    def __init__(self, num_domains: int) -> None:
        """Start empty."""
        self._counts = np.zeros((num_domains, 2, _NUM_BINS), dtype=np.int32)
        self._loss = 0.0

    def add(self, domain: Ints, label: Ints, logit: Floats) -> None:
        """Add rows: (n,) int64 domain, (n,) int64 0/1 label, (n,) float64 logit."""
        bins = np.clip((logit + _MAX_LOGIT) * _BINS_PER_LOGIT, 0, _NUM_BINS - 1).astype(np.int64)
        np.add.at(self._counts, (domain, label, bins), 1)
        self._loss += float(np.sum(np.logaddexp(0.0, logit) - label * logit))

    def value(self) -> dict[str, float | int | None]:
        """Figures by name; `domain_auc` weighs domains by rows; None where a class is missing."""
        sizes = self._counts.sum(axis=(1, 2))
        aucs = [_binned_auc(counts) for counts in self._counts]
        known = [(int(size), value) for size, value in zip(sizes, aucs, strict=True) if value is not None]
        weight, total = sum(size for size, _ in known), int(sizes.sum())
        return {
            "total_auc": _binned_auc(self._counts.sum(axis=0)),
            "domain_auc": sum(size * value for size, value in known) / weight if known else None,
            "logloss": self._loss / total if total else None,
            "skipped_domains": len(aucs) - len(known),
        }


def _binned_auc(counts: NDArray[np.integer]) -> float | None:
    """ROC AUC of (2, bins) counts of negatives and positives, ties 1/2; None without one class."""
    negatives, positives = counts
    pairs = int(negatives.sum()) * int(positives.sum())
    beaten = np.cumsum(negatives) - negatives / 2
    return float(positives @ beaten) / pairs if pairs else None
