"""First pass over the log: which entities and domains there are, and what encoders need to know.

Reads every row once, in batches. Invariant: entities, vocabularies, moments and rates come from train rows
alone; of valid and test only row counts, times and domain names are noted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from service.contract.schema import Entity
from training.data.columns import Ints
from training.data.entities import EntityTable
from training.data.fit import Fitter, natural_key
from training.data.log import SPLITS, TRAIN, Cuts, Log, LogBatch, Progress, time_part
from training.data.split import Spans
from training.data.table import DatasetDescription, input_columns


@dataclass(frozen=True)
class ContextColumns:
    """Raw columns of the context features of one batch; `@hour` and `@weekday` come from the time."""

    batch: LogBatch

    def __call__(self, name: str) -> Any:
        """The column as one arrow array."""
        if name.startswith("@"):
            offset = self.batch.log.description.columns.time.timezone_offset_h
            return pa.array(time_part(self.batch.time_ms(), name[1:], offset))
        return self.batch.column(name)


def context_inputs(description: DatasetDescription) -> set[str]:
    """Columns of the log that context features read."""
    return {c for f in description.features if f.entity is Entity.CONTEXT for c in input_columns(f)}


def row_columns(description: DatasetDescription) -> set[str]:
    """Columns of the log that every pass over rows needs."""
    c = description.columns
    named = {c.user, c.item, c.domain.column, c.label, c.time.column}
    return named | context_inputs(description) | ({c.split} if c.split else set())


@dataclass
class Scan:
    """What the first pass found.

    Attributes:
        spans: Rows and times of each split.
        domain_rows: Rows per split of each domain name.
        clicks: (T,) train rows with each target at 1.
    """

    clicks: Ints
    spans: Spans = field(default_factory=Spans)
    domain_rows: dict[str, Ints] = field(default_factory=dict)

    @property
    def train_rows(self) -> int:
        """Rows of train."""
        return int(self.spans.rows[TRAIN])

    def domains(self) -> tuple[str, ...]:
        """Domains with train rows, in natural order (tag_2 before tag_10)."""
        return tuple(sorted((n for n, rows in self.domain_rows.items() if rows[TRAIN]), key=natural_key))

    def note_domains(self, index: Ints, names: list[str], split: Ints) -> None:
        """Count the rows of each domain and split."""
        size = len(SPLITS)
        counts = np.bincount(index * size + split, minlength=len(names) * size).reshape(-1, size)
        for name, rows in zip(names, counts, strict=True):
            self.domain_rows[name] = self.domain_rows.get(name, np.zeros(size, dtype=np.int64)) + rows


def scan_log(
    log: Log,
    cuts: Cuts | None,
    users: EntityTable,
    items: EntityTable,
    fitter: Fitter,
    progress: Progress,
) -> Scan:
    """Read the log once; fills `users`, `items` and `fitter` from its train rows.

    Raises:
        TableError: A value that cannot be used, or a split without rows.
        LeakError: Splits overlap in time.
    """
    description = log.description
    targets = description.statistics.targets
    context = [f for f in description.features if f.entity is Entity.CONTEXT]
    wanted = row_columns(description) | {log.target_column(t) for t in targets}
    wanted |= {*users.from_log, *items.from_log}
    scan = Scan(np.zeros(1 + len(targets), dtype=np.int64))
    for batch in log.batches(wanted, cuts=cuts, phase="scan", progress=progress):
        split, time_ms = batch.split(), batch.time_ms()
        scan.spans.add(split, time_ms)
        scan.note_domains(*batch.domain_names(), split.astype(np.int64))
        train = batch.only(split == TRAIN)
        if not len(train):
            continue
        for table, column in ((users, description.columns.user), (items, description.columns.item)):
            table.see(train.column(column), train.place(column), train.time_ms(), train.table)
        for feature in context:
            fitter.add(feature, ContextColumns(train), np.ones(len(train)))
        scan.clicks += np.array([int(train.target(name).sum()) for name in ("label", *targets)])
    scan.spans.check(allow_overlap=description.split.allow_overlap)
    for table in (users, items):
        table.finish()
        for feature in description.features:
            if feature.entity is table.entity:
                fitter.add(feature, table.columns.__getitem__, table.train_rows.astype(np.float64))
    return scan
