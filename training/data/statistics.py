"""Counts and shrunk click rates per key or pair of keys, as of any period.

Formulas, with n rows, c clicks of a target, p its rate over train, a the smoothing:
    count   log(1 + n)
    rate    logit((c + a p) / (n + a)) - logit(p), exactly 0 where n = 0
and for a pair with `parent`, p is the holder's own shrunk rate. Each is divided by its root mean square over
train rows, which keeps 0 at 0.

Invariant: a train row sees only periods before its own; the entity rows hold the state at the end of train.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.contract.schema import (
    DOMAIN_ENCODER,
    FIRST_ID,
    CategoricalFeature,
    Entity,
    FeatureSchema,
    LookupPair,
    MultiFeature,
    NumericFeature,
    StandardiseEncoder,
)
from service.contract.values import standardise
from training.data.asof import END, AsOfCounts
from training.data.columns import Floats, Ints
from training.data.log import HOUR_MS
from training.data.made import Made, MadeFeature, multi_block, no_ints, zero_preserving
from training.data.table import KeySpec, StatisticsSpec

_SECOND_BITS = 31
_PERIOD_HOURS = {"h": 1, "d": 24}
RATE_FLOOR = 1e-6


def period_of(time_ms: Ints, positions: Ints, snapshot: str, offset_h: float) -> Ints:
    """(n,) snapshot period of each row.

    With `row`, every moment is a period of its own; with `order`, every row, by its position in the log:
    rows of one moment then see those before them, as in the ordered target statistics of CatBoost
    (Prokhorenkova et al., NeurIPS 2018, section 3.2), which is what coarse times need.
    """
    if snapshot == "order":
        return positions
    if snapshot == "row":
        return time_ms
    span_ms = int(snapshot[:-1]) * _PERIOD_HOURS[snapshot[-1]] * HOUR_MS
    return np.asarray((time_ms + round(offset_h * HOUR_MS)) // span_ms)


def pair_codes(first: Ints, second: Ints) -> Ints:
    """(n,) one code per pair; -1 where the first key is missing or the second is missing or unknown."""
    joined = (first.astype(np.int64) << _SECOND_BITS) | second.astype(np.int64)
    return np.where((first >= 0) & (second >= FIRST_ID), joined, -1)


def measures(counts: Ints, rates: Floats, smoothing: float, prior: Floats | None = None) -> Floats:
    """Numbers of a key from its counts.

    Args:
        counts: (n, 1 + T) rows, then clicks of each target.
        rates: (T,) rate of each target over train.
        smoothing: a of the formulas, in rows.
        prior: (n, T) rates to shrink to; default `rates`.

    Returns:
        (n, 1 + T) float64: log(1 + n), then one log-odds difference per target; all 0 where n = 0.
    """
    seen = counts[:, :1].astype(np.float64)
    base = clipped(rates if prior is None else prior)
    rate = clipped((counts[:, 1:] + smoothing * base) / (seen + smoothing))
    lift = np.where(seen > 0, logit(rate) - logit(base), 0.0)
    return np.concatenate([np.log1p(seen), lift], axis=1)


def clipped(rates: Floats) -> Floats:
    """Rates kept off 0 and 1, so that their log-odds are finite."""
    return np.clip(rates, RATE_FLOOR, 1 - RATE_FLOOR)


def logit(rates: Floats) -> Floats:
    """Log-odds."""
    return np.log(rates) - np.log1p(-rates)


@dataclass(frozen=True)
class KeyStatistic:
    """One key with its counts; answers for rows and for entities.

    Attributes:
        spec: As described.
        holder: Feature of the first key; second: name of the second key, None for a single key.
        holder_codes: (n,) int64 code of each entity slot, -1 for missing.
        counts: Per code, or per pair code.
        parent: Counts of the holder alone, where pair rates shrink to it.
        rates: (T,) rate of each target over train; targets: their names.
        scales: (1 + T,) root mean square of each measure over train rows; 1 where it is 0.
    """

    spec: KeySpec
    holder: CategoricalFeature | NumericFeature
    second: str | None
    holder_codes: Ints
    counts: AsOfCounts
    parent: AsOfCounts | None
    rates: Floats
    targets: tuple[str, ...]
    smoothing: float
    scales: Floats

    @property
    def name(self) -> str:
        """user_id, or user_id_x_tab."""
        return "_x_".join(self.spec.key)

    @property
    def measure_names(self) -> tuple[str, ...]:
        """Names of the measures, count first."""
        return (f"{self.name}_count", *(f"{self.name}_rate_{target}" for target in self.targets))

    def raw(self, codes: Ints, periods: Ints) -> Floats:
        """(n, 1 + T) unscaled measures as of the start of each period."""
        prior = None
        if self.parent is not None:
            own = self.parent.before(np.where(codes >= 0, codes >> _SECOND_BITS, -1), periods)
            prior = clipped(
                (own[:, 1:] + self.smoothing * clipped(self.rates)) / (own[:, :1] + self.smoothing)
            )
        return measures(self.counts.before(codes, periods), self.rates, self.smoothing, prior)

    def encoders(self) -> tuple[StandardiseEncoder, ...]:
        """One zero-preserving encoder per measure."""
        return tuple(zero_preserving(float(scale)) for scale in self.scales)

    def values(self, codes: Ints, periods: Ints) -> NDArray[np.float32]:
        """(n, 1 + T) encoded measures as of the start of each period."""
        raw = self.raw(codes, periods)
        columns = [standardise(raw[:, m], encoder) for m, encoder in enumerate(self.encoders())]
        return np.stack(columns, axis=1)

    def row_codes(self, slots: Ints, seconds: Ints | None) -> Ints:
        """(n,) codes of rows from their entity slots (-1: unknown) and second-key ids."""
        if len(self.holder_codes):
            first = np.where(slots >= 0, self.holder_codes[slots], -1)
        else:
            first = np.full(len(slots), -1, dtype=np.int64)
        return first if seconds is None else pair_codes(first, seconds)


def train_scales(statistic: KeyStatistic, train_rows: int) -> Floats:
    """(1 + T,) root mean square of each raw measure over all train rows, from the counts alone."""
    counts = statistic.counts
    raw = statistic.raw(counts.entry_codes, counts.entry_periods)
    rms = np.sqrt((counts.own[:, :1] * raw**2).sum(axis=0) / max(train_rows, 1))
    return np.where(rms > 0, rms, 1.0)


def make_single(statistic: KeyStatistic) -> Made:
    """Numeric features of the holder's entity, frozen at the end of train."""
    n = len(statistic.holder_codes)
    values = statistic.values(statistic.holder_codes, np.full(n, END))
    made = Made()
    for m, (name, encoder) in enumerate(zip(statistic.measure_names, statistic.encoders(), strict=True)):
        feature = NumericFeature(
            name=name,
            entity=statistic.holder.entity,
            source="statistic",
            encoder=name,
            description=f"{'log rows' if m == 0 else 'click lift'} of {statistic.name} in the past",
        )
        made.features.append(MadeFeature(feature, no_ints(n), values[:, m : m + 1], encoder))
    return made


def make_pair(statistic: KeyStatistic, schema: FeatureSchema) -> Made:
    """A weighted map of the holder over second keys, and the lookup that reads it."""
    second = str(statistic.second)
    encoder = DOMAIN_ENCODER
    if second != DOMAIN_ENCODER:
        key = schema.feature(second)
        if isinstance(key, CategoricalFeature):
            encoder = key.encoder
    ids, weights = _frozen_map(statistic)
    feature = MultiFeature(
        name=statistic.name,
        entity=statistic.holder.entity,
        source="statistic",
        encoder=encoder,
        max_len=statistic.spec.top,
        num_weights=weights.shape[2],
        description=f"log rows and click lift of each {second} for this {statistic.spec.key[0]}",
    )
    lookup = LookupPair(name=f"{statistic.name}.lookup", holder=statistic.name, key=second)
    return Made([multi_block(feature, ids, weights)], [lookup])


def _frozen_map(statistic: KeyStatistic) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """(n, top) ids and (n, top, 1 + T) weights per slot, most seen second keys first."""
    counts, top = statistic.counts, statistic.spec.top
    firsts, seconds = counts.codes >> _SECOND_BITS, counts.codes & ((1 << _SECOND_BITS) - 1)
    order = np.lexsort((seconds, -counts.totals()[:, 0], firsts))
    ordered = firsts[order]
    starts = np.searchsorted(ordered, ordered)
    rank = np.arange(len(order)) - starts
    kept = rank < top
    chosen, place = order[kept], rank[kept]
    holders, row = np.unique(ordered[kept], return_inverse=True)
    ids = np.zeros((len(holders) + 1, top), dtype=np.int32)
    weights = np.zeros((len(holders) + 1, top, counts.own.shape[1]), dtype=np.float32)
    ids[row, place] = seconds[chosen]
    weights[row, place] = statistic.values(counts.codes[chosen], np.full(len(chosen), END))
    index = np.searchsorted(holders, statistic.holder_codes)
    found = index < len(holders)
    found[found] = holders[index[found]] == statistic.holder_codes[found]
    index = np.where(found, index, len(holders))
    return ids[index], weights[index]


def kept_share(statistic: KeyStatistic) -> float:
    """Share of train rows whose second key is among the `top` that the holder's map keeps."""
    totals = statistic.counts.totals()[:, 0]
    firsts = statistic.counts.codes >> _SECOND_BITS
    order = np.lexsort((-totals, firsts))
    rank = np.arange(len(order)) - np.searchsorted(firsts[order], firsts[order])
    return float(totals[order][rank < statistic.spec.top].sum() / max(1, totals.sum()))


def make_statistics(statistics: list[KeyStatistic], schema: FeatureSchema) -> Made:
    """Features of all keys, users first; single keys before pairs as described."""
    made = Made()
    for statistic in statistics:
        made.extend(make_single(statistic) if statistic.second is None else make_pair(statistic, schema))
    return made


def smoothing_of(spec: StatisticsSpec, key: KeySpec) -> float:
    """Smoothing of a key, in rows."""
    return key.smoothing or spec.smoothing


def numeric_columns(statistics: list[KeyStatistic], entity: Entity) -> list[str]:
    """Features of an entity whose train values are taken as of each row, in column order."""
    return [
        name
        for statistic in statistics
        if statistic.second is None and statistic.holder.entity is entity
        for name in statistic.measure_names
    ]
