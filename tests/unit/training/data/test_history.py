"""History features by hand."""

import math

import numpy as np
import pytest

from service.contract.schema import Entity
from training.data.dataset import RowReader
from training.data.prepare import prepare

USERS = [
    {"user_id": "u", "seen": ["i", "j", "i", "gone"], "kept": ["i"], "shown": 9},
    {"user_id": "v", "seen": ["j"], "kept": [], "shown": 2},
    {"user_id": "w", "seen": None, "kept": None, "shown": None},
]
ITEMS = [
    {"item_id": "i", "brand": "x", "price": 1.0},
    {"item_id": "j", "brand": "y", "price": 3.0},
    {"item_id": "k", "brand": "x", "price": 2.0},
]


@pytest.fixture
def prepared(rows, description, write, tmp_path):
    description["users"] = {"file": "users.parquet", "key": "user_id"}
    description["items"] = {"file": "items.parquet", "key": "item_id"}
    for name in ("seen", "kept"):
        field = {"name": "item", "column": name, "encoder": "item_id"}
        description["features"].append(
            {"name": name, "entity": "user", "kind": "sequence", "max_len": 2, "fields": [field]}
        )
    description["features"] += [
        {"name": "brand", "entity": "item", "kind": "categorical"},
        {"name": "price", "entity": "item", "kind": "numeric"},
        {"name": "shown", "entity": "user", "kind": "numeric"},
    ]
    description["history"] = {
        "lists": [
            {
                "feature": "seen",
                "aggregates": [{"of": "brand", "how": "share"}, {"of": "price", "how": "mean"}],
            },
            {"feature": "kept", "length": False, "popularity": False},
        ],
        "propensity": [{"name": "keep", "among": "seen", "chosen": "kept", "smoothing": 2}],
        "ratios": [
            {
                "name": "ratio",
                "among": "seen",
                "chosen": "kept",
                "smoothing": 2,
                "shown": "shown",
                "shown_cap": 4,
            }
        ],
        "rasch": [{"name": "rasch", "among": "seen", "chosen": "kept", "steps": 60}],
        "factors": [
            {"name": "taste", "lists": ["seen", "kept"], "width": 2},
            {
                "name": "like",
                "lists": ["seen"],
                "width": 2,
                "sums": [{"over": "seen"}, {"residuals": "rasch"}],
            },
        ],
    }
    return prepare(write(description, log=rows, users=USERS, items=ITEMS), tmp_path / "out")


def _raw(prepared, entity, name):
    layout = prepared.layout(entity)
    scale = prepared.schema.encoder(name).std
    return prepared.entities[entity].floats[:, layout.slot(name, "values").start] * scale


def test_lengths_and_popularity(prepared):
    assert _raw(prepared, Entity.USER, "seen_length") == pytest.approx(np.log1p([4, 1, 0]), abs=1e-6)
    assert _raw(prepared, Entity.ITEM, "seen_popularity") == pytest.approx(np.log1p([2, 2, 0]), abs=1e-6)


def test_mean_of_a_number_over_known_items(prepared):
    price = prepared.layout(Entity.ITEM).slot("price", "values").start
    i, j, _ = prepared.entities[Entity.ITEM].floats[:, price].tolist()

    assert _raw(prepared, Entity.USER, "seen_mean_price") == pytest.approx([(2 * i + j) / 3, j, 0], abs=1e-6)


def test_shares_are_looked_up_by_the_candidates_category(prepared):
    ids = prepared.entities[Entity.USER].ints[
        :, prepared.layout(Entity.USER).slot("seen_share_brand").columns
    ]
    x, y = (2 + prepared.schema.encoder("brand").values.index(b) for b in "xy")
    batch = next(RowReader(prepared, "train").batches(9))
    start, stop = prepared.info["columns"]["pairs"]["seen_share_brand.lookup"]
    shares = batch.pairs[:, start:stop].ravel()

    assert ids[:, :3].tolist() == [[x, y, 0], [y, 0, 0], [0, 0, 0]]
    # Rows: u with i (2 of 3 events), u with j (1 of 3), v with i (none), u with i, v with j (all).
    assert shares / shares[4] == pytest.approx([2 / 3, 1 / 3, 0, 2 / 3, 1], rel=1e-6)


def test_propensity_by_hand(prepared):
    # Distinct pairs seen: (u,i) kept, (u,j), (v,j): rate 1/3.
    def logit(p):
        return math.log(p / (1 - p))

    item_i, item_j = (1 + 2 / 3) / 3, (0 + 2 / 3) / 4
    user_u, user_v = (1 - item_i - item_j) / (2 + 2), -item_j / (1 + 2)

    found = _raw(prepared, Entity.ITEM, "keep_item")
    assert found == pytest.approx([logit(item_i) - logit(1 / 3), logit(item_j) - logit(1 / 3), 0], abs=1e-6)
    assert _raw(prepared, Entity.USER, "keep_user") == pytest.approx([user_u, user_v, 0], abs=1e-6)


def test_factor_products_rebuild_the_matrix_up_to_scale(prepared):
    layouts = {e: prepared.layout(e) for e in (Entity.USER, Entity.ITEM)}
    left, right = (
        prepared.entities[e].floats[:, layouts[e].slot(f"taste_{e}", "values").columns]
        for e in (Entity.USER, Entity.ITEM)
    )
    # Marks: (u,i) twice, (u,j), (v,j); each divided by the roots of its row's and column's number of marks.
    expected = np.array([[2 / math.sqrt(6), 1 / math.sqrt(6), 0], [0, 1 / math.sqrt(2), 0], [0, 0, 0]])

    product = left @ right.T

    assert product / product[0, 0] == pytest.approx(expected / expected[0, 0], abs=1e-5)
    start, _ = prepared.info["columns"]["pairs"]["taste.dot"]
    assert next(RowReader(prepared, "train").batches(9)).pairs[0, start] == pytest.approx(
        product[0, 0], rel=1e-5
    )


def test_items_and_users_may_shrink_differently(prepared, description, write, rows, tmp_path):
    description["history"]["propensity"][0]["item_smoothing"] = 6
    other = prepare(write(description, "again", log=rows, users=USERS, items=ITEMS), tmp_path / "other")

    item_i, item_j = (1 + 6 / 3) / 7, (0 + 6 / 3) / 8
    user_u, user_v = (1 - item_i - item_j) / (2 + 2), -item_j / (1 + 2)
    assert _raw(other, Entity.USER, "keep_user") == pytest.approx([user_u, user_v, 0], abs=1e-6)


def test_ratios_by_hand(prepared):
    # Events: i twice seen and once kept, j twice seen; a quarter of the seen are kept.
    item = [math.log((1 + 2) / (2 / 4 + 2)), math.log(2 / (2 / 4 + 2)), 0]
    assert _raw(prepared, Entity.ITEM, "ratio_item") == pytest.approx(item, abs=1e-6)
    # u kept 1 of 9 rows, which count as 4; v 0 of 2; of w nothing is recorded.
    user = [math.log(2 / 6), math.log(1 / 4), 0]
    assert _raw(prepared, Entity.USER, "ratio_user") == pytest.approx(user, abs=1e-6)


def test_rasch_numbers_satisfy_their_optimum(prepared):
    a, b = _raw(prepared, Entity.USER, "rasch_user"), _raw(prepared, Entity.ITEM, "rasch_item")

    def rest(user, item, chosen):
        return chosen - 1 / (1 + math.exp(b[item] - a[user] - math.log((1 / 3) / (2 / 3))))

    ui, uj, vj = rest(0, 0, 1), rest(0, 1, 0), rest(1, 1, 0)
    assert a == pytest.approx([ui + uj, vj, 0], abs=1e-5)
    assert b == pytest.approx([-ui / 2, -(uj + vj) / 2, 0], abs=1e-5)


def test_sums_of_unit_item_vectors_and_their_dots(prepared):
    def vectors(name, entity):
        return prepared.entities[entity].floats[:, prepared.layout(entity).slot(name, "values").columns]

    item, user = vectors("like_item", Entity.ITEM), vectors("like_seen", Entity.USER)
    unit = item / np.linalg.norm(item[0])
    assert np.linalg.norm(unit, axis=1) == pytest.approx([1, 1, 0], abs=1e-5)
    expected = np.stack([(unit[0] + unit[1]) / math.sqrt(2), unit[1], np.zeros(2)])
    scale = prepared.schema.encoder("like_seen").std
    assert user * scale == pytest.approx(expected, abs=1e-5)
    start, _ = prepared.info["columns"]["pairs"]["like_rasch.dot"]
    dots = next(RowReader(prepared, "train").batches(9)).pairs[:, start]
    assert dots[0] == pytest.approx(vectors("like_rasch", Entity.USER)[0] @ item[0], rel=1e-5)


def test_history_features_are_marked_as_statistics(prepared):
    for name in (
        "seen_length",
        "keep_item",
        "taste_user",
        "seen_share_brand",
        "rasch_user",
        "ratio_item",
        "like_seen",
    ):
        assert prepared.schema.feature(name).source == "statistic"
