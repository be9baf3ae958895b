"""A small schema with every feature kind, and random encoded rows for it."""

from __future__ import annotations

import numpy as np

from service.contract.encode import EncodedBlock, EntityEncoder
from service.contract.schema import (
    BucketiseEncoder,
    CategoricalFeature,
    DotPair,
    Entity,
    FeatureSchema,
    HashEncoder,
    LookupPair,
    MultiFeature,
    NumericFeature,
    SequenceFeature,
    SequenceField,
    StandardiseEncoder,
    VocabularyEncoder,
)

DOMAINS = ("home", "search", "cart")
USERS = tuple(f"u{i}" for i in range(20))
BRANDS = ("acme", "brio", "calla")


def full_schema() -> FeatureSchema:
    """Categorical, weighted and plain multi, sequence, numeric (scalar, vector, bucketised), lookups, dot."""
    return FeatureSchema(
        name="test",
        domains=DOMAINS,
        encoders={
            "user_id": VocabularyEncoder(values=USERS),
            "item_id": HashEncoder(num_buckets=50, seed=3),
            "brand": VocabularyEncoder(values=BRANDS),
            "hour": VocabularyEncoder(values=tuple(map(str, range(24)))),
            "age": BucketiseEncoder(boundaries=(18.0, 30.0, 50.0)),
            "price": StandardiseEncoder(mean=2.0, std=1.5, transform="log1p"),
            "vector": StandardiseEncoder(),
        },
        features=(
            CategoricalFeature(name="user_id", entity=Entity.USER, encoder="user_id", is_id=True),
            NumericFeature(name="age", entity=Entity.USER, encoder="age"),
            NumericFeature(name="taste", entity=Entity.USER, encoder="vector", width=4),
            MultiFeature(name="liked_brands", entity=Entity.USER, encoder="brand", max_len=3),
            MultiFeature(
                name="brand_rates",
                entity=Entity.USER,
                encoder="brand",
                max_len=3,
                num_weights=2,
                source="statistic",
            ),
            MultiFeature(
                name="domain_rates",
                entity=Entity.USER,
                encoder="domain",
                max_len=3,
                num_weights=1,
                source="statistic",
            ),
            SequenceFeature(
                name="history",
                entity=Entity.USER,
                max_len=5,
                fields=(
                    SequenceField(name="item", encoder="item_id"),
                    SequenceField(name="domain", encoder="domain"),
                ),
            ),
            CategoricalFeature(name="item_id", entity=Entity.ITEM, encoder="item_id", is_id=True),
            CategoricalFeature(name="brand", entity=Entity.ITEM, encoder="brand"),
            NumericFeature(name="price", entity=Entity.ITEM, encoder="price"),
            NumericFeature(name="style", entity=Entity.ITEM, encoder="vector", width=4),
            MultiFeature(
                name="hour_rates",
                entity=Entity.ITEM,
                encoder="hour",
                max_len=4,
                num_weights=1,
                source="statistic",
            ),
            CategoricalFeature(name="hour", entity=Entity.CONTEXT, encoder="hour"),
        ),
        pairs=(
            LookupPair(name="user_brand", holder="brand_rates", key="brand"),
            LookupPair(name="user_domain", holder="domain_rates", key="domain"),
            LookupPair(name="item_hour", holder="hour_rates", key="hour"),
            DotPair(name="taste_style", left="taste", right="style"),
        ),
    )


def random_block(schema: FeatureSchema, entity: Entity, num_rows: int, *, seed: int) -> EncodedBlock:
    """Rows of one entity with missing and unknown values, lists of every length."""
    random = np.random.default_rng(seed)

    def lists(values: tuple[str, ...], longest: int) -> list[list[str]]:
        return [
            list(random.choice(values, random.integers(0, longest + 1), replace=False))
            for _ in range(num_rows)
        ]

    def weighted(values: tuple[str, ...], longest: int, channels: int) -> list[dict[str, object]]:
        return [
            {"ids": ids, "weights": random.normal(size=(len(ids), channels)).tolist()}
            for ids in lists(values, longest)
        ]

    def vectors() -> list[list[float]]:
        return random.normal(size=(num_rows, 4)).tolist()

    hours = tuple(map(str, range(24)))
    columns: dict[Entity, dict[str, object]] = {
        Entity.USER: {
            "user_id": random.choice([*USERS, "nobody"], num_rows).tolist(),
            "age": random.choice([None, 12, 25, 80], num_rows).tolist(),
            "taste": vectors(),
            "liked_brands": lists(BRANDS, 3),
            "brand_rates": weighted(BRANDS, 3, 2),
            "domain_rates": weighted(DOMAINS, 3, 1),
            "history": [
                [
                    {"item": f"i{random.integers(0, 40)}", "domain": str(random.choice(DOMAINS))}
                    for _ in range(random.integers(0, 6))
                ]
                for _ in range(num_rows)
            ],
        },
        Entity.ITEM: {
            "item_id": [f"i{k}" for k in random.integers(0, 40, num_rows)],
            "brand": random.choice([*BRANDS, "other"], num_rows).tolist(),
            "price": random.choice([None, 1.0, 20.0], num_rows).tolist(),
            "style": vectors(),
            "hour_rates": weighted(hours, 4, 1),
        },
        Entity.CONTEXT: {"hour": random.integers(0, 24, num_rows).tolist()},
    }
    return EntityEncoder(schema, entity).encode(columns[entity], num_rows)  # type: ignore[arg-type]
