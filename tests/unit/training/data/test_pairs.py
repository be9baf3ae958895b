"""Pairs by hand: lookups with domain and categorical keys, dot products."""

import numpy as np

from service.contract.encode import EntityEncoder
from service.contract.schema import (
    CategoricalFeature,
    DotPair,
    Entity,
    FeatureSchema,
    LookupPair,
    MultiFeature,
    NumericFeature,
    StandardiseEncoder,
    VocabularyEncoder,
)
from training.data.pairs import pair_columns, pair_values, pairs_width

SCHEMA = FeatureSchema(
    name="pairs",
    domains=("d0", "d1"),
    encoders={"tab": VocabularyEncoder(values=("a", "b")), "plain": StandardiseEncoder()},
    features=(
        MultiFeature(name="by_tab", entity=Entity.USER, encoder="tab", max_len=2, num_weights=2),
        MultiFeature(name="by_domain", entity=Entity.ITEM, encoder="domain", max_len=2, num_weights=1),
        NumericFeature(name="left", entity=Entity.USER, encoder="plain", width=2),
        NumericFeature(name="right", entity=Entity.ITEM, encoder="plain", width=2),
        CategoricalFeature(name="tab", entity=Entity.CONTEXT, encoder="tab"),
    ),
    pairs=(
        LookupPair(name="tab_rate", holder="by_tab", key="tab"),
        LookupPair(name="domain_rate", holder="by_domain", key="domain"),
        DotPair(name="taste", left="left", right="right"),
    ),
)


def _values(tabs, domains):
    n = len(tabs)
    user = {"by_tab": [{"ids": ["a", "b"], "weights": [[1, 2], [3, 4]]}] * n, "left": [[1.0, 2.0]] * n}
    item = {"by_domain": [{"ids": ["d1"], "weights": [0.5]}] * n, "right": [[3.0, -1.0]] * n}
    blocks = [
        EntityEncoder(SCHEMA, entity).encode(columns, n)
        for entity, columns in ((Entity.USER, user), (Entity.CONTEXT, {"tab": tabs}), (Entity.ITEM, item))
    ]
    return pair_values(SCHEMA, *blocks, np.array(domains, dtype=np.int32))


def test_each_row_reads_its_own_key():
    found = _values(["b", "a", "zz", None], [1, 0, 2, 1])

    assert found.tolist() == [[3, 4, 0.5, 1], [1, 2, 0, 1], [0, 0, 0, 1], [0, 0, 0.5, 1]]


def test_columns_follow_the_schema_and_no_rows_give_no_rows():
    assert pair_columns(SCHEMA) == {"tab_rate": slice(0, 2), "domain_rate": slice(2, 3), "taste": slice(3, 4)}
    assert pairs_width(SCHEMA) == 4
    assert _values([], []).shape == (0, 4)
