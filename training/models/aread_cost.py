"""Multiply-adds of an AREAD model by part, and what is left of them for one mask.

Counts one row through everything: the request half of first layers too, which a graph runs once a request.
Invariant: what masks save is what an exported graph can physically leave out, namely experts that nothing
reads, their heads, their mixing and the base gates that feed them; an edge alone saves nothing.

Letters: I width of the inputs, C cross layers, N_l experts of level l.

Source: AREAD, arXiv 2412.11905, section HEI. The cross network is counted as `cross_heads.py` runs it, C I
multiply-adds; run layer by layer it takes 2 C I.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from training.models.aread import Aread
from training.models.aread_base import MmoeBase
from training.models.layers import ExpertStack, TwoSidedLinear
from training.models.mask import PyramidMask, PyramidShape
from training.models.pyramid import Pyramid


class AreadCost(NamedTuple):
    """Multiply-adds of one row.

    Attributes:
        base_experts: Of the base, a PLE base as a whole.
        base_gates: Gates over base experts that read features.
        base_mixing: Mixtures that feed level 0.
        pyramid_experts: MLPs of all levels.
        pyramid_mixing: Between levels.
        gate_layers: Gates by domain; 0 in a graph, which holds them as constants.
        heads: On the cross network's output and the last level.
        cross: Cross network.
        linear: Linear term.
    """

    base_experts: int
    base_gates: int
    base_mixing: int
    pyramid_experts: int
    pyramid_mixing: int
    gate_layers: int
    heads: int
    cross: int
    linear: int

    @property
    def total(self) -> int:
        """All parts."""
        return sum(self)


@dataclass(frozen=True)
class AreadSizes:
    """What the cost depends on.

    Attributes:
        input_width: I.
        num_base_experts: E; 0 where nothing of the base can be left out.
        base_expert_macs: Of one base expert; of the whole base where E is 0.
        gates_read_features: Whether base gates read all inputs.
        base_width: Of a mixture.
        shape: Of pyramid and masks.
        expert_widths: Hidden widths of each level's experts.
        num_cross_layers: C.
        gate_dim: Width of the embeddings that gates by domain read.
    """

    input_width: int
    num_base_experts: int
    base_expert_macs: int
    gates_read_features: bool
    base_width: int
    shape: PyramidShape
    expert_widths: tuple[tuple[int, ...], ...]
    num_cross_layers: int
    gate_dim: int

    @classmethod
    def of(cls, ranker: Aread) -> AreadSizes:
        """Of a model that is not in inference form."""
        base, products, pyramid = ranker.base, ranker.cross.products, ranker.expert_pyramid
        if not isinstance(pyramid, Pyramid):
            raise TypeError("a model in inference form no longer says how its experts are cut")
        width = products.request.in_features + products.row.in_features
        levels = [stack for stack in pyramid.levels if isinstance(stack, ExpertStack)]
        if isinstance(base, MmoeBase):
            expert_macs = mlp_macs((width, *base.experts.widths))
        else:
            matrices = [p for name, p in base.named_parameters() if name.endswith("weight") and p.ndim > 1]
            expert_macs = sum(matrix.numel() for matrix in matrices)
        return cls(
            input_width=width,
            num_base_experts=base.num_experts if isinstance(base, MmoeBase) else 0,
            base_expert_macs=expert_macs,
            gates_read_features=isinstance(base, MmoeBase) and base.gates is not None,
            base_width=base.out_width,
            shape=ranker.shape,
            expert_widths=tuple(stack.widths for stack in levels),
            num_cross_layers=ranker.cross.num_layers,
            gate_dim=ranker.own_gates.domain.shape[1],
        )


def mlp_macs(widths: Sequence[int]) -> int:
    """Multiply-adds of an MLP from its input width on."""
    return sum(inner * outer for inner, outer in pairwise(widths))


def trained_cost(sizes: AreadSizes) -> AreadCost:
    """Of the model as trained: every expert, and the layers of gates by domain."""
    pairs = sum(below * above for below, above in pairwise(sizes.shape.widths))
    if sizes.num_base_experts and not sizes.gates_read_features:
        pairs += sizes.num_base_experts * sizes.shape.widths[0]
    return served_cost(sizes)._replace(gate_layers=2 * sizes.gate_dim * pairs)


def served_cost(sizes: AreadSizes, mask: PyramidMask | None = None) -> AreadCost:
    """Of a graph with constant gates that holds what one mask uses; None for all of it."""
    used = sizes.shape.levels if mask is None else mask.num_used
    num_base, levels = sizes.num_base_experts, used
    if sizes.shape.base_width:
        num_base, levels = used[0], used[1:]
    gates = sizes.num_base_experts * sizes.input_width if sizes.gates_read_features else 0
    outs = [widths[-1] for widths in sizes.expert_widths]
    inner = [sizes.base_width, *outs]
    return AreadCost(
        base_experts=sizes.base_expert_macs * (num_base if sizes.num_base_experts else 1),
        base_gates=levels[0] * gates,
        base_mixing=levels[0] * num_base * sizes.base_width,
        pyramid_experts=sum(
            count * mlp_macs((below, *widths))
            for count, below, widths in zip(levels, inner, sizes.expert_widths, strict=False)
        ),
        pyramid_mixing=sum(
            below * above * width for (below, above), width in zip(pairwise(levels), outs, strict=False)
        ),
        gate_layers=0,
        heads=levels[-1] * (sizes.input_width + outs[-1]),
        cross=sizes.num_cross_layers * sizes.input_width,
        linear=sizes.input_width,
    )


def saved_ratio(sizes: AreadSizes, mask: PyramidMask) -> float:
    """Share of the multiply-adds of a graph of all domains that a graph of this mask does without."""
    return 1 - served_cost(sizes, mask).total / served_cost(sizes).total


def folded_ratio(ranker: Aread, domain_dim: int) -> float:
    """Share of them that the domain embedding takes in first layers, constant in a graph of one domain."""
    sides = [part for part in ranker.modules() if isinstance(part, TwoSidedLinear)]
    columns = sum(part.request.out_features for part in sides) * domain_dim
    return columns / served_cost(AreadSizes.of(ranker)).total
