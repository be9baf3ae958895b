"""The `dataset.yaml` of joined rows.

Pure text. Ids and context features become inputs; tables of users and items are for the reader to add.
Invariant: no column that was recorded after the exposure, and none that names who scored it, is an input.
"""

from __future__ import annotations

import re
from typing import Any

import polars as pl
import yaml

from training.data.event_files import CONTEXT

_HEAD = """\
# Made by `ctr-train data join`; each row is a candidate of a scored request.
# Add `users:` and `items:` with their tables and features, and `statistics:`, before training.
"""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.:]{0,79}")
TAKEN = ("user_id", "item_id", "domain")


def join_description(name: str, context: dict[str, Any]) -> str:
    """The text.

    Args:
        name: Of the data set; what a name cannot hold becomes `_`.
        context: Polars type by context feature.
    """
    document = {
        "name": _as_name(name),
        "interactions": "rows.parquet",
        "columns": {
            "user": "user",
            "item": "item",
            "domain": "domain",
            "label": "label",
            "time": {"column": "time_ms", "unit": "ms"},
        },
        "split": {"valid_fraction": 0.1, "test_fraction": 0.1},
        "outcomes": ["value", "click_delay_ms"],
        "features": [*_ids(), *(_feature(key, kind) for key, kind in context.items() if _usable(key))],
    }
    return _HEAD + yaml.safe_dump(document, sort_keys=False)


def _ids() -> list[dict[str, Any]]:
    return [
        {"name": "user_id", "entity": "user", "kind": "categorical", "column": "user"},
        {"name": "item_id", "entity": "item", "kind": "categorical", "column": "item"},
    ]


def _feature(key: str, kind: Any) -> dict[str, Any]:
    numeric = kind == pl.Float64
    return {
        "name": key,
        "entity": "context",
        "kind": "numeric" if numeric else "categorical",
        "column": CONTEXT + key,
    }


def _usable(key: str) -> bool:
    return key not in TAKEN and _NAME.fullmatch(key) is not None


def _as_name(text: str) -> str:
    name = re.sub(r"[^A-Za-z0-9_.:]", "_", text)[:70]
    return name if _NAME.fullmatch(name) else f"joined_{name}"
