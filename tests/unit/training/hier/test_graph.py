"""Entity sets, the graph, and users as sets of entities, by hand-made items and clicks."""

import numpy as np
import polars as pl
import pytest

from service.contract.schema import BucketiseEncoder, FeatureSchema, VocabularyEncoder
from training.hier.bags import UserBags
from training.hier.clicks import Impressions
from training.hier.entities import (
    EntityVocabulary,
    attribute_encoders,
    coverage,
    named_values,
    read_triples,
)
from training.hier.errors import GraphError
from training.hier.graph import build_graph
from training.hier.ragged import Ragged
from training.hier.sampling import draw_negatives, items_of_domains

ITEMS = [["tag:1", "by:a"], ["tag:1", "tag:2", "by:b"], ["tag:2", "by:a"], ["tag:9"], []]


def ints(*values):
    return np.array(values, dtype=np.int64)


def log(user, item, domain=None):
    size = len(user)
    return Impressions(ints(*user), ints(*item), ints(*(domain or [0] * size)), np.ones(size, np.float32))


@pytest.fixture
def vocabulary():
    return EntityVocabulary.fit(ITEMS, min_items=2, max_share=1.0)


def test_rare_and_common_entities_are_left_out(vocabulary):
    assert vocabulary.names == ("by:a", "tag:1", "tag:2")
    with pytest.raises(GraphError, match="none of 5 entities is in 3 items or more"):
        EntityVocabulary.fit(ITEMS, min_items=3, max_share=1.0)
    with pytest.raises(GraphError, match=r"20% of the 5 items or less"):
        EntityVocabulary.fit(ITEMS, min_items=2, max_share=0.2)


def test_items_as_sets_and_their_coverage(vocabulary):
    sets = vocabulary.sets(ITEMS)
    assert [sets.take(ints(i))[0].tolist() for i in range(4)] == [[[2, 3]], [[3, 4]], [[2, 4]], [[0]]]
    assert coverage(sets) == pytest.approx(0.6)
    assert coverage(Ragged.of([])) == 0.0


def test_entities_of_one_item_are_linked_both_ways_by_their_kinds(vocabulary):
    ontology = [("tag:1", "part_of", "tag:2"), ("tag:1", "part_of", "tag:77")]
    graph = build_graph(vocabulary.sets(ITEMS), vocabulary, ontology)
    edges = {
        (int(h), graph.relations[r], int(t))
        for h, r, t in zip(graph.head, graph.relation, graph.tail, strict=True)
    }
    assert edges == {
        (2, "by~tag", 3),
        (3, "tag~by", 2),
        (3, "tag~tag", 4),
        (4, "tag~tag", 3),
        (2, "by~tag", 4),
        (4, "tag~by", 2),
        (3, "part_of", 4),
        (4, "part_of^-1", 3),
    }
    assert graph.digest == build_graph(vocabulary.sets(ITEMS), vocabulary, ontology[::-1]).digest
    assert graph.digest != build_graph(vocabulary.sets(ITEMS), vocabulary).digest


def test_triples_of_items_and_of_entities(tmp_path):
    rows = {
        "head": ["video:7", "video:8", "video:404", "tag:1"],
        "relation": ["has_tag", "by", "by", "part_of"],
        "tail": ["tag:1", "by:a", "by:b", "tag:2"],
    }
    path = tmp_path / "triples.parquet"
    pl.DataFrame(rows).write_parquet(path)
    found = read_triples(path, ["8", "7"], item_prefix="video:")
    assert found.items == [["by:a"], ["tag:1"]]
    assert found.ontology == (("tag:1", "part_of", "tag:2"),)
    pl.DataFrame(rows).drop("tail").write_csv(tmp_path / "short.csv")
    with pytest.raises(GraphError, match=r"lacks the columns \['tail'\]"):
        read_triples(tmp_path / "short.csv", [], item_prefix="")
    with pytest.raises(GraphError, match="does not exist"):
        read_triples(tmp_path / "none.csv", [], item_prefix="")


def test_raw_values_become_names():
    encoders = {"price": BucketiseEncoder(boundaries=(1.0, 2.0)), "tag": VocabularyEncoder(values=("1",))}
    assert named_values("price", 1.5, encoders) == ["price:#1"]
    assert named_values("tag", [1, "x"], encoders) == ["tag:1", "tag:x"]
    assert named_values("other", None, encoders) == []


def test_only_item_features_with_single_ids_are_attributes():
    schema = FeatureSchema.model_validate(
        {
            "name": "s",
            "domains": ["d"],
            "encoders": {
                "id": {"type": "vocabulary", "values": ["1"]},
                "tag": {"type": "vocabulary", "values": ["1"]},
                "size": {"type": "standardise"},
            },
            "features": [
                {"name": "item_id", "entity": "item", "kind": "categorical", "encoder": "id", "is_id": True},
                {"name": "tag", "entity": "item", "kind": "categorical", "encoder": "tag"},
                {"name": "size", "entity": "item", "kind": "numeric", "encoder": "size"},
            ],
        }
    )
    assert list(attribute_encoders(schema, None)) == ["tag"]
    with pytest.raises(GraphError, match="names 'size', a numeric feature without single ids"):
        attribute_encoders(schema, ["size"])
    with pytest.raises(GraphError, match=r"names 'nope'; items have \['item_id', 'size', 'tag'\]"):
        attribute_encoders(schema, ["nope"])


def test_weights_of_a_user_are_damped_counts_of_distinct_items(vocabulary):
    bags = UserBags.of(log([0, 0, 0, 2], [0, 1, 1, 3]), vocabulary.sets(ITEMS), num_users=3)
    ids, weights = bags.take(ints(0, 1, 2, -1))
    assert ids.tolist() == [[2, 3, 4], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    np.testing.assert_allclose(weights[0], np.log([2, 3, 2]), rtol=1e-6)
    assert not weights[1:].any()
    assert bags.is_cold.tolist() == [False, True, True]


def test_the_heaviest_entities_stay(vocabulary):
    bags = UserBags.of(log([0, 0], [0, 1]), vocabulary.sets(ITEMS), num_users=1, top=2)
    assert bags.take(ints(0))[0].tolist() == [[3, 2]]


def test_an_item_left_out_counts_as_never_clicked(vocabulary):
    sets = vocabulary.sets(ITEMS)
    with_it = UserBags.of(log([0, 0, 0], [0, 1, 2]), sets, num_users=1, top=2)
    without = UserBags.of(log([0, 0], [0, 2]), sets, num_users=1, top=2)
    for bags in (with_it, without):
        ids, weights = bags.take(ints(0), left_out=ints(1))
        assert ids.tolist() == [[2, 3]]
        np.testing.assert_allclose(weights, np.log([[3, 2]]), rtol=1e-6)


def test_negatives_are_of_the_domain_and_not_clicked(vocabulary):
    rows = log([0, 0, 1], [0, 1, 3], [0, 0, 1])
    bags = UserBags.of(rows, vocabulary.sets(ITEMS), num_users=2)
    pool = items_of_domains(log([0, 0, 0, 1], [0, 1, 2, 3], [0, 0, 0, 1]), num_domains=2).take(ints(0))[0][0]
    drawn = draw_negatives(np.random.default_rng(0), ints(0, 1), pool, bags, count=50)
    assert set(drawn[0].tolist()) == {2}
    assert set(drawn[1].tolist()) == {0, 1, 2}


def test_a_held_out_domain_leaves_no_row():
    rows = log([0, 1, 2], [0, 1, 2], [0, 1, 1])
    assert rows.without(1).user.tolist() == [0]
    assert rows.without(None).user.tolist() == [0, 1, 2]
