"""Multiply-adds of AREAD by part, against sums by hand, published sizes and the modules' own weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from torch import nn

from tests.support.models import fresh_model, trained_model
from tests.support.schemas import full_schema
from training.models.aread import Aread
from training.models.aread_cost import AreadSizes, folded_ratio, saved_ratio, served_cost, trained_cost
from training.models.mask import PyramidMask, PyramidShape, random_mask

SCHEMA = full_schema()
# 23 fields of width 32, base of 4 experts 256-128-64, pyramid 3/6/12.
PUBLISHED = AreadSizes(
    input_width=736,
    num_base_experts=4,
    base_expert_macs=736 * 256 + 256 * 128 + 128 * 64,
    gates_read_features=True,
    base_width=64,
    shape=PyramidShape((3, 6, 12)),
    expert_widths=((64, 32), (32, 16), (16, 8)),
    num_cross_layers=3,
    gate_dim=32,
)


def test_the_published_sizes_cost_what_their_parts_add_up_to():
    """The base has 917,504 of 980,928 multiply-adds when the cross network is run layer by layer."""
    cost = trained_cost(PUBLISHED)
    assert cost.base_experts == 917_504
    assert cost.pyramid_experts == 32_256
    assert cost.pyramid_mixing + cost.gate_layers + cost.heads == 16_416
    assert cost.base_gates + cost.base_mixing + 2 * cost.cross + cost.linear == 14_752
    assert cost.total + cost.cross == 980_928
    assert served_cost(PUBLISHED).total == cost.total - cost.gate_layers


def test_a_mask_saves_its_dead_experts_heads_mixing_and_base_gates():
    """One expert a level: a path; by hand. Masks over the base leave one expert of it too."""
    arrays = [np.zeros(size, dtype=np.bool_) for size in PUBLISHED.shape.edge_shapes]
    for array in arrays:
        array[0, 0] = True
    left = served_cost(PUBLISHED, PyramidMask.from_arrays(PUBLISHED.shape, arrays))
    assert left.base_experts == 917_504
    assert left.base_gates == 736 * 4
    assert left.base_mixing == 4 * 64
    assert left.pyramid_experts == 64 * 64 + 64 * 32 + 32 * 32 + 32 * 16 + 16 * 16 + 16 * 8
    assert left.pyramid_mixing == 32 + 16
    assert left.heads == 736 + 8

    shape = PyramidShape((3, 6, 12), base_width=4)
    arrays = [np.zeros(size, dtype=np.bool_) for size in shape.edge_shapes]
    for array in arrays:
        array[0, 0] = True
    wider = replace(PUBLISHED, shape=shape)
    assert served_cost(wider, PyramidMask.from_arrays(shape, arrays)).base_experts == 917_504 // 4


def test_the_full_mask_saves_nothing():
    assert saved_ratio(PUBLISHED, PyramidMask.full(PUBLISHED.shape)) == 0


@pytest.mark.parametrize(
    ("kept", "mlp", "saved"), [(0.5, 0.954, 0.0019), (0.3, 0.796, 0.010), (0.1, 0.387, 0.032)]
)
def test_random_masks_save_next_to_nothing_of_the_published_sizes(kept: float, mlp: float, saved: float):
    """A second simulation, of 600 masks, found these shares of pyramid MLPs left and of the model saved."""
    rng = np.random.default_rng(1)
    whole = trained_cost(PUBLISHED)
    masks = [random_mask(PUBLISHED.shape, kept, rng) for _ in range(60)]
    costs = [served_cost(PUBLISHED, mask) for mask in masks]
    left = np.mean([cost.pyramid_experts / whole.pyramid_experts for cost in costs])
    gone = np.mean(
        [
            (whole.pyramid_experts + whole.heads + whole.base_gates)
            - (cost.pyramid_experts + cost.heads + cost.base_gates)
            for cost in costs
        ]
    )
    assert left == pytest.approx(mlp, abs=0.05)
    assert gone / 980_928 == pytest.approx(saved, rel=0.25, abs=0.0005)


@pytest.mark.parametrize("name", ["aread", "aread_base_masks", "aread_ple_clusters"])
def test_sizes_of_a_model_are_those_of_its_weights(name: str):
    """Matrix entries of experts, heads and cross network, counted on the parameters."""
    model = fresh_model(name, SCHEMA)
    ranker = model.ranker
    assert isinstance(ranker, Aread)
    cost = trained_cost(AreadSizes.of(ranker))

    def entries(part: nn.Module) -> int:
        return sum(p.numel() for k, p in part.named_parameters() if p.ndim > 1 and k.endswith("weight"))

    width = model.inputs.request_width + model.inputs.row_width
    assert cost.base_experts + cost.base_gates == entries(ranker.base)
    assert cost.pyramid_experts == entries(ranker.expert_pyramid.levels)
    assert cost.gate_layers == entries(ranker.gates.layers)
    assert cost.heads == ranker.expert_pyramid.head.numel() + ranker.cross.num_heads * width
    assert cost.cross == ranker.cross.num_layers * width
    assert cost.linear == width


def test_the_domain_s_share_of_first_layers():
    """4 columns in the first layers of 3 experts of 12, 9 gates, 3 cross layers, 12 heads, 1 linear term."""
    ranker = trained_model("aread", SCHEMA).ranker
    assert isinstance(ranker, Aread)
    columns = 4 * (36 + 9 + 3 + 12 + 1)
    total = served_cost(AreadSizes.of(ranker)).total
    assert folded_ratio(ranker, 4) == pytest.approx(columns / total)


def test_a_frozen_model_has_no_sizes():
    ranker = trained_model("aread", SCHEMA).ranker.for_inference()
    assert isinstance(ranker, Aread)
    with pytest.raises(TypeError, match="inference form no longer says how its experts are cut"):
        AreadSizes.of(ranker)
