"""Many candidates of a pyramid at once: stacked parameters, stacked masks, cached readings of the base.

Reads an `Aread` ranker; writes nothing to it. What no mask has a say in (embeddings, base experts, cross
network, linear term) is read once per row and shared by all candidates of the row's domain. Invariant: a
candidate's heads are those of the ranker itself with the candidate's mask and parameters, up to rounding.

Letters: n domains, Z candidates of each, N rows of each, H heads, X edges, L levels above the lowest, E base
experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from training.clustering.lookahead_model import LabelledRows
from training.masks.errors import MaskSearchError
from training.models.aread import Aread
from training.models.aread_base import BaseReading
from training.models.base import CtrModel
from training.models.layers import ExpertStack
from training.models.pyramid import Pyramid
from training.models.pyramid_gates import table_rows

GATES, PYRAMID = "gates.", "expert_pyramid."
TUNED = (GATES, PYRAMID)
"""What the names of a candidate's own parameters start with."""

DOMAIN = "gates.domain"
CLUSTERS = "gates.cluster_of_domain"
IN_USE = "gates.masks_in_use"


@dataclass(frozen=True, eq=False)
class CachedRows:
    """Rows of n domains as a pyramid reads them.

    Attributes:
        values: (n, E, N, w) float32, outputs of base experts, or (n, N_0, N, w) mixtures.
        shared: (n, N, H) float32, the part of each head's logit that no mask has a say in.
        labels: (n, N) float32, 0 or 1.
        gates: (n, N, N_0, E) float32, gates over base experts that read features; None where there are none.
    """

    values: Tensor
    shared: Tensor
    labels: Tensor
    gates: Tensor | None

    def part(self, rows: slice) -> CachedRows:
        """Some rows of every domain, as views."""
        gates = None if self.gates is None else self.gates[:, rows]
        return CachedRows(self.values[:, :, rows], self.shared[:, rows], self.labels[:, rows], gates)

    def base_gates(self) -> Tensor | None:
        """(n, E, N_0) mean gates over base experts; None where they do not read features."""
        return None if self.gates is None else self.gates.mean(dim=1).mT


def cached(model: CtrModel, ranker: Aread, rows: LabelledRows) -> CachedRows:
    """Run all but the pyramid on as many rows of each domain; without a graph.

    Args:
        model: In evaluation mode.
        ranker: The model's.
        rows: Of n domains, N of each.
    """
    n = rows.num_domains
    with torch.no_grad():
        sides, _ = model.sides(rows.inputs)
        reading = ranker.read(sides)

    def by_domain(values: Tensor) -> Tensor:
        return values.reshape(n, -1, *values.shape[1:])

    gates = reading.base.gates
    return CachedRows(
        by_domain(reading.base.values).transpose(1, 2).contiguous(),
        by_domain(reading.shared.float()),
        by_domain(rows.labels),
        None if gates is None else by_domain(gates),
    )


class StackedTables(NamedTuple):
    """Gates of candidates in closed form; leading axes go over candidates.

    Attributes:
        base: (.., N_0, E) weights over base experts by domain, or the 0 and 1 of the mask; empty for none.
        mixers: (.., N_l, N_{l-1}) masked gates of each level above the lowest.
        log_heads: (.., H) logarithms of the heads' weights.
        gates: (.., N_{l-1}, N_l) gates before masking, first those over the base where they go by domain.
    """

    base: tuple[Tensor, ...]
    mixers: tuple[Tensor, ...]
    log_heads: Tensor
    gates: tuple[Tensor, ...]


class CandidateTables(nn.Module):
    """Gates and masked tables of one candidate, in closed form; parameters are named as in the ranker.

    The gates' embeddings hold one domain only: row 0 stands for the candidate's own.
    """

    def __init__(self, ranker: Aread) -> None:
        super().__init__()
        self.gates = ranker.own_gates

    def forward(self, bits: Tensor) -> StackedTables:
        """For a mask (X,); every tensor has a first axis of 1."""
        first = torch.zeros(1, dtype=torch.int64, device=bits.device)
        row = bits.unsqueeze(0)
        table = table_rows(self.gates.tables(first, row))
        base = () if table.base is None else (table.base,)
        return StackedTables(base, table.mixers, table.log_heads, self.gates.gates(first, row))


class CandidateStack:
    """Z candidates for each of n domains, with parameters of their own.

    Args:
        ranker: In evaluation mode.
        domains: (n,) int64 domain indices.
        num_candidates: Z.

    Attributes:
        parameters: Leaves (n, Z, *shape) by name in the ranker, all equal to the ranker's at first.
    """

    def __init__(self, ranker: Aread, domains: Tensor, num_candidates: int) -> None:
        self._tables = CandidateTables(ranker)
        self._base = ranker.base
        self._pyramid = own_pyramid(ranker)
        n = len(domains)
        self._fixed = {IN_USE: torch.ones((), dtype=torch.bool, device=domains.device)}
        self._by_domain: dict[str, Tensor] = {}
        if ranker.own_gates.cluster is not None:
            table = ranker.own_gates.get_buffer("cluster_of_domain").index_select(0, domains)
            self._by_domain[CLUSTERS] = table.unsqueeze(1).expand(n, 2)
        self.parameters: dict[str, Tensor] = {}
        for name, parameter in ranker.named_parameters():
            if not name.startswith(TUNED):
                continue
            value = parameter.detach()
            if name == DOMAIN:
                own = value.index_select(0, domains).reshape(n, 1, 1, -1)
            else:
                own = value.reshape(1, 1, *value.shape)
            stacked = own.expand(n, num_candidates, *own.shape[2:]).clone()
            self.parameters[name] = stacked.requires_grad_()

    def heads(self, bits: Tensor, rows: CachedRows) -> tuple[Tensor, Tensor]:
        """Logits (n, Z, H, N) and log weights (n, Z, H) of masks (n, Z, X) on rows of the n domains."""
        table = self._read_tables(bits)
        shared = rows.shared.mT.unsqueeze(1)
        parameters = {
            name.removeprefix(PYRAMID): p for name, p in self.parameters.items() if name.startswith(PYRAMID)
        }
        logits = pyramid_logits(self._pyramid, parameters, self._inputs(table, rows), table.mixers)
        return logits + shared, table.log_heads

    def gates(self, bits: Tensor) -> tuple[Tensor, ...]:
        """Gates (n, Z, N_{l-1}, N_l) before masking, without a graph; first those over the base by domain."""
        with torch.no_grad():
            return self._read_tables(bits).gates

    def _read_tables(self, bits: Tensor) -> StackedTables:
        def one(parameters: dict[str, Tensor], mine: Tensor, own: dict[str, Tensor]) -> StackedTables:
            everything = {**parameters, **own, **self._fixed}
            found: StackedTables = functional_call(self._tables, everything, (mine,))
            return found

        mine = {name: p for name, p in self.parameters.items() if name.startswith(GATES)}
        found = vmap(vmap(one, in_dims=(0, 0, None)))(mine, bits, self._by_domain)
        return StackedTables(
            base=tuple(level.squeeze(2) for level in found.base),
            mixers=tuple(level.squeeze(2) for level in found.mixers),
            log_heads=found.log_heads.squeeze(2),
            gates=tuple(level.squeeze(2) for level in found.gates),
        )

    def _inputs(self, table: StackedTables, rows: CachedRows) -> Tensor:
        """Inputs of level 0, (n, Z or 1, N_0, N, w): one for all candidates where no mask mixes the base."""
        values = rows.values.unsqueeze(1)
        if rows.gates is None:
            return _mixed(table.base[0], values) if table.base else values
        weights = table.base[0].unsqueeze(2) if table.base else None
        reading = BaseReading(values.transpose(2, 3), rows.gates.unsqueeze(1))
        return self._base.mix(reading, weights).transpose(2, 3)


def own_pyramid(ranker: Aread) -> Pyramid:
    """The pyramid of a ranker that is not in inference form.

    Raises:
        MaskSearchError: It is.
    """
    if not isinstance(ranker.expert_pyramid, Pyramid):
        kind = type(ranker.expert_pyramid).__name__
        raise MaskSearchError(f"a ranker with a {kind}; a model in inference form has no masks to search")
    return ranker.expert_pyramid


def pyramid_logits(
    pyramid: Pyramid, parameters: dict[str, Tensor], x: Tensor, mixers: Sequence[Tensor]
) -> Tensor:
    """A pyramid in evaluation mode with stacked parameters, experts before rows; heads without shared part.

    Normalisation is folded into the affine map before it, so that it costs nothing per row, and mixing is one
    product over all rows and units. Outputs are those of `Pyramid.forward`, up to rounding.

    Args:
        pyramid: Gives the layout and the running statistics.
        parameters: (n, Z, *shape) by name in the pyramid.
        x: (n, Z, N_0, N, w), or (n, 1, N_0, N, w).
        mixers: (n, Z, N_l, N_{l-1}) for l = 1..L.

    Returns:
        (n, Z, H, N).
    """
    for number, stack in enumerate(_levels(pyramid)):
        if number:
            x = _mixed(mixers[number - 1], x)
        linears = ["first", *(f"linears.{i}" for i in range(len(stack.linears)))]
        for place, linear in enumerate(linears):
            name = f"levels.{number}.{linear}"
            weight, bias = parameters[f"{name}.weight"], parameters[f"{name}.bias"]
            norm = stack.activations[place].get_submodule("norm")
            if isinstance(norm, nn.BatchNorm1d):
                own = f"levels.{number}.activations.{place}.norm"
                shape = (norm, parameters[f"{own}.weight"], parameters[f"{own}.bias"], bias.shape)
                scale, shift = _folded(*shape)
                weight, bias = weight * scale.unsqueeze(-2), bias * scale + shift
            x = torch.relu(torch.matmul(x, weight) + bias.unsqueeze(-2))
    logits: Tensor = torch.matmul(x, parameters["head"].unsqueeze(-1)).squeeze(-1)
    return logits


def _mixed(weights: Tensor, x: Tensor) -> Tensor:
    """Means (n, Z, above, N, w) by weights (n, Z, above, below) of x (n, Z or 1, below, N, w)."""
    mixed = torch.matmul(weights, x.flatten(3))
    return mixed.reshape(*mixed.shape[:3], *x.shape[3:])


def _levels(pyramid: Pyramid) -> list[ExpertStack]:
    return [level for level in pyramid.levels if isinstance(level, ExpertStack)]


def _folded(norm: nn.BatchNorm1d, gamma: Tensor, beta: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Scale and shift (n, Z, experts, units) that a layer with running statistics comes to."""
    mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    scale = gamma / (variance + norm.eps).sqrt()
    return scale.reshape(shape), (beta - scale * mean).reshape(shape)
