"""Reference checkpoints of `make bench-export`, and what a plain exporter makes of them.

    inputs  8 user and 8 item ids, 43 domains, all 16 wide, 4 item numbers: 276; 1,000,000 table rows
    aread   3 + 6 + 12 experts over four 256-128-64 experts, masks of half the edges
    small   276 -> 128 -> 64 -> 1

Weights are random, since speed does not depend on what they say. A plain export is the model's own forward
pass in evaluation mode, each candidate a row of its own with its user's ids beside it.
"""

from __future__ import annotations

import copy

import numpy as np
import onnx
import torch
from torch import Tensor, nn

import export.onnx_export as exporter
from export.graph import CalibratorTable, ScoringGraph
from export.rows import RowSampler, Snapshot
from loadtests.bench_serve.reference import ReferenceMlp
from service.contract.encode import EncodedBlock
from service.contract.layout import entity_layout
from service.contract.schema import (
    CategoricalFeature,
    Entity,
    FeatureSchema,
    HashEncoder,
    NumericFeature,
    StandardiseEncoder,
    StoredFeature,
)
from training.models.aread import Aread
from training.models.base import CtrModel, Sides
from training.models.build import build_model
from training.models.config import AreadConfig, MmoeConfig
from training.models.mask import random_mask
from training.models.pyramid_gates import DomainGates

NUM_DOMAINS = 43
NUM_FIELDS = 8
NUM_NUMBERS = 4
ROWS_PER_FIELD = 62_500  # 16 fields: 1,000,000 rows of 16, 61 MiB
SMALL_WIDTHS = (128, 64)
MASK_DENSITY = 0.5
HOT_DOMAIN = 3
SEED = 20


def make_schema() -> FeatureSchema:
    """Ids by hash, so that the schema does not list a million values."""
    encoders = {}
    features: list[StoredFeature] = []
    for side, entity in (("u", Entity.USER), ("i", Entity.ITEM)):
        for n in range(NUM_FIELDS):
            encoders[f"{side}{n}"] = HashEncoder(num_buckets=ROWS_PER_FIELD - 2, seed=n)
            features.append(
                CategoricalFeature(name=f"{side}{n}", entity=entity, encoder=f"{side}{n}", is_id=n == 0)
            )
    features += [
        NumericFeature(name=f"x{n}", entity=Entity.ITEM, encoder="plain") for n in range(NUM_NUMBERS)
    ]
    return FeatureSchema(
        name="reference",
        domains=tuple(f"d{n:02d}" for n in range(NUM_DOMAINS)),
        encoders={**encoders, "plain": StandardiseEncoder()},
        features=tuple(features),
    )


@torch.no_grad()
def make_model(name: str, schema: FeatureSchema) -> CtrModel:
    """`aread` or `small` with random weights and running statistics, in evaluation mode."""
    torch.manual_seed(SEED)
    if name == "aread":
        model = build_model(AreadConfig(), schema)
        if not isinstance(model.ranker, Aread):
            raise TypeError(f"the AREAD config built a {type(model.ranker).__name__}")
        rng = np.random.default_rng(SEED)
        masks = {d: random_mask(model.ranker.shape, MASK_DENSITY, rng) for d in range(NUM_DOMAINS)}
        model.ranker.set_masks(masks)
        model.ranker.use_masks(wanted=True)
        model.ranker.expert_pyramid.head.mul_(8.0)  # scores that differ by more than the third digit
        model.ranker.cross.products.row.weight.mul_(4.0)
    else:
        inputs = build_model(MmoeConfig(), schema).inputs
        model = CtrModel(inputs, ReferenceMlp(inputs.request_width + inputs.row_width, SMALL_WIDTHS))
    model.inputs.banks["table_0"].table.weight.mul_(10.0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def make_sampler(schema: FeatureSchema, *, seed: int) -> RowSampler:
    """Requests over 2,000 users and items with ids all over the tables."""
    rng = np.random.default_rng(SEED)

    def block(entity: Entity) -> EncodedBlock:
        layout, count = entity_layout(schema, entity), 1 if entity is Entity.CONTEXT else 2_000
        ints = rng.integers(0, ROWS_PER_FIELD, (count, layout.int_width))
        floats = rng.normal(size=(count, layout.float_width))
        return EncodedBlock(ints.astype(np.int32), floats.astype(np.float32))

    snapshot = Snapshot(user=block(Entity.USER), item=block(Entity.ITEM), context=block(Entity.CONTEXT))
    return RowSampler(schema, snapshot, seed=seed)


def plain_lines() -> CalibratorTable:
    """Calibrators that differ by domain."""
    size = NUM_DOMAINS + 1
    scale, bias = np.linspace(0.8, 1.2, size), np.linspace(-2.0, -1.0, size)
    return CalibratorTable(scale=scale.astype(np.float32), bias=bias.astype(np.float32))


class PlainGraph(nn.Module):
    """A trained model as it is: every candidate has its user's and context's ids beside it."""

    def __init__(self, model: CtrModel, lines: CalibratorTable) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.experts = None
        gates = getattr(self.model.ranker, "gates", None)
        if isinstance(gates, DomainGates):
            gates.__class__ = _GatesWithMasks
        self.register_buffer("scale", torch.from_numpy(lines.scale))
        self.register_buffer("bias", torch.from_numpy(lines.bias))

    def forward(
        self,
        user_ints: Tensor,
        user_floats: Tensor,
        context_ints: Tensor,
        context_floats: Tensor,
        domain: Tensor,
        item_ints: Tensor,
        item_floats: Tensor,
        request_index: Tensor,
    ) -> Tensor:
        """Probabilities (N,) float32; arguments as for `ScoringGraph`."""
        at_request = (user_ints, user_floats, context_ints, context_floats, domain)
        *blocks, domains = (values.index_select(0, request_index) for values in at_request)
        request, _ = self.model.inputs.request_side(*blocks, domains)
        row, _ = self.model.inputs.row_side(item_ints, item_floats, item_floats[:, :0])
        logits = self.model.ranker(Sides(request, row, None, domains))
        scale, bias = self.get_buffer("scale"), self.get_buffer("bias")
        return torch.sigmoid(scale.index_select(0, domains) * logits + bias.index_select(0, domains))


class _GatesWithMasks(DomainGates):
    """Gates that know without looking that masks count: a tracer cannot branch on a stored flag."""

    masks_count = True  # type: ignore[assignment]


def plain_proto(model: CtrModel, schema: FeatureSchema) -> onnx.ModelProto:
    """What torch's exporter writes, with the optimisation it has by default."""
    rewrite = exporter.optimise
    exporter.optimise = lambda _: None
    try:
        return exporter.trace_graph(PlainGraph(model, plain_lines()), schema)
    finally:
        exporter.optimise = rewrite


def compiled_proto(model: CtrModel, schema: FeatureSchema, *, hot: bool = False) -> onnx.ModelProto:
    """What the compiler writes: of all domains, or of the hot one."""
    domains = [HOT_DOMAIN] if hot else None
    return exporter.trace_graph(ScoringGraph(model, schema, plain_lines(), domains=domains), schema)
