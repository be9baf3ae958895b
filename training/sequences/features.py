"""A sequence model's score as a feature of click models: vectors beside a data set's tables.

Writes a folder with `dataset.yaml` and two tables; everything else stays where it is. The description is the
data set's own with three features more, and their product:

    sequence_user    vector of the user after the last event of the stored history
    sequence_item    vector of the item
    sequence_known   1 for an item that has one, else 0
    sequence_score   dot product of both vectors, inside the graph

Invariants: a user's vector reads the stored history alone, which ends before the log begins, and the model
was trained on events before the first impression; both vectors are of one model, since one schema holds both.
An item without vector has no score: its product is 0, and `sequence_known` says so.

Source: SyNCRec (arXiv 2407.11245); its cross view. A domain that its single view serves better has no vector
per user of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import yaml
from numpy.typing import NDArray

from service.contract.schema import FIRST_ID, MISSING_ID
from training.data.log import Log
from training.data.source import DESCRIPTION_FILE, DataSource
from training.data.table import SequenceSpec
from training.engine.files import write_atomically, write_text
from training.models.syncrec_net import EventRows
from training.sequences.clicks import HistoryNames
from training.sequences.errors import SequenceError
from training.sequences.histories import read_columns
from training.sequences.run import SequenceModel

USER_FILE, ITEM_FILE = "sequence_users.parquet", "sequence_items.parquet"
CHUNK = 512


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        num_users: Users with a vector: all.
        num_items: Items with one.
        num_all_items: Items of the data set's table.
    """

    num_users: int
    num_items: int
    num_all_items: int


def write_features(
    model: SequenceModel,
    source: DataSource,
    out: Path,
    *,
    names: HistoryNames,
    trained_until_ms: int | None,
) -> Written:
    """Write the folder.

    Args:
        model: Trained on events before the impressions.
        source: The data set.
        out: Folder to fill.
        names: The user's stored history.
        trained_until_ms: Last event the model learned from, ms since 1970; None where events have no clock.

    Raises:
        SequenceError: The data set has no tables of users and items or no such history, or the model learned
            from events that are not before the first impression.
    """
    description = source.description
    if description.users is None or description.items is None:
        raise SequenceError("the data set needs a table of users and one of items to put vectors beside")
    feature = description.feature(names.history)
    if not isinstance(feature, SequenceSpec):
        raise SequenceError(f"the data set has no sequence feature '{names.history}'")
    columns = {field.name: field.column for field in feature.fields}
    if missing := sorted({names.item_field, names.domain_field} - set(columns)):
        raise SequenceError(f"'{names.history}' has no field '{missing[0]}'; it has {sorted(columns)}")
    _require_earlier(source, trained_until_ms)
    users = read_columns(source, description.users, [*columns.values()])
    vectors = user_vectors(
        model,
        [[] if row is None else [str(value) for value in row] for row in users[columns[names.item_field]]],
        [[] if row is None else [str(value) for value in row] for row in users[columns[names.domain_field]]],
    )
    items = read_columns(source, description.items, [])
    ids = items[description.items.key].cast(pl.String).to_list()
    row_of = {name: FIRST_ID + place for place, name in enumerate(model.items)}
    rows = np.array([row_of.get(name, -1) for name in ids], dtype=np.int64)
    out.mkdir(parents=True, exist_ok=True)
    _write(out / USER_FILE, users.select(description.users.key), "sequence_user", vectors)
    table = model.net.items.weight.detach().numpy()
    item_vectors = [table[row].tolist() if row >= 0 else None for row in rows]
    extra = items.select(description.items.key).with_columns(
        pl.Series("sequence_item", item_vectors, dtype=pl.List(pl.Float32)),
        pl.Series("sequence_known", (rows >= 0).astype(np.int64)),
    )
    write_atomically(out / ITEM_FILE, extra.write_parquet)
    text = yaml.safe_dump(described(source, out, width=table.shape[1]), sort_keys=False)
    write_text(out / DESCRIPTION_FILE, text)
    return Written(len(users), int((rows >= 0).sum()), len(items))


@torch.no_grad()
def user_vectors(
    model: SequenceModel, items: list[list[str]], domains: list[list[str]]
) -> NDArray[np.float32]:
    """(U, r) float32: the cross view after each user's history.

    Args:
        model: The model.
        items: Item ids of each user, the oldest event first.
        domains: Domain names of the same events.
    """
    size = model.config.max_len
    row_of = {name: FIRST_ID + place for place, name in enumerate(model.items)}
    domain_of = {name: place for place, name in enumerate(model.domains)}
    parts = []
    for start in range(0, len(items), CHUNK):
        chunk = range(start, min(start + CHUNK, len(items)))
        rows = np.full((len(chunk), size), MISSING_ID, dtype=np.int64)
        where = np.zeros_like(rows)
        length = np.zeros(len(chunk), dtype=np.int64)
        for place, user in enumerate(chunk):
            newest = list(zip(items[user], domains[user], strict=True))[-size:]
            known = [(row_of[item], domain) for item, domain in newest if item in row_of]
            length[place] = len(known)
            rows[place, : len(known)] = [row for row, _ in known]
            where[place, : len(known)] = [domain_of.get(name, len(domain_of)) for _, name in known]
        events = EventRows(torch.from_numpy(rows), torch.from_numpy(where), torch.from_numpy(length))
        parts.append(model.net.last(events, torch.zeros(len(chunk), dtype=torch.int64)))
    vectors: NDArray[np.float32] = torch.cat(parts).numpy()
    return vectors


def described(source: DataSource, out: Path, *, width: int) -> dict[str, Any]:
    """The data set's description with the features and tables that are written beside it."""
    raw: dict[str, Any] = yaml.safe_load(source.text)
    vector = {"kind": "numeric", "width": width}
    encoder = {"type": "standardise", "centre": False, "clip": 64.0}
    raw["root"] = str(source.root.resolve())
    for part, file in (("users", USER_FILE), ("items", ITEM_FILE)):
        extra = [*raw[part].get("extra_files", []), {"file": str((out / file).resolve())}]
        raw[part] = raw[part] | {"extra_files": extra}
    raw["features"] = [
        *raw["features"],
        {"name": "sequence_user", "entity": "user", **vector, "encoder": dict(encoder)},
        {"name": "sequence_item", "entity": "item", **vector, "encoder": dict(encoder)},
        {"name": "sequence_known", "entity": "item", "kind": "numeric", "encoder": {"type": "standardise"}},
    ]
    dot = {"name": "sequence_score", "left": "sequence_user", "right": "sequence_item"}
    raw["dots"] = [*raw.get("dots", []), dot]
    return raw


def _require_earlier(source: DataSource, trained_until_ms: int | None) -> None:
    if trained_until_ms is None:
        return
    column = source.description.columns.time.column
    first = min(int(batch.time_ms().min()) for batch in Log(source).batches({column}))
    if trained_until_ms >= first:
        raise SequenceError(
            f"the model learned from events until {trained_until_ms} ms, the first impression is at {first} "
            "ms; fit it on earlier events"
        )


def _write(path: Path, keys: pl.DataFrame, name: str, vectors: NDArray[np.float32]) -> None:
    column = pl.Series(name, vectors.tolist(), dtype=pl.List(pl.Float32))
    table = keys.with_columns(column)
    write_atomically(path, table.write_parquet)
