"""From a batch of the log to the keys and encoded context of its rows.

Shared by the counting and the writing pass, so that both see a row alike. Pure per batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.contract.encode import EncodedBlock
from service.contract.layout import EntityLayout, entity_layout
from service.contract.schema import DOMAIN_ENCODER, MISSING_ID, Entity, FeatureSchema
from training.data.columns import Ints
from training.data.encode_table import TableEncoder
from training.data.entities import EntityTable
from training.data.log import LogBatch
from training.data.pairs import domain_ids
from training.data.scan import ContextColumns
from training.data.statistics import KeyStatistic, period_of
from training.data.table import DatasetDescription


@dataclass(frozen=True)
class RowKeys:
    """n rows.

    Attributes:
        user: (n,) int64 slot, -1 for unknown; item: likewise.
        domain: (n,) int32 index, D for unknown.
        context: (n, ...) encoded context.
        period: (n,) int64 snapshot period.
    """

    user: Ints
    item: Ints
    domain: NDArray[np.int32]
    context: EncodedBlock
    period: Ints

    def slots(self, entity: Entity) -> Ints:
        """(n,) slots of user or item."""
        return self.user if entity is Entity.USER else self.item


class RowKeyReader:
    """Reads keys of batches; build once the described features are encoded."""

    def __init__(
        self,
        description: DatasetDescription,
        schema: FeatureSchema,
        tables: Mapping[Entity, EntityTable],
        blocks: Mapping[Entity, EncodedBlock],
    ) -> None:
        self.description, self.schema = description, schema
        self._tables, self._blocks = tables, blocks
        self._context = TableEncoder(schema, Entity.CONTEXT, description)
        self._layouts = {entity: entity_layout(schema, entity) for entity in Entity}

    @property
    def context_layout(self) -> EntityLayout:
        """Columns of the encoded context."""
        return self._layouts[Entity.CONTEXT]

    def read(self, batch: LogBatch) -> RowKeys:
        """Keys of every row of a batch."""
        columns, statistics = self.description.columns, self.description.statistics
        index, names = batch.domain_names()
        domains = np.array([self.schema.domain_index(name) for name in names], dtype=np.int32)
        offset = statistics.timezone_offset_h
        return RowKeys(
            user=self._slots(Entity.USER, batch, columns.user),
            item=self._slots(Entity.ITEM, batch, columns.item),
            domain=domains[index],
            context=self._context.encode(ContextColumns(batch), len(batch)),
            period=period_of(
                batch.time_ms(),
                batch.positions,
                statistics.snapshot,
                columns.time.timezone_offset_h if offset is None else offset,
            ),
        )

    def _slots(self, entity: Entity, batch: LogBatch, column: str) -> Ints:
        return self._tables[entity].ids.look_up(batch.column(column), batch.place(column))

    def seconds(self, name: str | None, rows: RowKeys) -> Ints | None:
        """(n,) ids of the second key of a pair; None for a single key."""
        if name is None:
            return None
        if name == DOMAIN_ENCODER:
            return domain_ids(self.schema, rows.domain).astype(np.int64)
        entity = self.schema.feature(name).entity
        column = self._layouts[entity].slot(name).start
        if entity is Entity.CONTEXT:
            return rows.context.ints[:, column].astype(np.int64)
        slots, ids = rows.slots(entity), self._blocks[entity].ints[:, column]
        if not len(ids):
            return np.full(len(slots), MISSING_ID, dtype=np.int64)
        return np.where(slots >= 0, ids[slots], MISSING_ID).astype(np.int64)

    def stored_ids(self, name: str) -> Ints:
        """(n,) encoded ids of a single-id feature of user or item, one per slot."""
        entity = self.schema.feature(name).entity
        column = self._layouts[entity].slot(name).start
        return self._blocks[entity].ints[:, column].astype(np.int64)

    def codes(self, statistic: KeyStatistic, rows: RowKeys) -> Ints:
        """(n,) codes of a statistic's key."""
        return statistic.row_codes(rows.slots(statistic.holder.entity), self.seconds(statistic.second, rows))
