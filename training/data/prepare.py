"""From a raw data set to a prepared folder, in bounded memory.

Reads the log three times by record batches (scan, count, encode) and holds only entity tables, vocabularies
and counts per (key, period). Writes, in this order:

- `schema.json`, the feature schema
- `entities/{user,item}/`, encoded rows as of the end of train: the feature snapshot that the service serves
- `rows/{train,valid,test}.parquet`
- `prepared.json`, last: a folder that holds it is complete

Invariant: nothing of valid and test reaches an encoder, a statistic or an entity row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from service.contract.encode import EncodedBlock
from service.contract.files import write_atomic
from service.contract.layout import entity_layout
from service.contract.schema import DotPair, Entity, FeatureSchema
from training.data.base_schema import base_schema
from training.data.counting import count_log
from training.data.encode_table import TableEncoder
from training.data.entities import EntityTable, load_entities
from training.data.entity_rows import EntityRows, write_entities
from training.data.fit import Fitter, natural_key
from training.data.history import make_history
from training.data.leak import MAX_AUC, check_inputs
from training.data.log import SPLITS, TRAIN, Cuts, Log, Progress, silent
from training.data.made import Made
from training.data.pairs import pair_columns
from training.data.prepared import FORMAT, MANIFEST_FILE, SCHEMA_FILE, PreparedDataset
from training.data.row_keys import RowKeyReader
from training.data.scan import Scan, row_columns, scan_log
from training.data.source import DataSource, open_data
from training.data.split import plan_cuts
from training.data.statistics import KeyStatistic, kept_share, make_statistics, numeric_columns
from training.data.table import DatasetDescription
from training.data.write_rows import RowEncoder, write_rows

_SIDES = (Entity.USER, Entity.ITEM)


@dataclass(frozen=True)
class _Encoded:
    """Tables and described features after the first pass."""

    tables: Mapping[Entity, EntityTable]
    schema: FeatureSchema
    blocks: dict[Entity, EncodedBlock]


def prepare(
    data: DataSource | Path | str, out_dir: Path | str, *, progress: Progress | None = None
) -> PreparedDataset:
    """Prepare a raw data set for training.

    Args:
        data: An opened source, a folder with `dataset.yaml`, or a yaml file.
        out_dir: Folder to write; what an earlier run left there is replaced.
        progress: Called with (phase, rows done, rows in all).

    Returns:
        The opened folder.

    Raises:
        DescriptionError: The description contradicts itself or its files.
        TableError: A value that cannot be used.
        LeakError: Splits overlap in time, or an input tells the label.
    """
    source = data if isinstance(data, DataSource) else open_data(data)
    report, out = progress or silent, Path(out_dir)
    description, log = source.description, Log(source)
    check_columns(log)
    out.mkdir(parents=True, exist_ok=True)
    (out / MANIFEST_FILE).unlink(missing_ok=True)

    cuts = plan_cuts(log)
    tables = {entity: load_entities(source, entity, log.column_names) for entity in _SIDES}
    fitter = Fitter(description)
    scan = scan_log(log, cuts, tables[Entity.USER], tables[Entity.ITEM], fitter, report)
    encoded = _encode_entities(description, scan, tables, fitter)
    made = make_history(
        description, encoded.schema, tables[Entity.USER], tables[Entity.ITEM], encoded.blocks[Entity.ITEM]
    )
    made.pairs += [DotPair(name=dot.name, left=dot.left, right=dot.right) for dot in description.dots]
    reader = RowKeyReader(description, encoded.schema, tables, encoded.blocks)
    statistics, sample = count_log(log, cuts, scan, reader, tables, report)
    aucs = check_inputs(encoded.schema, encoded.blocks, sample)
    made.extend(make_statistics(statistics, encoded.schema))

    schema = made.extend_schema(encoded.schema)
    write_atomic(out / SCHEMA_FILE, schema.model_dump_json(indent=1).encode())
    entities = {entity: _joined(schema, entity, encoded.blocks[entity], made) for entity in _SIDES}
    for entity, rows in entities.items():
        write_entities(out / "entities" / str(entity), rows, tables[entity].ids.values)
    encoder = RowEncoder(schema, reader, statistics, entities, len(tables[Entity.USER]))
    rows_written = write_rows(log, cuts, encoder, out / "rows", report)
    info = _info(source, schema, scan, encoder, rows_written) | {
        "leak_check": {
            "splits_in_time_order": scan.spans.check(allow_overlap=True),
            "max_auc_allowed": MAX_AUC,
            "auc_per_feature": {name: round(value, 4) for name, value in aucs.items()},
        },
        "cuts": None if cuts is None else _cuts(cuts),
    }
    write_atomic(out / MANIFEST_FILE, (json.dumps(info, indent=1) + "\n").encode())
    return PreparedDataset.open(out)


def check_columns(log: Log) -> None:
    """Refuse a description whose columns the log lacks, before any pass over it.

    Raises:
        DescriptionError: Names the column.
    """
    description = log.description
    c = description.columns
    optional = {name for name in (c.weight, c.true_probability) if name is not None}
    targets = {log.target_column(target) for target in description.statistics.targets}
    log.require(row_columns(description) | optional | targets | set(description.where))


def _encode_entities(
    description: DatasetDescription, scan: Scan, tables: Mapping[Entity, EntityTable], fitter: Fitter
) -> _Encoded:
    schema = base_schema(description, scan.domains(), fitter.encoders())
    blocks = {
        entity: TableEncoder(schema, entity, description).encode(table.columns.__getitem__, len(table))
        for entity, table in tables.items()
    }
    return _Encoded(tables, schema, blocks)


def _joined(schema: FeatureSchema, entity: Entity, block: EncodedBlock, made: Made) -> EntityRows:
    """Described columns followed by those of the makers, as the layout wants them."""
    own = [feature for feature in made.features if feature.feature.entity is entity]
    return EntityRows(
        entity_layout(schema, entity),
        np.concatenate([block.ints, *(feature.ints for feature in own)], axis=1),
        np.concatenate([block.floats, *(feature.floats for feature in own)], axis=1),
    )


def _cuts(cuts: Cuts) -> dict[str, int]:
    return {"valid_from_ms": cuts.valid_from_ms, "test_from_ms": cuts.test_from_ms}


def _info(
    source: DataSource, schema: FeatureSchema, scan: Scan, encoder: RowEncoder, rows: dict[str, int]
) -> dict[str, Any]:
    """What `prepared.json` says, apart from the leak check."""
    spans, targets = scan.spans, source.description.statistics.targets
    names = sorted(scan.domain_rows, key=natural_key)
    by_split = {
        split: {n: int(scan.domain_rows[n][i]) for n in names if scan.domain_rows[n][i]}
        for i, split in enumerate(SPLITS)
    }
    known = frozenset(schema.domains)
    columns = pair_columns(schema)
    rates = (scan.clicks[1:] / scan.train_rows).tolist()
    return {
        "format": FORMAT,
        "name": schema.name,
        "data_digest": source.digest(),
        "schema_digest": schema.digest,
        "rows": rows,
        "where": {
            "conditions": source.description.model_dump(mode="json")["where"],
            "rows_left_out": Log(source).num_rows - sum(rows.values()),
        },
        "domains": by_split,
        "unknown_domains": {
            split: {n: count for n, count in found.items() if n not in known}
            for split, found in by_split.items()
            if split != SPLITS[TRAIN]
        },
        "times_ms": {
            split: [int(spans.first_ms[i]), int(spans.last_ms[i])] for i, split in enumerate(SPLITS)
        },
        "feature_time_ms": int(spans.last_ms[TRAIN]),
        "base_rate": float(scan.clicks[0] / scan.train_rows),
        "target_rates": dict(zip(targets, rates, strict=True)),
        "entities": {str(entity): len(found) for entity, found in encoder.entities.items()},
        "columns": {
            "widths": encoder.widths,
            "stat_columns": {str(e): numeric_columns(encoder.statistics, e) for e in _SIDES},
            "pairs": {name: [place.start, place.stop] for name, place in columns.items()},
            "maps_of_train_clicks": [s.name for s in encoder.statistics if s.second is not None],
        },
        "statistics": {s.name: _described(s) for s in encoder.statistics},
    }


def _described(statistic: KeyStatistic) -> dict[str, Any]:
    """What is worth knowing of a key: its size, and how much of a pair's mass the map keeps."""
    kept = {} if statistic.second is None else {"rows_kept_by_top": round(kept_share(statistic), 4)}
    return {"keys": len(statistic.counts.codes), "entries": len(statistic.counts.entry_codes), **kept}
