"""Say what a raw or a prepared data set holds, for people: plain values that a command line prints.

Reads metadata only, never rows. Pure otherwise.
"""

from __future__ import annotations

from typing import Any

from service.contract.schema import Entity
from training.data.log import Log
from training.data.prepare import check_columns
from training.data.prepared import PreparedDataset
from training.data.source import DataSource


def describe_source(source: DataSource) -> dict[str, Any]:
    """Files, rows, roles and features of a raw data set.

    Raises:
        DescriptionError: The log lacks a column that the description names.
    """
    log, description = Log(source), source.description
    check_columns(log)
    columns = description.columns
    return {
        "name": description.name,
        "root": str(source.root),
        "files": len(source.interactions),
        "rows": log.num_rows,
        "where": description.model_dump(mode="json")["where"],
        "domain": columns.domain.prefix + "<" + columns.domain.column + ">",
        "label": columns.label,
        "split": columns.split or description.split.model_dump(exclude_none=True),
        "outcomes": list(description.outcomes),
        "features": {
            str(entity): [f"{f.name} ({f.kind})" for f in description.features if f.entity is entity]
            for entity in Entity
        },
        "statistics": [" x ".join(key.key) for key in description.statistics.keys],
    }


def describe_prepared(prepared: PreparedDataset) -> dict[str, Any]:
    """Rows, domains, widths and inputs of a prepared folder."""
    schema = prepared.schema
    return {
        "name": schema.name,
        "schema_digest": schema.digest,
        "data_digest": prepared.data_digest,
        "rows": prepared.rows,
        "where": prepared.info.get("where"),
        "base_rate": prepared.base_rate,
        "num_domains": schema.num_domains,
        "entities": prepared.info["entities"],
        "widths": {str(e): [prepared.layout(e).int_width, prepared.layout(e).float_width] for e in Entity},
        "pairs_width": prepared.pairs_width,
        "features": {str(e): [f.name for f in schema.of_entity(e)] for e in Entity},
        "pairs": [pair.name for pair in schema.pairs],
    }
