"""Fit encoders on train rows: vocabularies, moments and quantiles.

Fed column by column with a weight per row (train rows of an entity, 1 for a row of the log), memory bounded.
Invariant: only values with positive weight count, so nothing of valid or test reaches an encoder.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from service.contract.schema import (
    BucketiseEncoder,
    Encoder,
    HashEncoder,
    StandardiseEncoder,
    VocabularyEncoder,
)
from training.data.columns import Floats, distinct, lists, numbers
from training.data.errors import TableError
from training.data.table import (
    BucketiseSpec,
    CategoricalSpec,
    DatasetDescription,
    FeatureSpec,
    HashSpec,
    MultiSpec,
    NumericSpec,
    SequenceSpec,
    StandardiseSpec,
    TimePart,
    VocabularySpec,
)
from training.data.table_rules import encoder_choices, encoder_owner

_SAMPLE_VALUES = 400_000

GetColumn = Callable[[str], Any]
"""Raw column by name; `@hour` and `@weekday` are parts of the time."""


def raw_column(feature: CategoricalSpec | MultiSpec | NumericSpec) -> str:
    """Name under which a feature's raw column is asked for."""
    if isinstance(feature.column, TimePart):
        return f"@{feature.column.from_time}"
    return feature.column or feature.name


@dataclass
class _ValueCounts:
    counts: dict[str, float] = field(default_factory=dict)

    def add(self, values: list[str], counts: Floats) -> None:
        for value, count in zip(values, counts.tolist(), strict=True):
            if count > 0:
                self.counts[value] = self.counts.get(value, 0.0) + count

    def encoder(self, spec: VocabularySpec) -> VocabularyEncoder:
        kept = [(value, count) for value, count in self.counts.items() if count >= spec.min_count]
        kept.sort(key=lambda pair: (-pair[1], natural_key(pair[0])))
        return VocabularyEncoder(values=tuple(value for value, _ in kept[: spec.max_size]))


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which tag_2 stands before tag_10."""
    parts = re.split(r"([0-9]+)", text)
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts)


@dataclass
class _Moments:
    """Weighted mean and spread, merged by Chan's formula (no cancellation for far-off means)."""

    weight: float = 0.0
    mean: float = 0.0
    spread: float = 0.0

    def add(self, values: Floats, weights: Floats) -> None:
        total = float(weights.sum())
        if total == 0:
            return
        mean = float(np.average(values, weights=weights))
        spread = float((weights * (values - mean) ** 2).sum())
        joint = self.weight + total
        self.spread += spread + (mean - self.mean) ** 2 * self.weight * total / joint
        self.mean += (mean - self.mean) * total / joint
        self.weight = joint

    def encoder(self, spec: StandardiseSpec) -> StandardiseEncoder:
        mean = self.mean if spec.centre else 0.0
        square = self.spread / self.weight + (self.mean - mean) ** 2 if self.weight else 0.0
        std = float(np.sqrt(square))
        usable = std > 1e-12 * max(1.0, abs(mean))
        return StandardiseEncoder(
            mean=mean, std=std if usable else 1.0, transform=spec.transform, clip=spec.clip
        )


@dataclass
class _Sample:
    """Every `stride`-th value; the stride doubles when there are too many."""

    stride: int = 1
    seen: int = 0
    size: int = 0
    parts: list[tuple[Floats, Floats]] = field(default_factory=list)

    def add(self, values: Floats, weights: Floats) -> None:
        kept = slice(-self.seen % self.stride, None, self.stride)
        self.seen += len(values)
        # A copy: a view would keep every value of the batch in memory.
        self.parts.append((values[kept].copy(), weights[kept] * self.stride))
        self.size += len(self.parts[-1][0])
        while self.size > _SAMPLE_VALUES:
            values, weights = (np.concatenate(column) for column in zip(*self.parts, strict=True))
            self.parts = [(values[::2], weights[::2] * 2)]
            self.size = len(self.parts[0][0])
            self.stride *= 2

    def encoder(self, spec: BucketiseSpec) -> BucketiseEncoder:
        if spec.boundaries is not None:
            return BucketiseEncoder(boundaries=spec.boundaries)
        if not self.size:
            return BucketiseEncoder(boundaries=(0.0,))
        values, weights = (np.concatenate(column) for column in zip(*self.parts, strict=True))
        order = np.argsort(values, kind="stable")
        mass = np.cumsum(weights[order])
        shares = np.arange(1, spec.num_quantiles) / spec.num_quantiles
        places = np.minimum(np.searchsorted(mass, shares * mass[-1]), len(order) - 1)
        return BucketiseEncoder(boundaries=tuple(np.unique(values[order][places]).tolist()))


class Fitter:
    """Gathers what the encoders of a description need."""

    def __init__(self, description: DatasetDescription) -> None:
        self.description = description
        choices = [choice for feature in description.features for choice in encoder_choices(feature)]
        self._spec: dict[str, Any] = {place: spec for place, spec in choices if not isinstance(spec, str)}
        self._counts = {p: _ValueCounts() for p, s in self._spec.items() if isinstance(s, VocabularySpec)}
        self._moments = {p: _Moments() for p, s in self._spec.items() if isinstance(s, StandardiseSpec)}
        self._samples = {p: _Sample() for p, s in self._spec.items() if isinstance(s, BucketiseSpec)}

    def add(self, feature: FeatureSpec, get: GetColumn, weights: Floats) -> None:
        """Take in one feature's rows.

        Args:
            feature: One of the description's.
            get: Raw columns with n rows each.
            weights: (n,) float64, how many train rows each row stands for.
        """
        place = f"feature '{feature.name}'"
        choices = dict(encoder_choices(feature))
        match feature:
            case CategoricalSpec():
                self._count(feature.name, choices, place, get(raw_column(feature)), weights)
            case MultiSpec():
                flat = lists(get(raw_column(feature)), place, feature.separator)
                self._count(feature.name, choices, place, flat.flat, weights[flat.rows])
            case SequenceSpec():
                for part in feature.fields:
                    flat = lists(get(part.column), place)
                    name = f"{feature.name}.{part.name}"
                    self._count(name, choices, place, flat.flat, weights[flat.rows])
            case NumericSpec():
                self._measure(feature, get, weights)

    def _count(self, name: str, choices: dict[str, object], place: str, values: Any, weights: Floats) -> None:
        choice = choices[name]
        owner = encoder_owner(self.description, choice, name) if isinstance(choice, str) else name
        if owner in self._counts:
            index, names = distinct(values, place)
            known = index >= 0
            totals = np.bincount(index[known], weights=weights[known], minlength=len(names))
            self._counts[owner].add(names, totals.astype(np.float64))

    def _measure(self, feature: NumericSpec, get: GetColumn, weights: Floats) -> None:
        values = numeric_matrix(feature, get).reshape(-1)
        mass = np.repeat(weights, feature.width)
        keep = ~np.isnan(values) & (mass > 0)
        owner = feature.encoder if isinstance(feature.encoder, str) else feature.name
        spec = self._spec[owner]
        if isinstance(spec, BucketiseSpec):
            self._samples[owner].add(values[keep], mass[keep])
        elif isinstance(spec, StandardiseSpec):
            kept = values[keep]
            moved = np.sign(kept) * np.log1p(np.abs(kept)) if spec.transform == "log1p" else kept
            self._moments[owner].add(moved, mass[keep])

    def encoders(self) -> dict[str, Encoder]:
        """The fitted encoders, named after the feature (or `feature.field`) that defines them."""
        found: dict[str, Encoder] = {}
        for name, spec in self._spec.items():
            match spec:
                case VocabularySpec():
                    found[name] = self._counts[name].encoder(spec)
                case HashSpec():
                    found[name] = HashEncoder(num_buckets=spec.num_buckets, seed=spec.seed)
                case StandardiseSpec():
                    found[name] = self._moments[name].encoder(spec)
                case BucketiseSpec():
                    found[name] = self._samples[name].encoder(spec)
        return found


def numeric_matrix(feature: NumericSpec, get: GetColumn) -> Floats:
    """(n, width) float64 of a numeric feature, NaN for missing; a missing list is a row of NaN.

    Raises:
        TableError: A list of another length than `width`.
    """
    place = f"feature '{feature.name}'"
    column = get(raw_column(feature))
    if feature.width == 1:
        return numbers(column, place).reshape(-1, 1)
    flat = lists(column, place)
    wrong = (flat.lengths != feature.width) & (flat.lengths != 0)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise TableError(f"{place}: row {row} has {flat.lengths[row]} numbers; width is {feature.width}")
    matrix = np.full((len(column), feature.width), np.nan)
    matrix[flat.lengths > 0] = numbers(flat.flat, place).reshape(-1, feature.width)
    return matrix
