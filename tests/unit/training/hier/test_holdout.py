"""Items that users list, and the figures of a held-out domain on a small log."""

import polars as pl
import pytest
import yaml

from tests.support.hier import CONFIG, DESCRIPTION, NUM_USERS, write_raw
from training.data.prepare import prepare
from training.hier.clicks import listed_items
from training.hier.config import load_pretrain_config
from training.hier.errors import GraphError
from training.hier.holdout import METHODS, SHOTS, measure_target, report
from training.hier.source import SourceData


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    raw = write_raw(tmp_path_factory.mktemp("raw"))
    users = {
        "user_id": [f"u{u}" for u in range(NUM_USERS)],
        "seen": [["i3", "i5"], ["i7", "gone"], *[[]] * 38],
    }
    pl.DataFrame(users).write_parquet(raw / "users.parquet")
    seen = {
        "name": "seen",
        "entity": "user",
        "kind": "sequence",
        "max_len": 4,
        "fields": [{"name": "item", "column": "seen", "encoder": "item_id"}],
    }
    changed = DESCRIPTION | {
        "users": {"file": "users.parquet", "key": "user_id"},
        "features": [*DESCRIPTION["features"], seen],
    }
    (raw / "dataset.yaml").write_text(yaml.safe_dump(changed))
    return prepare(raw, tmp_path_factory.mktemp("prepared"))


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "hier.yaml"
    path.write_text(CONFIG)
    return path


def test_listed_items_count_as_clicks_of_no_domain(prepared):
    rows = listed_items(prepared, ["seen"])
    ids = prepared.entity_ids("item")
    found = sorted((int(u), ids[v]) for u, v in zip(rows.user, rows.item, strict=True))
    assert found == [(0, "i3"), (0, "i5"), (1, "i7")]
    assert set(rows.domain.tolist()) == {prepared.schema.num_domains}
    assert len(listed_items(prepared, [])) == 0
    with pytest.raises(GraphError, match=r"graph.user_lists names 'tags', which is no list of item ids"):
        listed_items(prepared, ["tags"])


def test_lists_reach_users_but_not_the_loss(prepared, config):
    plain = SourceData(prepared, load_pretrain_config(config), None)
    more = SourceData(prepared, load_pretrain_config(config, ["graph.user_lists=[seen]"]), None)
    assert len(more.data.clicks) == len(plain.data.clicks)
    assert len(more.bags.items.values) > len(plain.bags.items.values)


def test_figures_of_a_held_out_domain(prepared, config):
    source = SourceData(prepared, load_pretrain_config(config, ["hold_out=d2"]), None)
    figures = measure_target(prepared, source, draws=2)
    assert figures.target == "d2"
    for method in METHODS:
        assert [len(figures.shots[method][n]) for n in SHOTS] == [2] * len(SHOTS)
    # Without rows the head is the zero-shot score, in every draw.
    for name in ("hier", "score_alone"):
        assert set(figures.shots[name][0]) == {figures.zero_shot[name]}
    # Rates of users tell users apart, not the items that one user is asked about.
    assert figures.zero_shot["with_items"].ndcg == figures.zero_shot["hier"].ndcg
    assert "d2: " in report([figures])
    with pytest.raises(ValueError, match="needs a source with a domain held out"):
        measure_target(prepared, SourceData(prepared, load_pretrain_config(config), None), draws=1)


def test_triples_need_the_raw_data(prepared, config):
    settings = load_pretrain_config(config, ["graph.triples=triples.csv"])
    with pytest.raises(GraphError, match=r"graph.triples is triples.csv: give --data, where it lies"):
        SourceData(prepared, settings, None)
