"""The parts of an AREAD model that some of its domains use, everything else physically removed.

Reads masks and gates; gives small copies in inference form. Invariant: what is left out never counted in a
logit of these domains, so the logits of the parts are those of the whole, up to rounding.

Source: AREAD, arXiv 2412.11905, sections HEI and HEMP; removing what masks leave out is ours.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from training.models.aread import Aread
from training.models.aread_base import BaseReading, MmoeBase, PyramidBase
from training.models.base import Sides
from training.models.cross_heads import CrossHeads, FrozenCrossHeads
from training.models.fold import fold_batch_norm
from training.models.layers import ExpertStack
from training.models.pyramid import Pyramid
from training.models.pyramid_gates import FrozenGates, GateRows, table_rows
from training.models.slicing import blocks, keep_experts, keep_rows


@dataclass(frozen=True)
class UsedExperts:
    """Experts that at least one of some domains uses.

    Attributes:
        base: Of the base; None where masks do not reach it and all are used.
        levels: Of each level of the pyramid, at least one each.
    """

    base: tuple[int, ...] | None
    levels: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class AreadParts:
    """Parts of a model in evaluation mode, normalisation folded.

    Attributes:
        base: Gives the inputs of the kept experts of level 0.
        rows: Gates of C domains over the kept experts.
        pyramid: Kept experts and heads.
        cross: Kept heads.
        bias: Of the D + 1 domains, (D + 1, 1).
    """

    base: PyramidBase
    rows: GateRows
    pyramid: Pyramid
    cross: FrozenCrossHeads
    bias: nn.Embedding


class KeptMmoeBase(PyramidBase):
    """Some experts and mixtures of a base whose gates read features.

    The softmax still goes over all E experts: what the masks take away counts in its sum.

    Args:
        base: The whole, normalisation folded.
        experts: Which experts are run.
        inputs: Which mixtures are made.
    """

    def __init__(self, base: MmoeBase, *, experts: Sequence[int], inputs: Sequence[int]) -> None:
        super().__init__()
        if base.gates is None:
            raise TypeError("a base gated by domain has no gates that read features")
        self.out_width = base.out_width
        self.num_experts = base.num_experts
        self.num_inputs = len(inputs)
        self.drops_experts = len(experts) < base.num_experts
        self.experts = keep_experts(base.experts, experts)
        self.gates = keep_rows(base.gates, blocks(inputs, base.num_experts))
        self.register_buffer("kept", torch.tensor(experts))

    def read(self, sides: Sides) -> BaseReading:
        """Kept experts, and their share of the softmax gates."""
        values = self.experts(sides)
        gates = self.gates(sides).reshape(values.shape[0], self.num_inputs, self.num_experts)
        gates = torch.softmax(gates, dim=-1)
        return BaseReading(
            values, gates.index_select(2, self.get_buffer("kept")) if self.drops_experts else gates
        )


class KeptInputs(PyramidBase):
    """Some mixtures of a base that makes all of them.

    Args:
        base: The whole.
        inputs: Which mixtures are handed on.
    """

    def __init__(self, base: PyramidBase, *, inputs: Sequence[int]) -> None:
        super().__init__()
        self.out_width = base.out_width
        self.base = base
        self.register_buffer("kept", torch.tensor(inputs))

    def read(self, sides: Sides) -> BaseReading:
        """The chosen mixtures."""
        reading = self.base.read(sides)
        return BaseReading(reading.values.index_select(1, self.get_buffer("kept")), None)


def used_experts(ranker: Aread, domains: Sequence[int]) -> UsedExperts:
    """Union over domains, D for the unknown one; everything as long as masks do not count."""
    shape = ranker.shape
    if ranker.own_gates.masks_count:
        masks = [ranker.masks[domain].used for domain in domains]
        used = [np.logical_or.reduce(level) for level in zip(*masks, strict=True)]
    else:
        used = [np.ones(count, dtype=np.bool_) for count in shape.levels]
    levels = tuple(tuple(level.nonzero()[0].tolist()) for level in used)
    return UsedExperts(levels[0], levels[1:]) if shape.base_width else UsedExperts(None, levels)


def drops_experts(ranker: Aread, domains: Sequence[int]) -> bool:
    """Whether these domains leave any expert unused."""
    used = used_experts(ranker, domains)
    counts = tuple(len(level) for level in ((used.base or ()), *used.levels))
    return counts != (ranker.shape.base_width, *ranker.shape.widths)


@torch.no_grad()
def used_parts(ranker: Aread, domains: Sequence[int]) -> AreadParts:
    """Parts that some domains use, in evaluation mode.

    Args:
        ranker: As trained, not in inference form.
        domains: Indices, D for the unknown domain.
    """
    own = copy.deepcopy(ranker).eval()
    fold_batch_norm(own)
    used = used_experts(own, domains)
    if not isinstance(own.expert_pyramid, Pyramid) or not isinstance(own.cross, CrossHeads):
        raise TypeError("a model in inference form has no parts to take")
    return AreadParts(
        base=_base(own.base, used),
        rows=_rows(table_rows(own.own_gates.tables(torch.tensor(domains))), used),
        pyramid=_pyramid(own.expert_pyramid, used.levels),
        cross=_cross(own.cross.freeze(), used.levels[-1]),
        bias=own.domain_bias,
    )


@torch.no_grad()
def of_domains(ranker: Aread, domains: Sequence[int]) -> Aread:
    """A model in inference form that scores some domains; rows of others get no finite logit."""
    parts = used_parts(ranker, domains)
    row_of_domain = torch.full((ranker.own_gates.num_domains + 1,), len(domains))
    row_of_domain[torch.tensor(domains)] = torch.arange(len(domains))
    own = copy.deepcopy(ranker).eval()
    own.base = parts.base
    own.gates = FrozenGates(_with_refusal(parts.rows), row_of_domain)
    own.expert_pyramid = parts.pyramid.freeze()
    own.cross = parts.cross
    return own


def _with_refusal(rows: GateRows) -> GateRows:
    """One more row, for all other domains: nan, which the service never takes for a score."""

    def longer(table: Tensor, value: float) -> Tensor:
        return torch.cat([table, torch.full_like(table[:1], value)])

    base = None if rows.base is None else longer(rows.base, 0.0)
    mixers = tuple(longer(mixer, 0.0) for mixer in rows.mixers)
    return GateRows(base, mixers, longer(rows.log_heads, torch.nan))


def _rows(rows: GateRows, used: UsedExperts) -> GateRows:
    levels = [torch.tensor(level) for level in used.levels]
    base = rows.base
    if base is not None:
        base = base.index_select(1, levels[0])
        base = base if used.base is None else base.index_select(2, torch.tensor(used.base))
    mixers = tuple(
        mixer.index_select(1, above).index_select(2, below)
        for mixer, below, above in zip(rows.mixers, levels, levels[1:], strict=False)
    )
    return GateRows(base, mixers, rows.log_heads.index_select(1, levels[-1]))


def _base(base: PyramidBase, used: UsedExperts) -> PyramidBase:
    if not isinstance(base, MmoeBase):
        return KeptInputs(base, inputs=used.levels[0])
    experts = tuple(range(base.num_experts)) if used.base is None else used.base
    if base.gates is not None:
        return KeptMmoeBase(base, experts=experts, inputs=used.levels[0])
    own = copy.deepcopy(base)
    own.num_experts = len(experts)
    own.experts = keep_experts(base.experts, experts)
    return own


def _pyramid(pyramid: Pyramid, levels: Sequence[Sequence[int]]) -> Pyramid:
    own = copy.deepcopy(pyramid)
    own.levels = nn.ModuleList(
        keep_experts(stack, kept)
        for stack, kept in zip(pyramid.levels, levels, strict=True)
        if isinstance(stack, ExpertStack)
    )
    own.head = nn.Parameter(pyramid.head.detach().index_select(0, torch.tensor(levels[-1])))
    return own


def _cross(cross: FrozenCrossHeads, heads: Sequence[int]) -> FrozenCrossHeads:
    layers = range(cross.num_layers)
    kept = [*layers, *(cross.num_layers + head for head in heads)]
    products = keep_rows(cross.products, [*kept, cross.num_layers + cross.num_heads])
    return FrozenCrossHeads(products, cross.get_buffer("offsets")[kept], cross.num_layers)
