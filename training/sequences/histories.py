"""Histories that sequence models read, from lists of items alone.

Some data sets keep what a user took before the log as a list of items without their domains. Where a domain
is an attribute of items, their table tells it. Writes a folder:

    sequence_history.parquet    the user's key, `history_items` and `history_domains`, the oldest event first
    dataset.yaml                the data set's description and a sequence, `history.item.domain`

`ctr-train sequence fit` reads the first, all other commands the second. Invariants: lists keep their order;
domains have the names that the log gives them; an item of no known domain is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from training.data.source import DESCRIPTION_FILE, DataSource
from training.data.table import EntityFile, SequenceSpec
from training.engine.files import write_atomically, write_text
from training.sequences.errors import SequenceError

HISTORY_FILE = "sequence_history.parquet"
HISTORY = "history"
ITEMS, DOMAINS = "history_items", "history_domains"


@dataclass(frozen=True)
class WrittenHistories:
    """What was written.

    Attributes:
        num_users: Users of the table.
        num_events: Events of all lists.
        num_left_out: Events of items without a domain.
    """

    num_users: int
    num_events: int
    num_left_out: int


def write_histories(source: DataSource, out: Path, *, feature: str) -> WrittenHistories:
    """Write the folder.

    Args:
        source: The data set; its domains are an attribute of items.
        out: Folder to fill.
        feature: A sequence of the user whose first field holds items.

    Raises:
        SequenceError: The data set has no such tables, sequence or column, or a `history` already.
    """
    description = source.description
    if description.users is None or description.items is None:
        raise SequenceError("the data set needs a table of users with lists and one of items with domains")
    if any(own.name == HISTORY for own in description.features):
        raise SequenceError(f"the data set has a feature '{HISTORY}' already")
    spec = description.feature(feature)
    if not isinstance(spec, SequenceSpec):
        raise SequenceError(f"the data set has no sequence feature '{feature}'")
    listed, domain = spec.fields[0].column, description.columns.domain
    users, items = description.users, description.items
    lists = read_columns(source, users, [listed])
    domains = read_columns(source, items, [domain.column])
    name = pl.lit(domain.prefix) + pl.col(domain.column).cast(pl.String)
    domains = domains.select(pl.col(items.key).cast(pl.String).alias(ITEMS), name.alias(DOMAINS))
    place = pl.int_ranges(pl.col(listed).list.len()).alias("place")
    events = lists.filter(pl.col(listed).list.len() > 0).select(users.key, pl.col(listed).alias(ITEMS), place)
    events = events.explode(ITEMS, "place").with_columns(pl.col(ITEMS).cast(pl.String))
    found = events.join(domains.drop_nulls(), on=ITEMS, how="inner").sort(users.key, "place")
    grouped = found.group_by(users.key, maintain_order=True).agg(ITEMS, DOMAINS)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / HISTORY_FILE, grouped.write_parquet)
    text = yaml.safe_dump(_described(source, out, spec), sort_keys=False)
    write_text(out / DESCRIPTION_FILE, text)
    return WrittenHistories(len(lists), len(events), len(events) - len(found))


def read_columns(source: DataSource, file: EntityFile, columns: Sequence[str]) -> pl.DataFrame:
    """An entity's key and columns of its table or of the files beside it, in the rows of the table.

    Raises:
        SequenceError: No file has a column.
    """
    paths = source.entity_paths(file)
    table = pl.read_parquet(paths[0][0], columns=[file.key])
    left = list(dict.fromkeys(columns))
    seen: list[str] = []
    for path, key in paths:
        names = pl.read_parquet_schema(path)
        seen += [name for name in names if name not in seen]
        mine = [name for name in left if name in names]
        left = [name for name in left if name not in names]
        if mine:
            part = pl.read_parquet(path, columns=[key, *mine]).rename({key: file.key})
            part = part.with_columns(pl.col(file.key).cast(table.schema[file.key]))
            table = table.join(part, on=file.key, how="left", maintain_order="left")
    if left:
        raise SequenceError(f"{paths[0][0]}: no column '{left[0]}'; it has {', '.join(seen)}")
    return table


def _described(source: DataSource, out: Path, spec: SequenceSpec) -> dict[str, Any]:
    """The data set's description with the history and its table."""
    raw: dict[str, Any] = yaml.safe_load(source.text)
    raw["root"] = str(source.root.resolve())
    extra = {"file": str((out / HISTORY_FILE).resolve())}
    raw["users"] = raw["users"] | {"extra_files": [*raw["users"].get("extra_files", []), extra]}
    own = next(feature for feature in raw["features"] if feature["name"] == spec.name)
    item = {**own["fields"][0], "name": "item", "column": ITEMS}
    fields = [item, {"name": "domain", "column": DOMAINS}]
    history = {"name": HISTORY, "entity": "user", "kind": "sequence", "max_len": spec.max_len}
    raw["features"] = [*raw["features"], history | {"fields": fields}]
    return raw
