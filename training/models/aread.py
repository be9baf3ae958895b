"""AREAD: a pyramid of experts over a shared base; each domain uses its own sub-network of it.

    z_j = w_j . [cross(E); h_j] + linear(E)       heads, one per expert of the highest level
    p   = mean of sigmoid(z_j) over the heads that the domain's mask reads out

Domains differ in their masks and in the gates between levels, which depend on the domain alone. Invariant: in
evaluation mode the logit of a row is that of p for the row's own domain, whatever other rows there are.

Source: AREAD, arXiv 2412.11905, section HEI, and the authors' published code where the paper is silent.
We differ in leaving out its unused attention branch, in adding a bias per domain to the logit, in the one
gate embedding of unknown domains (the domains' mean), and, as an option, in masking base experts too.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from training.models.aread_base import BaseReading, PyramidBase
from training.models.base import Heads, Ranker, Sides, at_rows
from training.models.cross_heads import CrossHeads, FrozenCrossHeads
from training.models.fold import fold_batch_norm
from training.models.mask import PyramidMask, PyramidShape
from training.models.pyramid import FrozenPyramid, Pyramid, mean_logit, mean_logit_of_sums
from training.models.pyramid_gates import DomainGates, FrozenGates, GateRows, GateTables


class AreadReading(NamedTuple):
    """What N rows give before any mask or gate by domain has a say.

    Attributes:
        base: Of the base model.
        shared: (N, N_L) float32, cross network, linear term and bias of the domain in each head's logit.
    """

    base: BaseReading
    shared: Tensor


class Aread(Ranker):
    """Base, gates, pyramid, heads.

    Args:
        base: Gives the inputs of level 0.
        gates: Between levels, with the masks.
        pyramid: Its levels fit `gates.shape`.
        cross: Cross network and linear term of each head.
    """

    def __init__(self, *, base: PyramidBase, gates: DomainGates, pyramid: Pyramid, cross: CrossHeads) -> None:
        super().__init__()
        self.base = base
        self.gates: DomainGates | FrozenGates = gates
        self.expert_pyramid: Pyramid | FrozenPyramid = pyramid
        self.cross: CrossHeads | FrozenCrossHeads = cross
        self.domain_bias = nn.Embedding(gates.num_domains + 1, 1)
        nn.init.zeros_(self.domain_bias.weight)

    def forward(self, sides: Sides) -> Tensor:
        """Logits (N,) float32."""
        rows: GateRows = self.gates(sides.domain, sides.request_index)
        logits = self.head_logits(self.read(sides), rows).float()
        if isinstance(self.gates, FrozenGates):
            return mean_logit_of_sums(logits, rows.log_heads.exp())
        return mean_logit(logits, rows.log_heads)

    def with_heads(self, sides: Sides) -> tuple[Tensor, Heads | None]:
        """Logits (N,), and the heads of each row's domain; no heads while masks do not count."""
        rows: GateRows = self.gates(sides.domain, sides.request_index)
        logits = self.head_logits(self.read(sides), rows).float()
        training_each = isinstance(self.gates, DomainGates) and self.gates.masks_count
        heads = Heads(logits, rows.log_heads.exp()) if training_each else None
        return mean_logit(logits, rows.log_heads), heads

    def read(self, sides: Sides) -> AreadReading:
        """Run what no mask has a say in."""
        bias = at_rows(self.domain_bias(sides.domain), sides.request_index)
        return AreadReading(self.base.read(sides), self.cross(sides) + bias)

    def head_logits(self, reading: AreadReading, rows: GateRows) -> Tensor:
        """Logits (N, N_L) of all heads, those that are left out among them."""
        out: Tensor = self.expert_pyramid(self.base.mix(reading.base, rows.base), rows.mixers, reading.shared)
        return out

    def for_inference(self) -> Aread:
        """A copy with constant tables by domain in the place of gates and masks, normalisation folded."""
        own = copy.deepcopy(self).eval()
        fold_batch_norm(own)
        own.gates = self.own_gates.freeze()
        if isinstance(own.expert_pyramid, Pyramid):
            own.expert_pyramid = own.expert_pyramid.freeze()
        if isinstance(own.cross, CrossHeads):
            own.cross = own.cross.freeze()
        return own

    @property
    def own_gates(self) -> DomainGates:
        """Gates and masks of a model that is not in inference form."""
        if isinstance(self.gates, FrozenGates):
            raise TypeError("a model in inference form has tables, no gates and masks")
        return self.gates

    @property
    def shape(self) -> PyramidShape:
        """Of the pyramid and its masks."""
        return self.own_gates.shape

    @property
    def masks(self) -> tuple[PyramidMask, ...]:
        """Masks of the D domains and of unknown ones."""
        return self.own_gates.masks

    def set_masks(self, masks: Mapping[int, PyramidMask]) -> None:
        """Replace the masks of some domains, by domain index.

        Raises:
            MaskError: A domain that has no mask of its own, or a mask that does not fit.
        """
        self.own_gates.set_masks(masks)

    def use_masks(self, *, wanted: bool) -> None:
        """Say whether masks count; until they do, the loss is that of the mean of all heads."""
        self.own_gates.use_masks(wanted=wanted)

    def experts_kept(self) -> tuple[tuple[str, ...], ...]:
        """Experts that each of D + 1 masks uses: `0.2` is the third of level 0, `base.1` of the base."""
        levels = [*(["base"] if self.shape.base_width else []), *map(str, range(len(self.shape.widths)))]
        return tuple(
            tuple(
                f"{level}.{expert}"
                for level, used in zip(levels, mask.used, strict=True)
                for expert in used.nonzero()[0].tolist()
            )
            for mask in self.masks
        )

    def gate_tables(self) -> GateTables:
        """Masked gates and head weights of the D + 1 domains."""
        return self.own_gates.tables()
