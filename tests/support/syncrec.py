"""A SyNCRec net with random weights behind a small schema, without training."""

from __future__ import annotations

import torch

from service.contract.schema import (
    CategoricalFeature,
    Entity,
    FeatureSchema,
    SequenceFeature,
    SequenceField,
    StandardiseEncoder,
    VocabularyEncoder,
)
from tests.unit.training.sequences.toy import small_net
from training.models.base import CtrModel
from training.models.build import build_model
from training.models.config import SyncrecConfig
from training.models.syncrec import SyncrecInputs, SyncrecRanker
from training.models.syncrec_net import SyncrecNet

DOMAINS = ("a", "b", "c")
ITEMS = tuple(f"i{i}" for i in range(18))
WITHOUT_VECTOR = 7
"""Row of an item that has none."""
MISSING = (0.5, -0.5, 1.5, 2.5)


def sequence_schema(*, max_len: int = 8) -> FeatureSchema:
    """Users with histories, items with ids."""
    return FeatureSchema(
        name="sequences",
        domains=DOMAINS,
        encoders={
            "user_id": VocabularyEncoder(values=("u0", "u1", "u2")),
            "item_id": VocabularyEncoder(values=ITEMS),
            "price": StandardiseEncoder(),
            "hour": VocabularyEncoder(values=("0", "1")),
        },
        features=(
            CategoricalFeature(name="user_id", entity=Entity.USER, encoder="user_id", is_id=True),
            SequenceFeature(
                name="history",
                entity=Entity.USER,
                max_len=max_len,
                fields=(
                    SequenceField(name="item", encoder="item_id"),
                    SequenceField(name="domain", encoder="domain"),
                ),
            ),
            CategoricalFeature(name="item_id", entity=Entity.ITEM, encoder="item_id", is_id=True),
            CategoricalFeature(name="hour", entity=Entity.CONTEXT, encoder="hour"),
        ),
    )


def serving_config(**changes: object) -> SyncrecConfig:
    """As `small_net` has it."""
    sizes = {"width": 8, "max_len": 8, "num_experts": 3, "num_layers": 2, "num_heads": 2}
    return SyncrecConfig.model_validate(sizes | changes)


def serving_model(
    *, single_domains: tuple[str, ...] = (), gate: str = "prefix_mean"
) -> tuple[CtrModel, SyncrecNet]:
    """The model and the net that it serves."""
    net = small_net(gate=gate)
    config = serving_config(single_domains=single_domains, gate=gate)
    model = build_model(config, sequence_schema())
    assert isinstance(model.inputs, SyncrecInputs)
    assert isinstance(model.ranker, SyncrecRanker)
    known = torch.ones(len(ITEMS) + 2)
    known[[0, 1, WITHOUT_VECTOR]] = 0
    model.inputs.take_over(
        net,
        items=net.items.weight.detach(),
        known=known,
        domains=(0, 1, 2),
        tasks=(0, *(1 + DOMAINS.index(name) for name in single_domains)),
    )
    model.ranker.set_missing(torch.tensor(MISSING))
    return model.eval(), net.eval()


def user_row(*events: tuple[int, int]) -> torch.Tensor:
    """(1, 17) int32: an unknown user with (item row, domain index) events, the oldest first."""
    row = torch.zeros(1, 17, dtype=torch.int32)
    row[0, 0] = 1
    for place, (item, domain) in enumerate(events):
        row[0, 1 + place], row[0, 9 + place] = item, 2 + domain
    return row
