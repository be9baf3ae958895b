"""The train rows of a prepared data set with augmented rows among them, as a data set of their own.

Gives `AugmentedTrain`, which a `RowReader` takes; reads the train split and nothing else, and writes nothing:
copies are made as their sources' row group is read, so memory is that of a row group. Invariants: a copy is
its source in every column but the domain, and the context features that the domain decides; every other
split is refused, so no copy can be evaluated; weights keep each domain's click rate and total weight.

Numbers looked up by domain (the user's click rate in this domain, ...) stay those of the source.

Letters: n train rows, A augmented rows, D domains.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract.schema import Entity, LookupPair
from training.data.augment import AugmentPlan, AugmentRules, plan_augmentation, weight_factors
from training.data.columns import Floats
from training.data.entity_rows import EntityRows
from training.data.errors import AugmentError
from training.data.prepared import PreparedDataset
from training.data.row_files import RowFile, Rows

TRAIN_SPLIT = "train"


@dataclass(frozen=True, eq=False)
class DomainContext:
    """Context columns whose value the domain decides, such as the domain under another name.

    Attributes:
        features: Their names.
        columns: Per block, which of its columns.
        values: Per block, (D, columns) value of each domain; 0 for domains without train rows.
    """

    features: tuple[str, ...]
    columns: Mapping[str, NDArray[np.int64]]
    values: Mapping[str, NDArray[Any]]

    def moved(self, rows: Rows, domains: NDArray[np.int32]) -> Rows:
        """Copies of n rows in the domains (n,)."""
        changed = rows | {"domain": domains}
        for block, columns in self.columns.items():
            if len(columns):
                changed[block] = rows[block].copy()
                changed[block][:, columns] = self.values[block][domains]
        return changed


@dataclass
class _Ranges:
    """Least and largest value of each context column in each domain."""

    least: NDArray[Any]
    most: NDArray[Any]

    @classmethod
    def of(cls, num_domains: int, width: int, dtype: Any) -> _Ranges:
        info: Any = np.iinfo(dtype) if np.issubdtype(dtype, np.integer) else np.finfo(dtype)
        shape = (num_domains, width)
        return cls(np.full(shape, info.max, dtype), np.full(shape, info.min, dtype))

    def add(self, domain: NDArray[np.int32], values: NDArray[Any]) -> None:
        """Take in (m,) domains, none unknown, and (m, width) values."""
        np.minimum.at(self.least, domain, values)
        np.maximum.at(self.most, domain, values)

    def decided(self) -> NDArray[np.bool_]:
        """(width,) which columns have one value in every domain."""
        return np.asarray((self.least >= self.most).all(axis=0))

    def varies(self) -> NDArray[np.bool_]:
        """(width,) which columns differ between domains that have rows."""
        found = self.least[(self.least <= self.most).all(axis=1)]
        return np.asarray((found != found[:1]).any(axis=0))


@dataclass(frozen=True, eq=False)
class _TrainColumns:
    """What the plan needs of all train rows."""

    domain: NDArray[np.int32]
    item: NDArray[np.int64]
    label: NDArray[np.float32]
    weight: NDArray[np.float32]
    context: DomainContext


_BLOCKS = ("context_ints", "context_floats")


def _read_columns(prepared: PreparedDataset) -> _TrainColumns:
    """One pass over the train rows."""
    file = prepared.row_file(TRAIN_SPLIT)
    D = prepared.schema.num_domains
    layout = prepared.layout(Entity.CONTEXT)
    widths = dict(zip(_BLOCKS, (layout.int_width, layout.float_width), strict=True))
    ranges = {
        name: _Ranges.of(D, width, np.int32 if name == "context_ints" else np.float32)
        for name, width in widths.items()
    }
    parts: list[Rows] = []
    for group in range(len(file.group_rows)):
        rows = file.read_group(group)
        known = rows["domain"] < D
        for name, found in ranges.items():
            found.add(rows["domain"][known], rows[name][known])
        parts.append({name: rows[name] for name in ("domain", "item_slot", "label", "weight")})
    file.close()
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
    if not len(whole.get("domain", ())):
        raise AugmentError(f"{prepared.path}: no train rows, so there is nothing to copy")
    return _TrainColumns(
        domain=whole["domain"],
        item=whole["item_slot"].astype(np.int64),
        label=whole["label"],
        weight=whole["weight"],
        context=_domain_context(prepared, ranges),
    )


def _domain_context(prepared: PreparedDataset, ranges: Mapping[str, _Ranges]) -> DomainContext:
    """Features all of whose columns the domain decides, and some of which it changes."""
    decided = {name: found.decided() for name, found in ranges.items()}
    varies = {name: found.varies() for name, found in ranges.items()}
    layout, features = prepared.layout(Entity.CONTEXT), []
    columns: dict[str, list[int]] = {name: [] for name in _BLOCKS}
    for feature in prepared.schema.of_entity(Entity.CONTEXT):
        places = [
            (f"context_{slot.block}s", np.arange(slot.columns.start, slot.columns.stop))
            for slot in layout.of_feature(feature.name)
        ]
        if all(decided[b][c].all() for b, c in places) and any(varies[b][c].any() for b, c in places):
            features.append(feature.name)
            for block, own in places:
                columns[block] += own.tolist()
    chosen = {name: np.array(own, dtype=np.int64) for name, own in columns.items()}
    values = {
        name: np.where(found.least <= found.most, found.least, 0)[:, chosen[name]]
        for name, found in ranges.items()
    }
    return DomainContext(tuple(features), chosen, values)


@dataclass(frozen=True)
class AugmentedTrain(PreparedDataset):
    """Train rows of a prepared data set with copies among them; it has no other split.

    Attributes:
        base: The data set itself.
        plan: Which rows are copied where.
        context: What changes in the context of a copy.
        factors: (D,) factor on the weight of clicks.
        real_rows: (D,) int64 train rows of each domain; real_clicks: (D,) int64 those with label 1.
    """

    base: PreparedDataset
    plan: AugmentPlan = field(compare=False)
    context: DomainContext = field(compare=False)
    factors: Floats = field(compare=False)
    real_rows: NDArray[np.int64] = field(compare=False)
    real_clicks: NDArray[np.int64] = field(compare=False)

    @property
    def rows(self) -> dict[str, int]:
        """Real and augmented rows."""
        return {TRAIN_SPLIT: self.base.rows[TRAIN_SPLIT] + len(self.plan.sources)}

    @cached_property
    def augmented_rows(self) -> NDArray[np.int64]:
        """(D,) copies of each domain."""
        return np.bincount(self.plan.domains, minlength=self.schema.num_domains).astype(np.int64)

    @property
    def domain_rows(self) -> dict[str, dict[str, int]]:
        """Real and augmented rows of each domain that has any."""
        both = self.real_rows + self.augmented_rows
        named = zip(self.schema.domains, both.tolist(), strict=True)
        return {TRAIN_SPLIT: {name: rows for name, rows in named if rows}}

    @property
    def entities(self) -> dict[Entity, EntityRows]:
        """Those of the base, which holds them once."""
        return self.base.entities

    def row_file(self, split: str) -> AugmentedFile:
        """The train rows.

        Raises:
            AugmentError: Any other split.
        """
        if split != TRAIN_SPLIT:
            raise AugmentError(
                f"split {split!r} of augmented rows; allowed: '{TRAIN_SPLIT}', since copied clicks never "
                "happened in their domain and must not be evaluated"
            )
        return AugmentedFile(self)

    def summary(self) -> dict[str, Any]:
        """What was copied where, for reports."""
        plan, names = self.plan, self.schema.domains
        real, clicks, copies = self.real_rows, self.real_clicks, self.augmented_rows
        keys = {*self.context.features, "domain"}
        return {
            "rows": int(real.sum()),
            "augmented_rows": len(plan.sources),
            "distinct_sources": len(np.unique(plan.sources)),
            "pool_rows": plan.pool_rows,
            "cold_items": plan.cold_items,
            "small_domains": [names[d] for d in plan.small],
            "large_domains": [names[d] for d in plan.large],
            "note": plan.note,
            "features_changed": list(self.context.features),
            "lookups_kept": [
                p.name for p in self.schema.pairs if isinstance(p, LookupPair) and p.key in keys
            ],
            "domains": {
                names[d]: {
                    "rows": int(real[d]),
                    "augmented_rows": int(copies[d]),
                    "click_rate": float(clicks[d] / real[d]),
                    "click_rate_unweighted": float((clicks[d] + copies[d]) / (real[d] + copies[d])),
                    "weight_of_clicks": float(self.factors[d]),
                }
                for d in plan.small
            },
        }


def augment_train(prepared: PreparedDataset, *, rules: AugmentRules, seed: int) -> AugmentedTrain:
    """Plan copies over the train rows of a data set, in one pass over them.

    Raises:
        AugmentError: No train rows, or small domains but no row to copy.
    """
    D, found = prepared.schema.num_domains, _read_columns(prepared)
    plan = plan_augmentation(
        domain=found.domain, item=found.item, label=found.label, num_domains=D, rules=rules, seed=seed
    )
    clicked = found.domain[found.label > 0]
    return AugmentedTrain(
        path=prepared.path,
        schema=prepared.schema,
        info=prepared.info,
        base=prepared,
        plan=plan,
        context=found.context,
        factors=weight_factors(found.domain, found.label, found.weight, plan, D),
        real_rows=np.bincount(found.domain, minlength=D)[:D].astype(np.int64),
        real_clicks=np.bincount(clicked, minlength=D)[:D].astype(np.int64),
    )


class AugmentedFile(RowFile):
    """Each row group of the train rows, followed by the copies of some of its rows."""

    def __init__(self, data: AugmentedTrain) -> None:
        self._inner = data.base.row_file(TRAIN_SPLIT)
        self._data = data
        starts = np.concatenate([[0], np.cumsum(self._inner.group_rows, dtype=np.int64)])
        order = np.argsort(data.plan.sources, kind="stable")
        sources = data.plan.sources[order]
        self._domains = data.plan.domains[order]
        self._cuts = np.searchsorted(sources, starts)
        self._local = sources - starts[np.searchsorted(starts, sources, side="right") - 1]
        copies = np.diff(self._cuts)
        self.group_rows = tuple((np.array(self._inner.group_rows, np.int64) + copies).tolist())

    def read_group(self, index: int) -> Rows:
        """All columns of real rows and copies."""
        real, copies = self.read_parts(index)
        rows = {name: np.concatenate([real[name], copies[name]]) for name in real}
        factor = np.append(self._data.factors, 1.0)[rows["domain"]]
        rows["weight"] = np.where(rows["label"] > 0, rows["weight"] * factor, rows["weight"]).astype(
            np.float32
        )
        return rows

    def read_parts(self, index: int) -> tuple[Rows, Rows]:
        """Real rows, and copies of some of them with the weight of their source."""
        real = self._inner.read_group(index)
        own = slice(self._cuts[index], self._cuts[index + 1])
        taken = {name: column[self._local[own]] for name, column in real.items()}
        return real, self._data.context.moved(taken, self._domains[own])

    def groups(self) -> Iterator[tuple[Rows, Rows]]:
        """`read_parts` of every row group in order."""
        return (self.read_parts(index) for index in range(len(self.group_rows)))

    def close(self) -> None:
        """Close the file."""
        self._inner.close()
