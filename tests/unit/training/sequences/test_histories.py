"""Lists of items become histories of items and domains."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
import yaml

from training.data.source import DataSource, parse_description
from training.sequences.build import open_log
from training.sequences.config import EventsConfig
from training.sequences.errors import SequenceError
from training.sequences.histories import read_columns, write_histories

DESCRIPTION = {
    "name": "d",
    "interactions": "log.parquet",
    "users": {"file": "users.parquet", "key": "user", "extra_files": [{"file": "lists.parquet", "key": "u"}]},
    "items": {"file": "items.parquet", "key": "item"},
    "columns": {
        "user": "user",
        "item": "item",
        "domain": {"column": "tag", "prefix": "t_"},
        "label": "label",
        "time": "t",
        "split": "s",
    },
    "features": [
        {"name": "item_id", "entity": "item", "kind": "categorical", "column": "item"},
        {
            "name": "taken",
            "entity": "user",
            "kind": "sequence",
            "max_len": 4,
            "fields": [{"name": "item", "column": "list", "encoder": "item_id"}],
        },
    ],
}


def source(folder: Path, **changes: object) -> DataSource:
    """Three users, of whom one has no list; item 9 has no domain."""
    users = pl.DataFrame({"user": [1, 2, 3, 4]})
    users.write_parquet(folder / "users.parquet")
    lists = pl.DataFrame(
        {"u": [3, 1, 2], "list": [[7, 9, 8, 7, 8], [8], []]}, schema_overrides={"u": pl.Int32}
    )
    lists.write_parquet(folder / "lists.parquet")
    pl.DataFrame({"item": [7, 8, 9], "tag": [0, 5, None]}).write_parquet(folder / "items.parquet")
    text = yaml.safe_dump(json.loads(json.dumps({**DESCRIPTION, **changes}))).encode()
    return DataSource(folder, parse_description(text), text, (folder / "log.parquet",))


def test_lists_keep_their_order_and_get_the_logs_domains(tmp_path: Path) -> None:
    """Users without an event are left to the table; an item without domain is left out and counted."""
    told = write_histories(source(tmp_path), tmp_path / "out", feature="taken")
    table = pl.read_parquet(tmp_path / "out" / "sequence_history.parquet")

    assert (told.num_users, told.num_events, told.num_left_out) == (4, 6, 1)
    assert table.rows() == [
        (1, ["8"], ["t_5"]),
        (3, ["7", "8", "7", "8"], ["t_0", "t_5", "t_0", "t_5"]),
    ]


def test_the_description_names_the_history(tmp_path: Path) -> None:
    """Fields share the listed items' encoder; the table stands beside the others; the file fits `fit`."""
    out = tmp_path / "out"
    write_histories(source(tmp_path), out, feature="taken")
    raw = yaml.safe_load((out / "dataset.yaml").read_text())
    parsed = parse_description((out / "dataset.yaml").read_bytes())
    events = EventsConfig(
        file="sequence_history.parquet",
        as_lists=True,
        user="user",
        item="history_items",
        domain="history_domains",
    )
    log = open_log(events, out)

    assert raw["root"] == str(tmp_path)
    assert raw["users"]["extra_files"][-1] == {"file": str(out / "sequence_history.parquet")}
    assert parsed.feature("history") is not None
    assert raw["features"][-1] == {
        "name": "history",
        "entity": "user",
        "kind": "sequence",
        "max_len": 4,
        "fields": [
            {"name": "item", "column": "history_items", "encoder": "item_id"},
            {"name": "domain", "column": "history_domains"},
        ],
    }
    assert log.domains == ("t_0", "t_5")
    with pytest.raises(SequenceError, match="has a feature 'history' already"):
        write_histories(source(tmp_path, features=raw["features"]), tmp_path / "again", feature="taken")


def test_columns_come_from_the_files_that_have_them(tmp_path: Path) -> None:
    """In the order of the table's rows, empty where a file lacks the key."""
    own = source(tmp_path)
    users = own.description.users
    assert users is not None

    assert read_columns(own, users, ["list"])["list"].to_list() == [[8], [], [7, 9, 8, 7, 8], None]
    with pytest.raises(SequenceError, match="no column 'nowhere'; it has user, u, list"):
        read_columns(own, users, ["nowhere"])


def test_what_has_no_lists_or_domains_is_refused(tmp_path: Path) -> None:
    """No table of items, no such sequence, domains that items do not have."""
    out = tmp_path / "out"
    with pytest.raises(
        SequenceError, match="needs a table of users with lists and one of items with domains"
    ):
        write_histories(source(tmp_path, items=None), out, feature="taken")
    with pytest.raises(SequenceError, match="no sequence feature 'item_id'"):
        write_histories(source(tmp_path), out, feature="item_id")
    elsewhere = DESCRIPTION["columns"] | {"domain": "tab"}  # type: ignore[operator]
    with pytest.raises(SequenceError, match="no column 'tab'; it has item, tag"):
        write_histories(source(tmp_path, columns=elsewhere), out, feature="taken")
