"""Gates between the levels of an expert pyramid: one set of weights per domain, none per row.

Reads a domain's embedding and its mask. Invariant: gates depend on the domain alone, so for fixed parameters
they are constant tables with one row per domain, which is what an exported graph holds. Row D, for unknown
domains, has the mean of the domains' embeddings and always the full mask.

Letters: D domains, C rows of a table (a domain each), X edges of a mask.

Source: AREAD, arXiv 2412.11905, sections HEI and HEMP. We differ in giving gates their own domain embedding,
and in adding that of the domain's cluster to it where there are clusters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from training.models.base import at_rows
from training.models.mask import MaskError, PyramidMask, PyramidShape

NORMALISER_FLOOR = 1e-8
"""Added to the sum of a masked gate before dividing by it."""


class GateTables(NamedTuple):
    """Masked gates of C domains.

    Attributes:
        base: (C, E, N_0) float32 over base experts: weights where the base is gated by domain, else the 0
            or 1 of the mask; None where gates over base experts read features and are not masked.
        levels: (C, N_{l-1}, N_l) float32 for l = 1..L. A column sums to 1 (short of the floor in the
            normaliser), or is all 0 where the expert has no input.
        heads: (C, N_L) float32, equal over the heads that are read out, else 0; rows sum to 1.
    """

    base: Tensor | None
    levels: tuple[Tensor, ...]
    heads: Tensor


class GateRows(NamedTuple):
    """Gates as N rows read them.

    Attributes:
        base: (N, N_0, E) float32, or None as in `GateTables`.
        mixers: (N, N_l, N_{l-1}) float32 for l = 1..L.
        log_heads: (N, N_L) float32, logarithms of the heads' weights; -inf for heads that are left out.
    """

    base: Tensor | None
    mixers: tuple[Tensor, ...]
    log_heads: Tensor


class DomainGates(nn.Module):
    """Gate layers, domain and group embeddings, and the masks.

    Args:
        num_domains: D.
        shape: Of the pyramid; with a `base_width` masks reach down to the base experts.
        num_base_experts: E where gates over base experts go by domain, else 0.
        dim: Width of the embeddings.
        cluster_of_domain: (D + 1,) cluster of each domain, the last entry for unknown ones; None for none.
    """

    def __init__(
        self,
        *,
        num_domains: int,
        shape: PyramidShape,
        num_base_experts: int,
        dim: int,
        cluster_of_domain: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.num_domains = num_domains
        self.shape = shape
        self.gates_base = num_base_experts > 0
        self.domain = nn.Parameter(torch.randn(num_domains, dim) * 0.05)
        self.group = nn.Parameter(torch.randn(shape.widths[0], dim) * 0.05)
        self.cluster: nn.Embedding | None = None
        if cluster_of_domain is not None:
            self.register_buffer("cluster_of_domain", torch.tensor(cluster_of_domain))
            self.cluster = nn.Embedding(max(cluster_of_domain) + 1, dim)
            nn.init.normal_(self.cluster.weight, std=0.05)
        ends = (num_base_experts, *shape.widths) if self.gates_base else shape.widths
        self.layers = nn.ModuleList(nn.Linear(2 * dim, below * count) for below, count in pairwise(ends))
        self.sizes = tuple(pairwise(ends))
        self.register_buffer("mask_bits", torch.ones(num_domains + 1, shape.num_edges, dtype=torch.bool))
        self.register_buffer("masks_in_use", torch.ones((), dtype=torch.bool))

    @property
    def masks(self) -> tuple[PyramidMask, ...]:
        """Masks of the D domains and of unknown ones."""
        return tuple(PyramidMask(self.shape, row) for row in self.get_buffer("mask_bits").cpu().numpy())

    def set_masks(self, masks: Mapping[int, PyramidMask]) -> None:
        """Replace the masks of some domains.

        Raises:
            MaskError: A domain index that has no mask of its own, or a mask that is not tidied or is of
                another pyramid.
        """
        bits = self.get_buffer("mask_bits")
        for domain, mask in masks.items():
            if not 0 <= domain < self.num_domains:
                raise MaskError(
                    f"a mask for domain index {domain}; domains 0 to {self.num_domains - 1} have masks, "
                    "unknown ones always use every edge"
                )
            if mask.shape != self.shape:
                raise MaskError(
                    f"a mask of levels {mask.shape.levels} for domain index {domain}; the model has "
                    f"{self.shape.levels}"
                )
            if not mask.is_valid:
                raise MaskError(f"the mask for domain index {domain} has dead ends or no output; validate it")
        for domain, mask in masks.items():
            bits[domain] = torch.from_numpy(mask.bits.copy()).to(bits.device)

    def use_masks(self, *, wanted: bool) -> None:
        """Say whether masks count; without them every edge is there and the group embedding is 0."""
        self.get_buffer("masks_in_use").fill_(wanted)

    @property
    def masks_count(self) -> bool:
        """Whether masks count."""
        return bool(self.get_buffer("masks_in_use"))

    def gates(self, domains: Tensor | None = None, bits: Tensor | None = None) -> tuple[Tensor, ...]:
        """Softmax gates before masking.

        Args:
            domains: (C,) int64 domain index, D for unknown; None for all D + 1 in order.
            bits: (C, X) bool masks, which the group part of the input reads; None for the domains' own.

        Returns:
            (C, N_{l-1}, N_l) float32 per level, columns sum to 1; first those over base experts where
            these go by domain.
        """
        domains, bits = self._chosen(domains, bits)
        return self._gates(domains, bits)

    def tables(self, domains: Tensor | None = None, bits: Tensor | None = None) -> GateTables:
        """Masked gates in closed form; arguments as for `gates`."""
        domains, bits = self._chosen(domains, bits)
        _, *inner, outputs = self._split(bits)
        gates = list(self._gates(domains, bits))
        base: Tensor | None = gates.pop(0) if self.gates_base else None
        if self.shape.base_width:
            edges = inner.pop(0)
            base = edges.to(self.domain.dtype) if base is None else masked_gates(base, edges)
        levels = tuple(masked_gates(g, edges) for g, edges in zip(gates, inner, strict=True))
        heads = outputs.squeeze(-1).to(self.domain.dtype)
        return GateTables(base, levels, heads / heads.sum(dim=1, keepdim=True))

    def forward(self, domain: Tensor, request_index: Tensor | None) -> GateRows:
        """Gates of N rows.

        Args:
            domain: (R,) int64 domain index of each request.
            request_index: (N,) int64 request of each row; None where row i belongs to request i.
        """
        return gate_rows(table_rows(self.tables()), domain, request_index)

    def freeze(self) -> FrozenGates:
        """The same gates as constant tables."""
        with torch.no_grad():
            return FrozenGates(table_rows(self.tables()))

    def _chosen(self, domains: Tensor | None, bits: Tensor | None) -> tuple[Tensor, Tensor]:
        own = self.get_buffer("mask_bits")
        if domains is None:
            domains = torch.arange(self.num_domains + 1, device=own.device)
        if bits is not None:
            return domains, bits
        bits = own.index_select(0, domains)
        return domains, bits if self.masks_count else torch.ones_like(bits)

    def _split(self, bits: Tensor) -> tuple[Tensor, ...]:
        """Masks (C, X) as arrays (C, rows, columns), in the order of the pyramid's `edge_shapes`."""
        shapes = zip(self.shape.spans, self.shape.edge_shapes, strict=True)
        return tuple(bits[:, span].reshape(bits.shape[0], *size) for span, size in shapes)

    def _gates(self, domains: Tensor, bits: Tensor) -> tuple[Tensor, ...]:
        query = torch.cat([self._domain_part(domains), self._group_part(bits)], dim=1)
        return tuple(
            torch.softmax(layer(query).reshape(-1, count, below), dim=-1).mT
            for layer, (below, count) in zip(self.layers, self.sizes, strict=True)
        )

    def _domain_part(self, domains: Tensor) -> Tensor:
        """(C, dim) embedding of each domain."""
        table = torch.cat([self.domain, self.domain.mean(dim=0, keepdim=True)])
        if self.cluster is not None:
            table = table + self.cluster(self.get_buffer("cluster_of_domain"))
        return table.index_select(0, domains)

    def _group_part(self, bits: Tensor) -> Tensor:
        """(C, dim) mean embedding of the level-0 experts with an input; 0 while masks do not count."""
        if not self.masks_count:
            return bits.new_zeros((bits.shape[0], self.group.shape[1]), dtype=self.group.dtype)
        inputs = self._split(bits)[1 if self.shape.base_width else 0].any(dim=1).to(self.group.dtype)
        return (inputs @ self.group) / inputs.sum(dim=1, keepdim=True).clamp_min(1.0)


class FrozenGates(nn.Module):
    """Constant tables by domain, for inference: nothing is left of gate layers, embeddings and masks.

    Args:
        rows: Of C domains.
        row_of_domain: (D + 1,) int64 row of each domain index; None where the rows are those of all D + 1.
    """

    def __init__(self, rows: GateRows, row_of_domain: Tensor | None = None) -> None:
        super().__init__()
        self.num_levels = len(rows.mixers)
        self.has_base = rows.base is not None
        self.has_rows = row_of_domain is not None
        if row_of_domain is not None:
            self.register_buffer("row_of_domain", row_of_domain)
        if rows.base is not None:
            self.register_buffer("base", rows.base.contiguous())
        for number, mixer in enumerate(rows.mixers):
            self.register_buffer(f"mixer_{number}", mixer.contiguous())
        self.register_buffer("log_heads", rows.log_heads)

    def forward(self, domain: Tensor, request_index: Tensor | None) -> GateRows:
        """Gates of N rows, arguments as for `DomainGates`."""
        if self.has_rows:
            domain = self.get_buffer("row_of_domain").index_select(0, domain)
        base = self.get_buffer("base") if self.has_base else None
        mixers = tuple(self.get_buffer(f"mixer_{number}") for number in range(self.num_levels))
        return gate_rows(GateRows(base, mixers, self.get_buffer("log_heads")), domain, request_index)


def masked_gates(gates: Tensor, edges: Tensor) -> Tensor:
    """Masked gates g M / (sum_i g M + 1e-8), column by column; a column without edges is 0.

    Args:
        gates: (..., N_{l-1}, N_l) float32, columns sum to 1.
        edges: The same shape, bool.
    """
    kept = gates * edges
    return kept / (kept.sum(dim=-2, keepdim=True) + NORMALISER_FLOOR)


def table_rows(tables: GateTables) -> GateRows:
    """Tables in the form that rows read; their first axis goes over the C domains."""
    base = None if tables.base is None else tables.base.mT
    return GateRows(base, tuple(level.mT for level in tables.levels), tables.heads.log())


def gate_rows(table: GateRows, domain: Tensor, request_index: Tensor | None) -> GateRows:
    """Rows of tables by domain (R,), spread to the candidates where there is an index (N,)."""
    index = at_rows(domain, request_index)
    base = None if table.base is None else table.base.index_select(0, index)
    return GateRows(
        base,
        tuple(mixer.index_select(0, index) for mixer in table.mixers),
        table.log_heads.index_select(0, index),
    )
