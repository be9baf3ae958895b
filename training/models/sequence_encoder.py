"""Causal Transformer encoders of event sequences, and the vectors of events that they read.

A sequence of n events has n + 1 positions: a start mark, then the events, oldest first; padding comes after
the last event. Positions are counted from the end, so that the newest event always has the same one.
Invariant: what a position gives depends on no later position, and on no padding.

Letters: B sequences, n events, L = n + 1 positions, T most events, r width, D domains.

Source: the expert encoder of SyNCRec (arXiv 2407.11245), a SASRec block; we count positions from the end and
pad at the end, which equals its padding in front.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from service.contract.schema import MISSING_ID

INITIAL_STD = 0.02


class EventEmbedding(nn.Module):
    """Sum of the vectors of item, domain and position, normalised.

    Args:
        width: r.
        max_len: T.
        num_domains: D; events of unknown domains have a row of their own.
        dropout: Drop rate.
    """

    def __init__(self, *, width: int, max_len: int, num_domains: int, dropout: float) -> None:
        super().__init__()
        self.max_len = max_len
        self.start = nn.Parameter(torch.empty(1, 1, width))
        self.position = nn.Parameter(torch.empty(max_len + 1, width))
        self.domain = nn.Parameter(torch.empty(num_domains + 1, width))
        for weight in (self.start, self.position, self.domain):
            nn.init.normal_(weight, std=INITIAL_STD)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, items: Tensor, domains: Tensor, length: Tensor) -> Tensor:
        """Embed sequences.

        Args:
            items: (B, n, r) float32 vectors of the items.
            domains: (B, n) int64 domain of each event, D for unknown.
            length: (B,) int64 events of each sequence, at most T.

        Returns:
            (B, n + 1, r) float32; what stands after a sequence's last event means nothing.
        """
        events = items + functional.embedding(domains, self.domain)
        whole = torch.cat([self.start.expand(items.shape[0], 1, -1), events], dim=1)
        steps = torch.arange(items.shape[1] + 1, device=items.device)
        place = (self.max_len - length).unsqueeze(1) + steps
        placed = whole + functional.embedding(place.clamp(max=self.max_len), self.position)
        embedded: Tensor = self.dropout(self.norm(placed))
        return embedded


class CausalBlock(nn.Module):
    """Self-attention, then two layers, each with a residual and normalised; 14 tensors.

    Dropout falls on what is added to the residuals, not on attention weights, which would cost a fourth of a
    training step.
    """

    def __init__(self, *, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.attention_norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, 4 * width)
        self.outer = nn.Linear(4 * width, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.query, self.key, self.value, self.inner, self.outer):
            nn.init.normal_(layer.weight, std=INITIAL_STD)
            nn.init.zeros_(layer.bias)

    def forward(self, states: Tensor, queries: Tensor, visible: Tensor | None) -> Tensor:
        """One layer.

        Args:
            states: (B, L, r) what is attended to.
            queries: (B, Q, r) the states of the positions that are wanted.
            visible: (B, Q, L) bool, which positions a query reads; None for all up to its own, where Q is L.

        Returns:
            (B, Q, r) float32.
        """
        query, key, value = self._heads(self.query(queries)), self.key(states), self.value(states)
        mask = None if visible is None else visible.unsqueeze(1)
        read = functional.scaled_dot_product_attention(
            query,
            self._heads(key),
            self._heads(value),
            attn_mask=mask,
            is_causal=visible is None,
        )
        read = read.transpose(1, 2).flatten(2)  # (B, Q, r)
        states = self.attention_norm(queries + self.dropout(read))
        inner = functional.gelu(self.inner(states))
        out: Tensor = self.norm(states + self.dropout(self.outer(inner)))
        return out

    def _heads(self, values: Tensor) -> Tensor:
        """(B, L, r) to (B, heads, L, r / heads)."""
        rows, length, width = values.shape
        return values.reshape(rows, length, self.num_heads, width // self.num_heads).transpose(1, 2)


class SequenceEncoder(nn.Module):
    """A stack of causal blocks, r wide throughout."""

    def __init__(self, *, width: int, num_layers: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            CausalBlock(width=width, num_heads=num_heads, dropout=dropout) for _ in range(num_layers)
        )

    def forward(self, states: Tensor, present: Tensor | None = None) -> Tensor:
        """Encode every position.

        Args:
            states: (B, L, r) float32.
            present: (B, L) bool, False for positions that no other may read; None where all may.

        Returns:
            (B, L, r) float32.
        """
        visible = None if present is None else seen_by_all(present)
        for block in self.blocks:
            states = block(states, states, visible)
        return states

    def last(self, states: Tensor, length: Tensor) -> Tensor:
        """Encode the last position of each sequence only, (B, r); the top layer computes no other.

        Args:
            states: (B, L, r) float32.
            length: (B,) int64 events of each sequence: its last position.
        """
        for block in self.blocks[:-1]:
            states = block(states, states, None)
        query = at_positions(states, length).unsqueeze(1)
        steps = torch.arange(states.shape[1], device=states.device)
        visible = (steps <= length.unsqueeze(1)).unsqueeze(1)
        top: Tensor = self.blocks[-1](states, query, visible)
        return top.squeeze(1)


def seen_by_all(present: Tensor) -> Tensor:
    """(B, L, L) bool: a position reads the present ones up to itself, and itself in any case.

    Args:
        present: (B, L) bool.
    """
    size = present.shape[1]
    causal = torch.ones(size, size, dtype=torch.bool, device=present.device).tril()
    own = torch.eye(size, dtype=torch.bool, device=present.device)
    return (causal & present.unsqueeze(1)) | own


def at_positions(values: Tensor, place: Tensor) -> Tensor:
    """One position of each sequence: (B, L, r) and (B,) int64 to (B, r)."""
    index = place.reshape(-1, 1, 1).expand(-1, 1, values.shape[2])
    return values.gather(1, index).squeeze(1)


def compact(keep: Tensor, *columns: Tensor) -> tuple[Tensor, ...]:
    """Move the kept entries of each row to its front, in order; the rest becomes padding.

    Done by comparisons and sums alone, so that an exported graph has nothing but them.

    Args:
        keep: (B, n) bool.
        columns: (B, n) int64 each.

    Returns:
        The columns, and last (B,) int64 how many entries each row keeps.
    """
    rank = keep.to(torch.int64).cumsum(dim=1) - 1
    steps = torch.arange(keep.shape[1], device=keep.device)
    moved = keep.unsqueeze(1) & (rank.unsqueeze(1) == steps.reshape(1, -1, 1))  # (B, to, from)
    parts = [(moved.to(torch.int64) * column.unsqueeze(1)).sum(dim=2) for column in columns]
    return (*parts, keep.sum(dim=1))


def real_events(items: Tensor) -> Tensor:
    """(B, n) bool: False for padding."""
    return items != MISSING_ID
