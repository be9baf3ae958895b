"""The two reference models that serving is measured with, and the schema both read.

    8 user ids, 8 item ids, 4 item numbers, a domain: (8 + 8) x 16 + 4 + 16 = 276 inputs
    small   276 -> 128 -> 64 -> 1 at every candidate row: an MLP as a plain exporter writes it
    aread   the default AREAD config: 3 + 6 + 12 experts over an MMoE base, a random mask per domain

Weights are random: serving costs do not depend on what they say. Invariant: the same seed gives the
same schema, weights and rows on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from service.contract.encode import EncodedBlock
from service.contract.layout import entity_layout
from service.contract.schema import (
    FIRST_ID,
    CategoricalFeature,
    Entity,
    FeatureSchema,
    NumericFeature,
    StandardiseEncoder,
    StoredFeature,
    VocabularyEncoder,
)
from training.models.aread import Aread
from training.models.base import CtrModel, Ranker, Sides, at_rows
from training.models.build import build_model
from training.models.config import AreadConfig, MmoeConfig
from training.models.mask import random_mask

Model = Literal["small", "aread"]

NUM_FIELDS = 8
NUM_NUMBERS = 4
DOMAINS = tuple(f"d{number:02d}" for number in range(12))
HOT_DOMAINS = DOMAINS[:4]  # get graphs of their own where the method allows; all load goes to these
NUM_USERS = 5_000
NUM_ITEMS = 20_000
VALUES_PER_FIELD = 10_000  # of the 14 fields beside the two ids: 165,032 table rows of 16, 10.6 MB
SMALL_WIDTHS = (128, 64)
MASK_DENSITY = 0.5
SEED = 20


class ReferenceMlp(Ranker):
    """MLP over [request; row] at candidate rows: nothing is shared between candidates of a request."""

    def __init__(self, width: int, widths: Sequence[int]) -> None:
        super().__init__()
        sizes = (width, *widths)
        layers: list[nn.Module] = []
        for inner, outer in pairwise(sizes):
            layers += [nn.Linear(inner, outer), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))

    def forward(self, sides: Sides) -> Tensor:
        """Logits (N,) float32."""
        x = torch.cat([at_rows(sides.request, sides.request_index), sides.row], dim=1)
        out: Tensor = self.layers(x)
        return out.squeeze(1)


def make_schema() -> FeatureSchema:
    """Ids and numbers as above; a vocabulary for every id."""
    sizes = {"user_id": NUM_USERS, "item_id": NUM_ITEMS}
    sizes |= {f"{side}{n}": VALUES_PER_FIELD for side in ("u", "i") for n in range(1, NUM_FIELDS)}
    encoders = {
        name: VocabularyEncoder(values=tuple(f"{name[0]}{k}" for k in range(size)))
        for name, size in sizes.items()
    }
    features: list[StoredFeature] = []
    for side, entity in (("u", Entity.USER), ("i", Entity.ITEM)):
        own = f"{entity.value}_id"
        features.append(CategoricalFeature(name=own, entity=entity, encoder=own, is_id=True))
        features += [
            CategoricalFeature(name=f"{side}{n}", entity=entity, encoder=f"{side}{n}")
            for n in range(1, NUM_FIELDS)
        ]
    features += [
        NumericFeature(name=f"x{n}", entity=Entity.ITEM, encoder="plain") for n in range(NUM_NUMBERS)
    ]
    return FeatureSchema(
        name="reference",
        domains=DOMAINS,
        encoders={**encoders, "plain": StandardiseEncoder()},
        features=tuple(features),
    )


def make_model(name: Model, schema: FeatureSchema) -> CtrModel:
    """A reference model with random weights, in evaluation mode."""
    torch.manual_seed(SEED)
    if name == "aread":
        model = build_model(AreadConfig(), schema)
        ranker = model.ranker
        if not isinstance(ranker, Aread):
            raise TypeError(f"the AREAD config built a {type(ranker).__name__}")
        rng = np.random.default_rng(SEED)
        ranker.set_masks({d: random_mask(ranker.shape, MASK_DENSITY, rng) for d in range(len(DOMAINS))})
        ranker.use_masks(wanted=True)
    else:
        inputs = build_model(MmoeConfig(), schema).inputs
        model = CtrModel(inputs, ReferenceMlp(inputs.request_width + inputs.row_width, SMALL_WIDTHS))
    return model.eval()


def make_rows(schema: FeatureSchema, entity: Entity) -> EncodedBlock:
    """Encoded rows of all stored users or items; row k is that of id k."""
    rng = np.random.default_rng([SEED, len(entity.value)])
    layout = entity_layout(schema, entity)
    count = NUM_USERS if entity is Entity.USER else NUM_ITEMS
    ints = rng.integers(0, VALUES_PER_FIELD, (count, layout.int_width)) + FIRST_ID
    ints[:, layout.slot(f"{entity.value}_id").start] = np.arange(count) + FIRST_ID
    floats = rng.normal(size=(count, layout.float_width))
    return EncodedBlock(ints.astype(np.int32), np.round(floats, 3).astype(np.float32))


def raw_features(schema: FeatureSchema, entity: Entity, row: EncodedBlock) -> dict[str, str | float]:
    """What a caller would send for one encoded row, by feature name.

    Args:
        schema: As above.
        entity: Whose row.
        row: One row.
    """
    layout = entity_layout(schema, entity)
    features: dict[str, str | float] = {}
    for feature in schema.of_entity(entity):
        slot = layout.of_feature(feature.name)[0]
        if isinstance(feature, NumericFeature):
            features[feature.name] = round(float(row.floats[0, slot.start]), 3)
        elif not getattr(feature, "is_id", False):
            features[feature.name] = f"{feature.name[0]}{int(row.ints[0, slot.start]) - FIRST_ID}"
    return features


def default_context(schema: FeatureSchema, count: int) -> EncodedBlock:
    """Rows of the empty context, (count, 0)."""
    layout = entity_layout(schema, Entity.CONTEXT)
    ints: NDArray[np.int32] = np.tile(layout.default_ints, (count, 1))
    return EncodedBlock(ints, np.tile(layout.default_floats, (count, 1)))
