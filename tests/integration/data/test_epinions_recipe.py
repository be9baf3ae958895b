"""The epinions27 recipe on a small made-up table of the same shape."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from service.contract.schema import Entity
from training.data.dataset import RowReader
from training.data.errors import DescriptionError
from training.data.prepare import prepare
from training.data.source import open_data, parse_description, recipe_text

USERS, ITEMS, DOMAINS, N = 60, 50, 8, 2400


@pytest.fixture(scope="module")
def ratings(tmp_path_factory):
    """Ratings sorted by step and user, users cut 80/10/10 in their own order; returns (folder, columns)."""
    rng, folder = np.random.default_rng(3), tmp_path_factory.mktemp("epinions")
    step, user = np.sort(rng.choice([1, 1, 1, 2, 3, 7, 11], N)), rng.integers(0, USERS, N)
    user = user[np.lexsort((user, step))]
    item = rng.integers(0, ITEMS, N)
    rating = rng.integers(1, 6, N)
    split = np.empty(N, dtype=object)
    for u in range(USERS):
        rows = np.flatnonzero(user == u)
        split[rows] = "train"
        split[rows[int(0.8 * len(rows)) :]] = "valid"
        split[rows[int(0.9 * len(rows)) :]] = "test"
    columns = {
        "user_id": user.astype(np.int32),
        "item_id": item.astype(np.int32),
        "domain_id": (item % DOMAINS).astype(np.int8),
        "time_step": step.astype(np.int8),
        "rating": rating.astype(np.int8),
        "label": (rating >= 4).astype(np.int8),
        "review_helpfulness": rng.integers(1, 6, N).astype(np.int8),
        "split": np.where(step <= 3, "train", np.where(step == 7, "valid", "test")),
        "in_5core": item % 5 != 4,
        "split_user": split.astype(str),
    }
    pq.write_table(pa.table(columns), folder / "interactions.parquet")
    return folder, columns


def test_core_rows_are_read_and_split_by_user(ratings, tmp_path):
    folder, columns = ratings
    core = columns["in_5core"]

    prepared = prepare(open_data(folder, "epinions27"), tmp_path / "out")

    assert prepared.rows == {s: int((core & (columns["split_user"] == s)).sum()) for s in prepared.rows}
    assert prepared.info["where"] == {"conditions": {"in_5core": True}, "rows_left_out": int((~core).sum())}
    train = core & (columns["split_user"] == "train")
    assert list(prepared.schema.domains) == [f"cat_{d}" for d in range(DOMAINS)]
    assert prepared.base_rate == pytest.approx(columns["label"][train].mean())
    assert [pair.name for pair in prepared.schema.pairs] == ["user_id_x_domain.lookup"]
    batch = next(RowReader(prepared, "train").batches(N))
    assert np.array_equal(batch.label, columns["label"][train])
    assert np.array_equal(batch.domain, columns["domain_id"][train])


def test_a_users_first_row_knows_nothing_of_the_user_and_the_test_row_all_of_train(ratings, tmp_path):
    folder, _ = ratings
    prepared = prepare(open_data(folder, "epinions27"), tmp_path / "out")
    place = prepared.layout(Entity.USER).slot("user_id_count", "values").start
    train, test = (next(RowReader(prepared, split).batches(N)) for split in ("train", "test"))

    counts = train.user_floats[:, place]
    scale = counts.max() / np.log1p(np.bincount(train.user_code).max() - 1)
    for user in range(5):
        # Within a step too, the number of earlier train rows of the user: 0, 1, 2, ...
        found = np.expm1(counts[train.user_code == user] / scale)
        np.testing.assert_allclose(found, np.arange(len(found)), atol=1e-3)
        frozen = np.expm1(test.user_floats[test.user_code == user, place] / scale)
        np.testing.assert_allclose(frozen, len(found), rtol=1e-3)


@pytest.mark.parametrize("column", ["rating", "review_helpfulness", "label", "split_user", "time_step"])
def test_what_follows_the_rating_is_no_input(column):
    description = yaml.safe_load(recipe_text("epinions27"))
    description["features"].append(
        {"name": "x", "entity": "context", "kind": "categorical", "column": column}
    )

    with pytest.raises(DescriptionError, match=f"'x' reads column '{column}', which is "):
        parse_description(yaml.safe_dump(description))


def test_outcomes_do_not_choose_rows():
    description = yaml.safe_load(recipe_text("epinions27"))
    description["where"] = {"review_helpfulness": [4, 5]}

    with pytest.raises(DescriptionError, match="where: column 'review_helpfulness' is an outcome"):
        parse_description(yaml.safe_dump(description))
