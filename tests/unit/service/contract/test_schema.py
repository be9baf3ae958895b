"""Schemas that contradict themselves are refused in words."""

import pytest

from service.contract.errors import SchemaError
from service.contract.schema import (
    BucketiseEncoder,
    CategoricalFeature,
    DotPair,
    Entity,
    FeatureSchema,
    LookupPair,
    MultiFeature,
    NumericFeature,
    SequenceFeature,
    SequenceField,
    StandardiseEncoder,
    VocabularyEncoder,
)
from tests.support.bundles import make_schema

U = Entity.USER
WORDS = VocabularyEncoder(values=("a", "b"))
NUMBER = StandardiseEncoder()


def schema(*features, pairs=(), domains=("d",), **encoders):
    return FeatureSchema(
        name="s",
        domains=domains,
        encoders={"words": WORDS, "number": NUMBER, **encoders},
        features=features,
        pairs=pairs,
    )


def cat(name, encoder="words", **more):
    return CategoricalFeature(name=name, entity=U, encoder=encoder, **more)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VocabularyEncoder(values=("a", "a")), "vocabulary lists the value 'a' twice"),
        (lambda: BucketiseEncoder(boundaries=(1.0, 1.0)), "must rise strictly"),
        (lambda: BucketiseEncoder(boundaries=(float("inf"),)), "must be finite"),
        (lambda: schema(cat("f"), cat("f")), "feature name 'f' is used twice"),
        (lambda: schema(domains=("d", "d")), "a domain is listed twice"),
        (lambda: schema(domain=WORDS), "encoder name 'domain' is reserved"),
        (lambda: schema(cat("f", is_id=True), cat("g", is_id=True)), "has two id features"),
        (lambda: schema(cat("f", "nothing")), "no encoder 'nothing'; known are"),
        (lambda: schema(cat("f", "number")), "needs vocabulary or hash, got standardise"),
        (
            lambda: schema(NumericFeature(name="f", entity=U, encoder="words")),
            "needs standardise or bucketise",
        ),
        (
            lambda: schema(
                NumericFeature(name="f", entity=U, encoder="b", width=2),
                b=BucketiseEncoder(boundaries=(1.0,)),
            ),
            "bucketise needs width 1, got 2",
        ),
        (
            lambda: schema(
                SequenceFeature(
                    name="f", entity=U, max_len=2, fields=(SequenceField(name="x", encoder="number"),)
                )
            ),
            "needs an encoder that gives ids",
        ),
        (
            lambda: schema(
                SequenceFeature(
                    name="f", entity=U, max_len=2, fields=(SequenceField(name="x", encoder="words"),) * 2
                )
            ),
            "names a field twice",
        ),
        (lambda: schema(cat("f"), pairs=(DotPair(name="p", left="f", right="f"),)), "two numeric features"),
        (lambda: schema(pairs=(DotPair(name="p", left="x", right="x"),)), "no feature 'x'; known are []"),
        (
            lambda: schema(cat("f"), pairs=(LookupPair(name="p", holder="f", key="f"),)),
            "must be a multi feature",
        ),
        (
            lambda: schema(
                MultiFeature(name="m", entity=U, encoder="words", max_len=2, num_weights=1),
                pairs=(LookupPair(name="p", holder="m", key="domain"),),
            ),
            "key uses encoder 'domain', holder uses 'words'",
        ),
    ],
)
def test_contradictions_are_named(make, message):
    with pytest.raises(SchemaError) as caught:
        make()
    assert message in str(caught.value)


def test_digest_changes_with_an_encoder_and_not_with_a_description():
    plain = schema(cat("f"))
    assert plain.digest == schema(cat("f", description="for people")).digest
    assert plain.digest != schema(cat("f"), words=VocabularyEncoder(values=("b", "a"))).digest


def test_unlisted_domains_share_the_row_after_the_last():
    small = make_schema()
    assert [small.domain_index(d) for d in ("home", "music", "nowhere")] == [0, 2, 3]
