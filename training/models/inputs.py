"""The input layer: encoded blocks to the dense vectors that rankers read.

Request side: user, context and domain; row side: item and pairs. Multi and sequence features are
pooled over their present entries (with weights where they exist). Features that only
hold lookups are not embedded. Row 0 of a list is padding and never counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from service.contract.layout import IDS, VALUES, WEIGHTS, EntityLayout, Slot, entity_layout
from service.contract.schema import (
    MISSING_ID,
    CategoricalFeature,
    Entity,
    FeatureSchema,
    MultiFeature,
    SequenceFeature,
    StandardiseEncoder,
)
from training.models.embedding import EmbeddingBank

Pooling = Literal["mean", "sqrt"]


class ListPool(nn.Module):
    """Pool the embeddings of a list's n present entries, (rows, num_columns * dim).

    `mean` divides their (weighted) sum by the total weight, `sqrt` by its square root: then a long
    list weighs more than a short one, but less than by its length.
    """

    def __init__(
        self, bank: EmbeddingBank, slots: Sequence[Slot], weights: Slot | None, *, pooling: Pooling
    ) -> None:
        super().__init__()
        self.pooling = pooling
        self._bank = [bank]  # in a list, so that the bank stays registered once, in the input layer
        self.columns = [slot.columns for slot in slots]
        self.weights = weights
        offsets = torch.tensor([bank.offsets[slot.encoder] for slot in slots])
        self.register_buffer("offsets", offsets, persistent=False)
        self.width = len(slots) * bank.dim

    def forward(self, ints: Tensor, floats: Tensor) -> tuple[Tensor, Tensor]:
        """Pool a list.

        Args:
            ints: (rows, int_width) ids of the entity.
            floats: (rows, float_width) numbers of the entity.

        Returns:
            (rows, width) float32 and the penalty of the lookup.
        """
        ids = torch.stack([ints[:, c] for c in self.columns], dim=-1)  # (rows, L, k)
        vectors, penalty = self._bank[0](ids, self.offsets)
        present = (ids[..., 0] != MISSING_ID).to(vectors.dtype)  # (rows, L)
        if self.weights is not None:
            length, channels = self.weights.shape
            weight = floats[:, self.weights.columns].reshape(floats.shape[0], length, channels)
            present = present * weight[..., 0]
        total = present.abs().sum(dim=1, keepdim=True).clamp_min(1e-6)
        if self.pooling == "sqrt":
            total = total.sqrt()
        flat = vectors.reshape(ids.shape[0], ids.shape[1], self.width)  # (rows, L, k * dim)
        pooled = torch.matmul((present / total).unsqueeze(1), flat).squeeze(1)
        return pooled, penalty


class EntityInputs(nn.Module):
    """Dense vector of one entity: single ids, pooled lists, numbers.

    `id_columns` are the columns of it that embed features marked as ids.
    """

    def __init__(
        self,
        schema: FeatureSchema,
        entity: Entity,
        banks: dict[str, EmbeddingBank],
        *,
        exclude: frozenset[str],
        pooling: Pooling,
    ) -> None:
        super().__init__()
        layout = entity_layout(schema, entity)
        skip = exclude | schema.holders
        lists = {f.name for f in schema.of_entity(entity) if isinstance(f, MultiFeature | SequenceFeature)}
        slots = [s for s in layout.slots if s.feature not in skip]
        singles = [s for s in slots if s.part == IDS and s.feature not in lists]
        groups = [b for b in dict.fromkeys(banks.values()) if any(banks[s.encoder] is b for s in singles)]
        self._banks = groups
        ids: list[int] = []
        start = 0
        for number, bank in enumerate(groups):
            mine = [s for s in singles if banks[s.encoder] is bank]
            self.register_buffer(f"columns_{number}", torch.tensor([s.start for s in mine]), persistent=False)
            offsets = torch.tensor([bank.offsets[s.encoder] for s in mine])
            self.register_buffer(f"offsets_{number}", offsets, persistent=False)
            for slot in mine:
                feature = schema.feature(slot.feature)
                is_id = isinstance(feature, CategoricalFeature) and feature.is_id
                ids += range(start, start + bank.dim) if is_id else ()
                start += bank.dim
        self.id_columns = tuple(ids)
        self.pools = nn.ModuleList(
            pool
            for f in schema.of_entity(entity)
            if f.name in lists and f.name not in skip
            for pool in _pools(layout, f.name, banks, pooling)
        )
        numeric = [c for s in slots if s.part == VALUES for c in range(s.columns.start, s.columns.stop)]
        self.register_buffer("numeric", torch.tensor(numeric, dtype=torch.int64), persistent=False)
        single_width = sum(banks[s.encoder].dim for s in singles)
        self.width = single_width + sum(cast(ListPool, p).width for p in self.pools) + len(numeric)

    def forward(self, ints: Tensor, floats: Tensor) -> tuple[Tensor, Tensor]:
        """Embed one entity's rows: (rows, width) float32 and the penalty."""
        parts: list[Tensor] = []
        penalty = floats.new_zeros(())
        for number, bank in enumerate(self._banks):
            columns, offsets = self.get_buffer(f"columns_{number}"), self.get_buffer(f"offsets_{number}")
            vectors, l2 = bank(ints.index_select(1, columns), offsets)
            parts.append(vectors.reshape(ints.shape[0], columns.shape[0] * bank.dim))
            penalty = penalty + l2
        for pool in self.pools:
            pooled, l2 = pool(ints, floats)
            parts.append(pooled)
            penalty = penalty + l2
        numeric = self.get_buffer("numeric")
        if numeric.numel():
            parts.append(floats.index_select(1, numeric))
        if not parts:
            return floats.new_zeros((floats.shape[0], 0)), penalty
        return torch.cat(parts, dim=1), penalty


def _pools(
    layout: EntityLayout, feature: str, banks: dict[str, EmbeddingBank], pooling: Pooling
) -> list[ListPool]:
    """One pool per bank that the list's columns use; the first column's padding rules each."""
    slots = [s for s in layout.of_feature(feature) if s.part != WEIGHTS]
    weights = next((s for s in layout.of_feature(feature) if s.part == WEIGHTS), None)
    used = dict.fromkeys(banks[s.encoder] for s in slots)
    return [
        ListPool(bank, [s for s in slots if banks[s.encoder] is bank], weights, pooling=pooling)
        for bank in used
    ]


class InputLayer(nn.Module):
    """Embeds both sides of a batch.

    Args:
        schema: What the blocks hold.
        banks: Embedding groups by name.
        bank_of: Name of the group that holds each encoder.
        domain_dim: Width of the domain embedding, (D + 1, domain_dim); row D serves unknown domains.
        domain_unknown_rate: Share of rows whose domain is hidden in training.
        exclude: Features and pairs that are not read.
        dropout: Drop rate on pair values in training.
        pooling: How lists of ids become one vector.
    """

    def __init__(
        self,
        schema: FeatureSchema,
        *,
        banks: dict[str, EmbeddingBank],
        bank_of: dict[str, str],
        domain_dim: int,
        domain_unknown_rate: float = 0.0,
        exclude: frozenset[str] = frozenset(),
        dropout: float = 0.0,
        pooling: Pooling = "mean",
    ) -> None:
        super().__init__()
        self.banks = nn.ModuleDict(banks)
        by_encoder = {encoder: banks[group] for encoder, group in bank_of.items()}
        self.user = EntityInputs(schema, Entity.USER, by_encoder, exclude=exclude, pooling=pooling)
        self.context = EntityInputs(schema, Entity.CONTEXT, by_encoder, exclude=exclude, pooling=pooling)
        self.item = EntityInputs(schema, Entity.ITEM, by_encoder, exclude=exclude, pooling=pooling)
        self.num_domains = schema.num_domains
        self.domain_unknown_rate = domain_unknown_rate
        self.domain = nn.Embedding(schema.num_domains + 1, domain_dim)
        nn.init.normal_(self.domain.weight, std=0.05)
        kept: list[int] = []
        start = 0
        for pair in schema.pairs:
            width = schema.pair_width(pair)
            kept += [] if pair.name in exclude else range(start, start + width)
            start += width
        self.register_buffer("pair_columns", torch.tensor(kept, dtype=torch.int64), persistent=False)
        self.pair_norm = nn.BatchNorm1d(len(kept)) if kept else None
        self.pair_dropout = nn.Dropout(dropout)
        self.domain_dim = domain_dim
        self.request_width = self.user.width + self.context.width + domain_dim
        self.row_width = self.item.width + len(kept)

    def hide_domains(self, domain: Tensor) -> Tensor:
        """Domain index (R,) int64 with a random share replaced by D in training."""
        domain = domain.to(torch.int64)
        if not self.training or self.domain_unknown_rate == 0:
            return domain
        hide = torch.rand(domain.shape, device=domain.device) < self.domain_unknown_rate
        return torch.where(hide, torch.full_like(domain, self.num_domains), domain)

    def request_side(
        self,
        user_ints: Tensor,
        user_floats: Tensor,
        context_ints: Tensor,
        context_floats: Tensor,
        domain: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """(R, request_width) float32 and the penalty.

        Without domains the last `domain_dim` columns are left out, for rankers that hold them as constants.
        """
        user, user_l2 = self.user(user_ints, user_floats)
        context, context_l2 = self.context(context_ints, context_floats)
        own = [] if domain is None else [self.domain(domain.to(torch.int64))]
        return torch.cat([user, context, *own], dim=1), user_l2 + context_l2

    def row_side(self, item_ints: Tensor, item_floats: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """(N, row_width) float32 and the penalty."""
        item, penalty = self.item(item_ints, item_floats)
        if self.pair_norm is None:
            return item, penalty
        kept = self.pair_dropout(self.pair_norm(pairs.index_select(1, self.get_buffer("pair_columns"))))
        return torch.cat([item, kept], dim=1), penalty


def id_encoders(schema: FeatureSchema, exclude: frozenset[str]) -> dict[str, int]:
    """Encoders that need embedding rows, with how many; only those of features that are read."""
    rows: dict[str, int] = {}
    for entity in Entity:
        for slot in entity_layout(schema, entity).slots:
            if slot.block != "int" or slot.feature in exclude | schema.holders:
                continue
            encoder = schema.encoder(slot.encoder)
            if not isinstance(encoder, StandardiseEncoder):
                rows[slot.encoder] = encoder.num_rows
    return rows
