"""A small log in which tags carry the taste of users, raw and pre-trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import yaml

NUM_USERS, NUM_ITEMS, NUM_TAGS, NUM_DOMAINS = 40, 30, 12, 3
HOUR_MS = 3_600_000

DESCRIPTION = {
    "name": "tagged",
    "interactions": "interactions.parquet",
    "items": {"file": "items.parquet", "key": "item_id"},
    "columns": {
        "user": "user_id",
        "item": "item_id",
        "domain": "domain",
        "label": "label",
        "time": {"column": "time_ms", "unit": "ms"},
        "split": "split",
    },
    "features": [
        {"name": "item_id", "entity": "item", "kind": "categorical", "encoder": {"type": "vocabulary"}},
        {"name": "tags", "entity": "item", "kind": "multi", "max_len": 3, "encoder": {"type": "vocabulary"}},
        {"name": "maker", "entity": "item", "kind": "categorical", "encoder": {"type": "vocabulary"}},
    ],
}

CONFIG = """\
name: tagged
rehearsals: 2
graph: {attributes: [tags, maker], max_share: 0.6}
model: {width: 6, num_intents: 3, num_exemplars: 4}
training: {max_steps: 20, batch_size: 64, evaluate_every: 10, lr: 1.0e-2}
"""


def write_raw(folder: Path, *, seed: int = 0) -> Path:
    """Parquet files and `dataset.yaml` of three domains; returns the folder."""
    rng = np.random.default_rng(seed)
    num_items = NUM_DOMAINS * NUM_ITEMS
    tags = np.stack([rng.choice(NUM_TAGS, 3, replace=False) for _ in range(num_items)])
    taste = rng.normal(size=(NUM_USERS, NUM_TAGS))
    pl.DataFrame(
        {
            "item_id": [f"i{v}" for v in range(num_items)],
            "tags": [[f"t{tag}" for tag in own] for own in tags.tolist()],
            "maker": [f"m{v % 7}" for v in range(num_items)],
        }
    ).write_parquet(folder / "items.parquet")
    size = 3000
    user, item = rng.integers(0, NUM_USERS, size), rng.integers(0, num_items, size)
    odds = 2.0 * taste[user[:, None], tags[item]].mean(axis=1) - 0.5
    turn = np.arange(size)
    pl.DataFrame(
        {
            "user_id": [f"u{u}" for u in user.tolist()],
            "item_id": [f"i{v}" for v in item.tolist()],
            "domain": [f"d{v // NUM_ITEMS}" for v in item.tolist()],
            "label": (rng.random(size) < 1 / (1 + np.exp(-odds))).astype(np.int8),
            "time_ms": turn * HOUR_MS,
            "split": np.where(turn < 2000, "train", np.where(turn < 2600, "valid", "test")),
        }
    ).write_parquet(folder / "interactions.parquet")
    (folder / "dataset.yaml").write_text(yaml.safe_dump(DESCRIPTION))
    return folder


def write_items(path: Path, *, known: int, strange: int) -> Path:
    """Items of a new domain: `known` ones that share tags with the log, and some that share nothing."""
    rng = np.random.default_rng(1)
    rows = [
        {"item_id": f"n{v}", "tags": [f"t{tag}" for tag in rng.choice(NUM_TAGS, 2, replace=False)]}
        for v in range(known)
    ]
    rows += [{"item_id": f"s{v}", "tags": [f"new{v}"]} for v in range(strange)]
    pl.DataFrame(rows).write_parquet(path)
    return path


def write_labels(path: Path, *, rows: int, items: int, rate: float = 0.3) -> Path:
    """Labelled impressions of the new domain's items, by users of the log and one stranger in ten."""
    rng = np.random.default_rng(2)
    users = [f"u{u}" for u in rng.integers(0, int(NUM_USERS * 1.1), rows).tolist()]
    pl.DataFrame(
        {
            "user_id": users,
            "item_id": [f"n{v}" for v in rng.integers(0, items, rows).tolist()],
            "label": (rng.random(rows) < rate).astype(np.int8),
            "time_ms": np.arange(rows)[::-1],
        }
    ).write_csv(path)
    return path
