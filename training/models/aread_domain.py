"""AREAD of one domain: no table, no gate layer, no mask, no domain index; only what the domain uses.

Mixing between levels is a constant matrix here, so it is multiplied into the layer that follows; the domain's
embedding and bias are folded into the biases of first layers and heads. Invariant: the logits are those of
the whole model for rows of the domain, up to rounding.

Source: AREAD, arXiv 2412.11905, section HEI; the form is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.models.aread import Aread
from training.models.aread_base import PyramidBase
from training.models.aread_parts import AreadParts, used_parts
from training.models.base import Ranker, Sides
from training.models.cross_heads import FrozenCrossHeads
from training.models.layers import ExpertStack
from training.models.pyramid import joined_heads, mean_logit_of_sums
from training.models.pyramid_groups import GroupedLevel
from training.models.slicing import fold_domain


class AreadOfDomain(Ranker):
    """Base, pyramid as plain layers, heads.

    Args:
        base: Two-sided maps without the domain's columns.
        base_rows: (1, N_0, E) float32 mask of gates that read features; None where all weights are folded.
        levels: From the flat values or mixtures of the base to the flat experts of the last level.
        head: From there to the (N_L,) heads.
        cross: Offsets with the domain's bias.
    """

    def __init__(
        self,
        *,
        base: PyramidBase,
        base_rows: Tensor | None,
        levels: nn.ModuleList,
        head: nn.Linear,
        cross: FrozenCrossHeads,
    ) -> None:
        super().__init__()
        self.base = base
        self.masks_base = base_rows is not None
        if base_rows is not None:
            self.register_buffer("base_rows", base_rows)
        self.levels = levels
        self.head = head
        self.cross = cross
        # Heads that are read out count alike.
        self.register_buffer("weights", torch.full((1, head.out_features), 1 / head.out_features))

    def forward(self, sides: Sides) -> Tensor:
        """Logits (N,) float32; `sides.request` comes without the domain embedding."""
        reading = self.base.read(sides)
        x = self.base.mix(reading, self.get_buffer("base_rows") if self.masks_base else None)
        x = x.reshape(x.shape[0], x.shape[1] * x.shape[2])
        for level in self.levels:
            x = level(x)
        logits = torch.addmm(self.cross(sides), x, self.head.weight.t())
        if self.head.out_features == 1:
            only: Tensor = logits.squeeze(1).float()
            return only
        return mean_logit_of_sums(logits.float(), self.get_buffer("weights"))


@torch.no_grad()
def of_one_domain(ranker: Aread, domain: int, vector: Tensor) -> AreadOfDomain:
    """A ranker of one domain.

    Args:
        ranker: As trained, not in inference form.
        domain: Index, D for the unknown domain.
        vector: (domain_dim,) float32 embedding of the domain, the last columns of what `ranker` reads.
    """
    parts = used_parts(ranker, (domain,))
    fold_domain(parts.base, vector)
    fold_domain(parts.cross, vector)
    cross = parts.cross
    offsets = cross.get_buffer("offsets").clone()
    offsets[cross.num_layers :] += parts.bias.weight[domain]
    by_domain = ranker.own_gates.gates_base
    return AreadOfDomain(
        base=parts.base,
        base_rows=None if by_domain else parts.rows.base,
        levels=_levels(parts, fold_base=by_domain),
        head=joined_heads(parts.pyramid.head),
        cross=FrozenCrossHeads(cross.products, offsets, cross.num_layers),
    )


def _levels(parts: AreadParts, *, fold_base: bool) -> nn.ModuleList:
    """The pyramid's levels as maps of flat rows, constant mixing in them."""
    lowest = parts.rows.base if fold_base else None
    mixers = [None if lowest is None else lowest[0], *(mixer[0] for mixer in parts.rows.mixers)]
    levels = nn.ModuleList()
    for stack, mixer in zip(parts.pyramid.levels, mixers, strict=True):
        if not isinstance(stack, ExpertStack):
            raise TypeError(f"a level of {type(stack).__name__}; expected ExpertStack")
        levels.append(GroupedLevel(stack, mixer))
    return levels
