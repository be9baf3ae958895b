"""Third pass over the log: encode every row and write the row files.

Train rows take statistics as of the start of their own period; rows of valid and test take the entity rows
as they are, which is what the service has. Invariant: no row's numbers depend on its own label or on
anything later.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from service.contract.encode import EncodedBlock
from service.contract.layout import VALUES
from service.contract.schema import Entity, FeatureSchema
from training.data.columns import Codes, Ints
from training.data.entity_rows import EntityRows
from training.data.log import SPLITS, TRAIN, Cuts, Log, LogBatch, Progress
from training.data.pairs import PairReader
from training.data.row_files import Rows, RowWriter
from training.data.row_keys import RowKeyReader, RowKeys
from training.data.scan import row_columns
from training.data.statistics import KeyStatistic, numeric_columns

_PAIR_ROWS = 4096


@dataclass
class RowEncoder:
    """Turns batches of the log into the columns of the row files.

    Attributes:
        schema: With statistics and histories.
        reader: Keys of rows, under the described features.
        entities: Rows of users and items as of the end of train.
        strangers: Users that are not known; `user_code` is the slot of a known user, and `num_users` plus the
            code here of a stranger.
    """

    schema: FeatureSchema
    reader: RowKeyReader
    statistics: list[KeyStatistic]
    entities: dict[Entity, EntityRows]
    num_users: int
    strangers: Codes = field(default_factory=Codes)

    def __post_init__(self) -> None:
        self._pairs = PairReader(self.schema)
        self._stat_columns = {
            entity: [
                rows.layout.slot(name, VALUES).start for name in numeric_columns(self.statistics, entity)
            ]
            for entity, rows in self.entities.items()
        }
        width = {f"{entity}_stats": len(columns) for entity, columns in self._stat_columns.items()}
        context = self.reader.context_layout
        self.widths = width | {
            "context_ints": context.int_width,
            "context_floats": context.float_width,
            "pairs": self._pairs.width,
        }

    def encode(self, batch: LogBatch, *, train: bool) -> Rows:
        """Columns of the row files for all rows of a batch; `train` asks for values as of each row."""
        keys = self.reader.read(batch)
        columns = batch.log.description.columns
        return {
            "user_slot": keys.user.astype(np.int32),
            "item_slot": keys.item.astype(np.int32),
            "domain": keys.domain,
            "user_code": self._user_codes(batch, keys.user).astype(np.int32),
            "label": batch.target("label").astype(np.float32),
            "weight": batch.weight(),
            "true_probability": batch.floats(columns.true_probability, default=np.nan),
            "time_ms": batch.time_ms(),
            "context_ints": keys.context.ints,
            "context_floats": keys.context.floats,
            "user_stats": self._stats(Entity.USER, keys, train=train),
            "item_stats": self._stats(Entity.ITEM, keys, train=train),
            "pairs": self._pair_numbers(keys, train=train),
        }

    def _user_codes(self, batch: LogBatch, slots: Ints) -> Ints:
        unknown = slots < 0
        if not unknown.any():
            return slots
        column = batch.log.description.columns.user
        keys = batch.column(column).filter(pa.array(unknown))
        codes = slots.copy()
        codes[unknown] = self.num_users + self.strangers.add(keys, batch.place(column))
        return codes

    def _stats(self, entity: Entity, keys: RowKeys, *, train: bool) -> NDArray[np.float32]:
        """(n, S) values of the entity's statistic columns."""
        if not train:
            slots, rows = keys.slots(entity), self.entities[entity]
            columns = self._stat_columns[entity]
            if not len(rows):
                return np.zeros((len(slots), len(columns)), dtype=np.float32)
            taken = rows.floats[np.maximum(slots, 0)[:, None], np.array(columns, dtype=np.int64)]
            return np.where((slots >= 0)[:, None], taken, np.float32(0))
        parts = [
            statistic.values(self.reader.codes(statistic, keys), keys.period)
            for statistic in self.statistics
            if statistic.second is None and statistic.holder.entity is entity
        ]
        return np.concatenate([np.zeros((len(keys.user), 0), dtype=np.float32), *parts], axis=1)

    def _pair_numbers(self, keys: RowKeys, *, train: bool) -> NDArray[np.float32]:
        """(n, P) pairs; in train, those of statistics as of each row."""
        out = np.zeros((len(keys.user), self._pairs.width), dtype=np.float32)
        if not self._pairs.width:
            return out
        for start in range(0, len(out), _PAIR_ROWS):
            part = slice(start, start + _PAIR_ROWS)
            blocks = {
                Entity.USER: self.entities[Entity.USER].take(keys.user[part]),
                Entity.ITEM: self.entities[Entity.ITEM].take(keys.item[part]),
                Entity.CONTEXT: EncodedBlock(keys.context.ints[part], keys.context.floats[part]),
            }
            out[part] = self._pairs.values(blocks, keys.domain[part])
        if train:
            for statistic in self.statistics:
                if statistic.second is not None:
                    codes = self.reader.codes(statistic, keys)
                    out[:, self._pairs.columns[f"{statistic.name}.lookup"]] = statistic.values(
                        codes, keys.period
                    )
        return out


def write_rows(
    log: Log, cuts: Cuts | None, encoder: RowEncoder, folder: Path, progress: Progress
) -> dict[str, int]:
    """Write `folder`/{train,valid,test}.parquet; returns the rows of each."""
    c = log.description.columns
    columns = row_columns(log.description) | {n for n in (c.weight, c.true_probability) if n is not None}
    with ExitStack() as stack:
        writers = [
            stack.enter_context(RowWriter(folder / f"{name}.parquet", encoder.widths)) for name in SPLITS
        ]
        for batch in log.batches(columns, cuts=cuts, phase="encode", progress=progress):
            split = batch.split()
            for index, writer in enumerate(writers):
                mask = split == index
                if mask.any():
                    writer.write(encoder.encode(batch.only(mask), train=index == TRAIN))
        return {name: writer.rows for name, writer in zip(SPLITS, writers, strict=True)}
