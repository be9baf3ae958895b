"""A small raw data set that tests bend to their needs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

DAY_MS = 86_400_000

DESCRIPTION: dict[str, Any] = {
    "name": "small",
    "interactions": "log.parquet",
    "columns": {
        "user": "user_id",
        "item": "item_id",
        "domain": "domain",
        "label": "label",
        "time": "time_ms",
        "split": "split",
    },
    "features": [
        {"name": "user_id", "entity": "user", "kind": "categorical"},
        {"name": "item_id", "entity": "item", "kind": "categorical"},
        {"name": "tab", "entity": "context", "kind": "categorical"},
    ],
}


def _row(user: str, item: str, day: int, label: int, split: str, tab: str = "a", domain: str = "d0") -> dict:
    return {
        "user_id": user,
        "item_id": item,
        "domain": domain,
        "tab": tab,
        "label": label,
        "time_ms": day * DAY_MS,
        "split": split,
    }


ROWS = [
    # user u on day 0: two rows, one click; on day 1: one row; then what is frozen.
    _row("u", "i", 0, 1, "train", "a"),
    _row("u", "j", 0, 0, "train", "b"),
    _row("v", "i", 0, 0, "train", "a", "d1"),
    _row("u", "i", 1, 1, "train", "a"),
    _row("v", "j", 1, 1, "train", "b"),
    _row("u", "j", 2, 0, "valid", "a"),
    _row("w", "i", 3, 1, "test", "b", "d9"),
]


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """Seven rows over four days: train on days 0 and 1, valid on 2, test on 3 with a new user and domain."""
    return [dict(row) for row in ROWS]


@pytest.fixture
def description() -> dict[str, Any]:
    """The plainest description of those rows."""
    return yaml.safe_load(yaml.safe_dump(DESCRIPTION))


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write tables and a description; returns the folder."""

    def _write(
        description: dict[str, Any], folder: str = "data", **tables: list[dict[str, Any]] | pa.Table
    ) -> Path:
        path = tmp_path / folder
        path.mkdir(exist_ok=True)
        for name, rows in tables.items():
            table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows)
            pq.write_table(table, path / f"{name}.parquet")
        (path / "dataset.yaml").write_text(yaml.safe_dump(description, sort_keys=False))
        return path

    return _write
