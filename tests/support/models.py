"""Small models over the full test schema, one per method, and random batches for them."""

from __future__ import annotations

import numpy as np
import torch

from export.graph import CalibratorTable, ScoringGraph
from export.rows import RowSampler, Snapshot
from service.contract.schema import Entity, FeatureSchema
from tests.support.schemas import random_block
from training.models.base import CtrModel, TensorBatch
from training.models.build import build_model
from training.models.config import (
    AreadConfig,
    CesaaConfig,
    Dcnv2Config,
    DeepFmConfig,
    InputConfig,
    MmoeBaseConfig,
    MmoeConfig,
    ModelConfig,
    PepNetConfig,
    PleBaseConfig,
    PleConfig,
    StarConfig,
    TableConfig,
)

INPUTS = InputConfig(
    tables=(
        TableConfig(encoders=("user_id",), dim=3, l2=0.01, dropout=0.1, unknown_rate=0.1),
        TableConfig(dim=5),
    ),
    domain_dim=4,
)
MODELS: dict[str, ModelConfig] = {
    "mmoe": MmoeConfig(inputs=INPUTS, num_experts=3, expert_widths=(12, 8), tower_widths=(6,)),
    "mmoe_per_domain": MmoeConfig(
        inputs=INPUTS, num_experts=2, expert_widths=(12,), tower_widths=(), towers="per_domain"
    ),
    "mmoe_domain_gate": MmoeConfig(
        inputs=INPUTS.model_copy(update={"pooling": "sqrt"}),
        num_experts=3,
        expert_widths=(12, 8),
        gate_input="domain",
    ),
    "mmoe_clusters": MmoeConfig(
        inputs=INPUTS, num_experts=2, expert_widths=(12,), tower_widths=(6,), towers="clusters"
    ),
    "ple": PleConfig(inputs=INPUTS, expert_widths=((12,),), tower_widths=(6,)),
    "ple_per_domain": PleConfig(inputs=INPUTS, expert_widths=((12,), (8,)), towers="per_domain"),
    "ple_clusters": PleConfig(
        inputs=INPUTS,
        num_shared_experts=3,
        num_tower_experts=2,
        expert_widths=((12, 10), (9, 8), (7,)),
        tower_widths=(),
        towers="clusters",
    ),
    "star": StarConfig(inputs=INPUTS, deep_widths=(12, 8), auxiliary_widths=(4,)),
    "star_per_domain": StarConfig(
        inputs=INPUTS, deep_widths=(12,), partitioned_norm=False, towers="per_domain"
    ),
    "star_clusters": StarConfig(
        inputs=INPUTS, deep_widths=(12, 8), auxiliary_widths=(6, 4), towers="clusters"
    ),
    "pepnet": PepNetConfig(inputs=INPUTS, embedding_gate_width=5, tower_gate_width=4, tower_widths=(12, 8)),
    "pepnet_per_domain": PepNetConfig(
        inputs=INPUTS, embedding_gate_width=5, tower_gate_width=4, tower_widths=(12,), towers="per_domain"
    ),
    "pepnet_clusters": PepNetConfig(
        inputs=INPUTS, embedding_gate_width=5, tower_gate_width=4, tower_widths=(12, 8, 6), towers="clusters"
    ),
    "aread": AreadConfig(
        inputs=INPUTS,
        base=MmoeBaseConfig(num_experts=3, expert_widths=(12, 8)),
        expert_widths=((8, 6), (6, 5), (5, 4)),
        gate_dim=4,
    ),
    "aread_base_masks": AreadConfig(
        inputs=INPUTS,
        base=MmoeBaseConfig(num_experts=4, expert_widths=(12,), gate_input="domain"),
        num_experts=(2, 3, 4, 5),
        expert_widths=((8,), (6,), (5,), (4,)),
        num_cross_layers=1,
        gate_dim=4,
        mask_base=True,
        batch_norm=False,
    ),
    "aread_ple_clusters": AreadConfig(
        inputs=INPUTS,
        base=PleBaseConfig(expert_widths=((12,), (8,))),
        num_experts=(2, 4),
        expert_widths=((8,), (6, 4)),
        gate_dim=4,
        group="cluster",
    ),
    "cesaa": CesaaConfig(inputs=INPUTS, num_experts=4, expert_widths=(12, 8), tower_widths=(6,)),
    "cesaa_domain_gate": CesaaConfig(
        inputs=INPUTS,
        num_experts=3,
        top_k=1,
        expert_widths=(12, 10, 8),
        fusion="concat",
        gate_input="domain",
        expert_input="features+domain",
        mi_prior="uniform",
        batch_norm=True,
    ),
    "cesaa_routed_only": CesaaConfig(
        inputs=INPUTS, num_experts=3, top_k=3, expert_widths=(12,), tower_widths=(), shared_expert=False
    ),
    "deepfm": DeepFmConfig(inputs=INPUTS, num_factors=4, deep_widths=(12, 8)),
    "dcnv2": Dcnv2Config(inputs=INPUTS, num_cross_layers=2, cross_rank=4, deep_widths=(12, 8)),
}


def fresh_model(name: str, schema: FeatureSchema) -> CtrModel:
    """A model as built; `*_clusters` ones put every second domain into tower 1."""
    clusters = [d % 2 for d in range(schema.num_domains + 1)] if name.endswith("clusters") else None
    return build_model(MODELS[name], schema, clusters)


def trained_model(name: str, schema: FeatureSchema, *, seed: int = 0) -> CtrModel:
    """A model whose weights and BatchNorm statistics are no longer the initial ones."""
    torch.manual_seed(seed)
    model = fresh_model(name, schema)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for _ in range(3):
            model(random_batch(schema, 32, seed=seed))
    return model.eval()


def random_batch(schema: FeatureSchema, num_rows: int, *, seed: int) -> TensorBatch:
    """B rows with random pairs and domains, the unknown one among them."""
    random = np.random.default_rng(seed)
    blocks = {e: random_block(schema, e, num_rows, seed=seed + i) for i, e in enumerate(Entity)}
    width = sum(schema.pair_width(p) for p in schema.pairs)
    return TensorBatch(
        user_ints=torch.from_numpy(blocks[Entity.USER].ints),
        user_floats=torch.from_numpy(blocks[Entity.USER].floats),
        context_ints=torch.from_numpy(blocks[Entity.CONTEXT].ints),
        context_floats=torch.from_numpy(blocks[Entity.CONTEXT].floats),
        item_ints=torch.from_numpy(blocks[Entity.ITEM].ints),
        item_floats=torch.from_numpy(blocks[Entity.ITEM].floats),
        pairs=torch.from_numpy(random.normal(size=(num_rows, width)).astype(np.float32)),
        domain=torch.from_numpy(random.integers(0, schema.num_domains + 1, num_rows)),
    )


def scoring_graph(name: str, schema: FeatureSchema, *, seed: int = 0) -> ScoringGraph:
    """A scoring graph with distinct calibrators per domain."""
    num_rows = schema.num_domains + 1
    calibrators = CalibratorTable(
        scale=np.linspace(0.7, 1.3, num_rows, dtype=np.float32),
        bias=np.linspace(-0.5, 0.5, num_rows, dtype=np.float32),
    )
    return ScoringGraph(trained_model(name, schema, seed=seed), schema, calibrators)


def row_sampler(schema: FeatureSchema, *, seed: int = 0) -> RowSampler:
    """Draws from 40 random rows of each entity."""
    user, item, context = (random_block(schema, e, 40, seed=seed + i) for i, e in enumerate(Entity))
    return RowSampler(schema, Snapshot(user=user, item=item, context=context), seed=seed)
