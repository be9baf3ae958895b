"""The raw tables of users and items, held in memory: one row per known entity.

Known are the entities of the tables and those of train rows. An entity's slot is its row; slots never move.
Columns that no table has are taken from the entity's latest train row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from service.contract.schema import Entity
from training.data.columns import Codes, Ints, one_array
from training.data.errors import DescriptionError, TableError
from training.data.source import DataSource
from training.data.table import input_columns

_COMPACT_ROWS = 1_000_000


@dataclass
class EntityTable:
    """Raw rows of one entity.

    Attributes:
        keys: Names that stand for the entity's id: its column in the log, and in its table.
        ids: Canonical id of each slot.
        columns: Raw columns of the tables, one value per slot of the tables.
        from_log: Columns to take from train rows.
        train_rows: (n,) train rows of each slot.
    """

    entity: Entity
    keys: tuple[str, ...]
    ids: Codes = field(default_factory=Codes)
    columns: dict[str, Any] = field(default_factory=dict)
    from_log: tuple[str, ...] = ()
    train_rows: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    _latest: list[tuple[Ints, Ints, pa.Table]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def see(self, keys: pa.Array, place: str, time_ms: Ints, table: pa.Table) -> Ints:
        """Take in train rows: new entities, row counts, latest values. Returns (n,) slots."""
        slots = self.ids.add(keys, place)
        if (slots < 0).any():
            raise TableError(f"{place}: missing id; every row needs one")
        grown = np.zeros(len(self.ids), dtype=np.int64)
        grown[: len(self.train_rows)] = self.train_rows
        self.train_rows = grown + np.bincount(slots, minlength=len(grown))
        if self.from_log:
            keep = _latest_rows(slots, time_ms)
            rows = table.select(list(self.from_log)).take(pa.array(keep))
            self._latest.append((slots[keep], time_ms[keep], rows))
            if sum(len(s) for s, _, _ in self._latest) > 2 * len(self.ids) + _COMPACT_ROWS:
                self._compact()
        return slots

    def _compact(self) -> None:
        slots = np.concatenate([s for s, _, _ in self._latest])
        times = np.concatenate([t for _, t, _ in self._latest])
        table = pa.concat_tables([rows for _, _, rows in self._latest])
        keep = _latest_rows(slots, times)
        self._latest = [(slots[keep], times[keep], table.take(pa.array(keep)).combine_chunks())]

    def finish(self) -> None:
        """Extend every column to all slots; call once, after the last `see`."""
        n = len(self.ids)
        grown = np.zeros(n, dtype=np.int64)
        grown[: len(self.train_rows)] = self.train_rows
        self.train_rows = grown
        for name, column in self.columns.items():
            self.columns[name] = one_array(pa.chunked_array([column, pa.nulls(n - len(column), column.type)]))
        if self._latest:
            self._compact()
            slots, _, table = self._latest.pop()
            for name in self.from_log:
                self.columns[name] = _spread(one_array(table.column(name)), slots, n)
        for name in self.keys:
            self.columns[name] = pa.array(self.ids.values, pa.string())


def _latest_rows(slots: Ints, time_ms: Ints) -> Ints:
    """Index of the latest row of each slot; among equal times the last one."""
    order = np.lexsort((np.arange(len(slots)), time_ms, slots))
    last = np.append(slots[order][1:] != slots[order][:-1], True) if len(order) else np.zeros(0, bool)
    return np.asarray(order[last])


def _spread(values: pa.Array, slots: Ints, n: int) -> pa.Array:
    """Values at their slots, null elsewhere."""
    index = np.full(n, -1, dtype=np.int64)
    index[slots] = np.arange(len(slots))
    return values.take(pa.array(index, mask=index < 0))


def load_entities(source: DataSource, entity: Entity, log_columns: frozenset[str]) -> EntityTable:
    """Read the tables of one entity, and find out which columns must come from the log.

    Raises:
        DescriptionError: A key or a feature's column is in no table.
        TableError: A key that is missing or stands twice.
    """
    description = source.description
    file = description.entity_file(entity)
    keys = {str(description.key_column(entity)), *(() if file is None else (file.key,))}
    table = EntityTable(entity, tuple(sorted(keys)))
    wanted = {c for f in description.features if f.entity is entity for c in input_columns(f)} - keys
    for place, (path, key) in enumerate(() if file is None else source.entity_paths(file)):
        names = frozenset(pq.read_schema(path).names)
        if key not in names:
            raise DescriptionError(
                f"{entity}s: {path.name} has no key column '{key}'; it has {sorted(names)}"
            )
        found = sorted((wanted & names) - set(table.columns))
        raw = pq.read_table(path, columns=sorted({*found, key}))
        slots = _slots(table, one_array(raw.column(key)), f"{entity}s: {path.name}", grow=place == 0)
        used = slots >= 0
        rows = np.flatnonzero(used)
        for name in found:
            column = one_array(raw.column(name)).take(pa.array(rows))
            table.columns[name] = _spread(column, slots[used], len(table.ids))
    missing = sorted(wanted - set(table.columns))
    for name in missing:
        if name not in log_columns:
            have = sorted(set(table.columns) | log_columns)
            raise DescriptionError(f"features: no column '{name}' for {entity}; the files have {have}")
    table.from_log = tuple(missing)
    return table


def _slots(table: EntityTable, keys: pa.Array, place: str, *, grow: bool) -> NDArray[np.int64]:
    slots = table.ids.add(keys, place) if grow else table.ids.look_up(keys, place)
    if keys.null_count:
        raise TableError(f"{place}: {keys.null_count} rows without a key")
    known, counts = np.unique(slots[slots >= 0], return_counts=True)
    if (counts > 1).any():
        twice = table.ids.values[int(known[counts > 1][0])]
        raise TableError(f"{place}: the key {twice!r} stands in two rows; one row per entity is needed")
    return slots
