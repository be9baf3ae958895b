"""Files of an onboarding: the items of a new domain, and its labelled impressions.

Invariant: what is read is checked whole; a file that cannot be used is refused with its place and value.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from service.contract.values import canonical
from training.hier.entities import NameLists, named_values
from training.hier.errors import OnboardError
from training.hier.representation import Representation

ITEM_KEY, USER_KEY, LABEL, TIME = "item_id", "user_id", "label", "time_ms"
NAMES_COLUMN = "entities"
"""Column of an items file whose values are whole names of entities."""


@dataclass(frozen=True, eq=False)
class LabelledRows:
    """n labelled impressions in time order: `users` (n,) str, `items` (n,) str, `labels` (n,) float32."""

    users: list[str]
    items: list[str]
    labels: NDArray[np.float32]


def read_items(path: Path, representation: Representation) -> tuple[list[str], NameLists]:
    """Ids of a file's items, and the names of their entities.

    Args:
        path: parquet, csv or jsonl with `item_id`, a column for each attribute, and perhaps `entities`, whole
            names. Values of csv files may list several with | between.
        representation: Knows how numbers become bands.

    Raises:
        OnboardError: No such file, no `item_id`, no items, an id twice, or a value that cannot be used.
    """
    frame = _read_table(path, (ITEM_KEY,))
    ids = [canonical(value) for value in frame[ITEM_KEY].to_list()]
    if not ids:
        raise OnboardError(f"{path}: lists no items")
    if len(set(ids)) < len(ids):
        twice = next(identity for identity in ids if ids.count(identity) > 1)
        raise OnboardError(f"{path}: lists item '{twice}' twice")
    names: NameLists = [[] for _ in ids]
    for column in frame.columns:
        if column == ITEM_KEY:
            continue
        for own, value in zip(names, frame[column].to_list(), strict=True):
            parts = value.split("|") if isinstance(value, str) and path.suffix == ".csv" else value
            try:
                found = named_values(column, parts, representation.encoders)
            except (TypeError, ValueError):
                raise OnboardError(
                    f"{path}: column '{column}' holds {value!r}, which is no attribute"
                ) from None
            own += [name.removeprefix(f"{NAMES_COLUMN}:") for name in found]
    return ids, names


def read_labels(path: Path) -> LabelledRows:
    """Rows of `user_id`, `item_id` and `label`, sorted by `time_ms` where there is one.

    Raises:
        OnboardError: No such file, a column is missing, or a label is not 0 or 1.
    """
    frame = _read_table(path, (USER_KEY, ITEM_KEY, LABEL))
    if TIME in frame.columns:
        frame = frame.with_columns(pl.col(TIME).cast(pl.Int64)).sort(TIME, maintain_order=True)
    labels = frame[LABEL].cast(pl.Float32).to_numpy()
    if odd := sorted(set(labels.tolist()) - {0.0, 1.0}):
        raise OnboardError(f"{path}: label {odd[0]:g} is neither 0 nor 1")
    users, items = ([canonical(value) for value in frame[key].to_list()] for key in (USER_KEY, ITEM_KEY))
    return LabelledRows(users, items, labels)


def _read_table(path: Path, wanted: tuple[str, ...]) -> pl.DataFrame:
    if not path.is_file():
        raise OnboardError(f"{path}: no such file")
    if path.suffix == ".parquet":
        frame = pl.read_parquet(path)
    elif path.suffix == ".csv":
        frame = pl.read_csv(path, infer_schema=False)
    elif path.suffix in (".jsonl", ".ndjson"):
        frame = pl.read_ndjson(path)
    else:
        raise OnboardError(f"{path}: a file of type '{path.suffix}'; allowed are .parquet, .csv and .jsonl")
    if missing := [name for name in wanted if name not in frame.columns]:
        raise OnboardError(f"{path}: lacks the columns {missing}; it has {frame.columns}")
    return frame
