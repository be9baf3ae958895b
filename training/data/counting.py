"""Second pass over the log: counts per key and period of the train rows, and a sample for the leak check.

Holds one row per distinct (key, period), never the log. Invariant: rows of valid and test are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from service.contract.schema import MISSING_ID, CategoricalFeature, Entity, NumericFeature
from training.data.asof import AsOfCounts, CountBuilder
from training.data.columns import Codes, Ints
from training.data.entities import EntityTable
from training.data.errors import DescriptionError, LeakError
from training.data.fit import raw_column
from training.data.leak import SAMPLE_ROWS, RowSample
from training.data.log import TRAIN, Cuts, Log, LogBatch, Progress
from training.data.row_keys import RowKeyReader
from training.data.scan import Scan, row_columns
from training.data.statistics import KeyStatistic, pair_codes, smoothing_of, train_scales
from training.data.table import CategoricalSpec, DatasetDescription, KeySpec

Key = tuple[str, str | None]


def count_log(
    log: Log,
    cuts: Cuts | None,
    scan: Scan,
    reader: RowKeyReader,
    tables: Mapping[Entity, EntityTable],
    progress: Progress,
) -> tuple[list[KeyStatistic], RowSample]:
    """Count every key of the description over the train rows.

    Raises:
        LeakError: Statistics go by the order of rows, and the log is not in time order.
    """
    description, schema = log.description, reader.schema
    spec = description.statistics
    codes = {key.key[0]: _holder_codes(reader, tables, key.key[0]) for key in spec.keys}
    wanted = {_key(key) for key in spec.keys} | {(key.key[0], None) for key in spec.keys if key.parent}
    builders = {key: CountBuilder(1 + len(spec.targets)) for key in sorted(wanted, key=str)}
    sample = RowSample(stride=max(1, -(-scan.train_rows // SAMPLE_ROWS)))
    last_ms = np.iinfo(np.int64).min
    columns = row_columns(description) | {log.target_column(t) for t in spec.targets}
    for batch in log.batches(columns, cuts=cuts, phase="count", progress=progress):
        train = batch.only(batch.split() == TRAIN)
        if not len(train):
            continue
        if spec.snapshot == "order":
            last_ms = _in_order(train, last_ms)
        rows = reader.read(train)
        sample.add(rows.user, rows.item, rows.context, train.target("label"))
        ones = np.ones(len(train), dtype=np.int64)
        sums = np.stack([ones, *(train.target(t) for t in spec.targets)], axis=1)
        for (holder, second), builder in builders.items():
            first = codes[holder][rows.slots(schema.feature(holder).entity)]
            seconds = reader.seconds(second, rows)
            builder.add(first if seconds is None else pair_codes(first, seconds), rows.period, sums)
    counts = {key: builder.build() for key, builder in builders.items()}
    rates = scan.clicks[1:] / scan.train_rows
    return [_statistic(reader, key, codes, counts, rates, scan.train_rows) for key in spec.keys], sample


def _in_order(batch: LogBatch, last_ms: int) -> int:
    """Time of the last row; refuses a row that is earlier than the one before it, or than `last_ms`."""
    times = np.concatenate([np.array([last_ms]), batch.time_ms()])
    wrong = np.flatnonzero(times[1:] < times[:-1])
    if len(wrong):
        place = int(batch.positions[wrong[0]])
        raise LeakError(
            f"statistics.snapshot: 'order' needs train rows in time order, but row {place} is earlier than "
            "the one before it; sort the log, or use another snapshot"
        )
    return int(times[-1])


def _key(spec: KeySpec) -> Key:
    return spec.key[0], spec.key[1] if len(spec.key) == 2 else None


def _statistic(
    reader: RowKeyReader,
    spec: KeySpec,
    codes: Mapping[str, Ints],
    counts: Mapping[Key, AsOfCounts],
    rates: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    train_rows: int,
) -> KeyStatistic:
    holder = reader.schema.feature(spec.key[0])
    if not isinstance(holder, CategoricalFeature | NumericFeature):
        raise DescriptionError(f"statistics.keys {list(spec.key)}: '{holder.name}' is a {holder.kind}")
    statistics = reader.description.statistics
    unscaled = KeyStatistic(
        spec=spec,
        holder=holder,
        second=_key(spec)[1],
        holder_codes=codes[holder.name],
        counts=counts[_key(spec)],
        parent=counts[(holder.name, None)] if spec.parent else None,
        rates=rates,
        targets=statistics.targets,
        smoothing=smoothing_of(statistics, spec),
        scales=np.ones(1 + len(statistics.targets)),
    )
    return replace(unscaled, scales=train_scales(unscaled, train_rows))


def _holder_codes(reader: RowKeyReader, tables: Mapping[Entity, EntityTable], name: str) -> Ints:
    """(n,) code of a holder per entity slot, -1 where it is missing: raw values, or buckets of a number."""
    if isinstance(reader.schema.feature(name), NumericFeature):
        buckets = reader.stored_ids(name)
        return np.where(buckets == MISSING_ID, -1, buckets)
    return holder_codes(reader.description, tables, name)


def holder_codes(description: DatasetDescription, tables: Mapping[Entity, EntityTable], name: str) -> Ints:
    """(n,) code of a holder's raw value per entity slot, -1 where it is missing."""
    spec = description.feature(name)
    if not isinstance(spec, CategoricalSpec):
        raise DescriptionError(f"statistics.keys: '{name}' is not categorical")
    table = tables[spec.entity]
    column = raw_column(spec)
    if column in table.keys:
        return np.arange(len(table), dtype=np.int64)
    return Codes().add(table.columns[column], f"feature '{name}'")
