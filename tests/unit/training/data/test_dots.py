"""Vectors of users and items that a data set brings along: uncentred, and multiplied row by row."""

from __future__ import annotations

import numpy as np
import pytest

from service.contract.schema import DotPair, Entity
from training.data.dataset import RowReader
from training.data.errors import DescriptionError
from training.data.prepare import prepare
from training.data.source import open_data

ENCODER = {"type": "standardise", "centre": False, "clip": 64.0}


def described(description, **changes):
    """Users and items with vectors of two numbers, and their product."""
    vector = {"kind": "numeric", "width": 2, "encoder": ENCODER}
    description["users"] = {"file": "users.parquet", "key": "user_id"}
    description["items"] = {"file": "items.parquet", "key": "item_id"}
    description["features"] += [
        {"name": "u", "entity": "user", **vector},
        {"name": "v", "entity": "item", **vector} | changes,
    ]
    description["dots"] = [{"name": "uv", "left": "u", "right": "v"}]
    return description


TABLES = {
    "users": [{"user_id": "u", "u": [3.0, 4.0]}, {"user_id": "v", "u": [0.0, 5.0]}],
    "items": [{"item_id": "i", "v": [1.0, 1.0]}, {"item_id": "j", "v": None}],
}


def test_rows_hold_the_product_of_uncentred_vectors(write, description, rows, tmp_path) -> None:
    """Each side over its root mean square of train rows: 0 stays 0, an item without a vector has 0."""
    data = write(described(description), log=rows, **TABLES)
    found = prepare(data, tmp_path / "prepared")
    pair = found.schema.pairs[0]
    batch = next(iter(RowReader(found, "train").batches(64, seed=0, epoch=0, shuffle=False)))
    # Train rows: u i, u j, v i, u i, v j. Squares of users: 25 in each row, over 2 numbers; of items with a
    # vector: 1 in each number.
    scale = np.sqrt(12.5)
    wanted = [(3 + 4) / scale, 0.0, 5 / scale, (3 + 4) / scale, 0.0]

    assert pair == DotPair(name="uv", left="u", right="v")
    assert found.schema.encoder("u").mean == 0.0  # type: ignore[union-attr]
    np.testing.assert_allclose(np.sort(batch.pairs[:, 0]), np.sort(wanted), rtol=1e-6)
    assert found.layout(Entity.USER).slot("u", "values").size == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "categorical", "width": None, "encoder": None}, None),
        ({"encoder": {"type": "standardise"}}, "'v' is centred, which bends dot products"),
        ({"encoder": {"type": "bucketise"}, "width": 1}, "'v' is no standardised numeric feature"),
        ({"width": 3}, "'u' has width 2, 'v' 3; they must be equal"),
    ],
)
def test_products_that_mean_nothing_are_refused(write, description, rows, changes, message) -> None:
    """Centred or bucketised vectors, and two widths."""
    if message is None:
        description["features"].append(
            {"name": "v", "entity": "item", "kind": "categorical", "column": "item_id"}
        )
        description["dots"] = [{"name": "uv", "left": "v", "right": "v"}]
        message = "'v' is no standardised numeric feature"
    else:
        described(description, **changes)
    with pytest.raises(DescriptionError, match=message):
        open_data(write(description, log=rows, **TABLES))
