"""Embedding tables: one matrix per group of encoders, looked up once for all features of a side.

Rows of encoder e start at `offsets[e]`; ids come from `service.contract.encode` and lie in
[0, num_rows). Gradients are sparse: a step touches only the rows of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from service.contract.schema import FIRST_ID, UNKNOWN_ID


class EmbeddingBank(nn.Module):
    """Tables of several encoders in one weight, (total rows, dim).

    Args:
        num_rows: Rows of each encoder, by name.
        dim: Embedding width.
        lr_scale: Factor on the table learning rate, read by the optimiser.
        l2: Penalty factor on touched rows.
        dropout: Rate at which a whole embedding is zeroed in training.
        unknown_rate: Rate at which a known id becomes the unknown row in training.
    """

    def __init__(
        self,
        num_rows: Mapping[str, int],
        *,
        dim: int,
        lr_scale: float = 1.0,
        l2: float = 0.0,
        dropout: float = 0.0,
        unknown_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.lr_scale = lr_scale
        self.l2 = l2
        self.dropout = dropout
        self.unknown_rate = unknown_rate
        self.offsets: dict[str, int] = {}
        total = 0
        for name, rows in num_rows.items():
            self.offsets[name] = total
            total += rows
        self.table = nn.Embedding(total, dim, sparse=True)
        nn.init.normal_(self.table.weight, std=0.05)

    def forward(self, ids: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Look up ids.

        Args:
            ids: (..., F) integer ids, each in the range of its column's encoder.
            offsets: (F,) int64 first row of each column's encoder.

        Returns:
            (..., F, dim) float32 embeddings, and the scalar penalty on the rows touched.
        """
        ids = ids.to(torch.int64)
        if self.training and self.unknown_rate > 0:
            hide = (torch.rand(ids.shape, device=ids.device) < self.unknown_rate) & (ids >= FIRST_ID)
            ids = torch.where(hide, torch.full_like(ids, UNKNOWN_ID), ids)
        vectors: Tensor = self.table(ids + offsets)
        penalty = vectors.new_zeros(())
        if self.training and self.l2 > 0:
            penalty = self.l2 * vectors.pow(2).sum() / max(1, ids.shape[0])
        if self.training and self.dropout > 0:
            kept = torch.rand(ids.shape, device=ids.device) >= self.dropout
            vectors = vectors * (kept.unsqueeze(-1) / (1.0 - self.dropout))
        return vectors, penalty
