"""Networks over event sequences: SyNCRec's experts, and the single encoders it is compared with.

A `SequenceNet` gives vectors at positions that a batch names: by the view of the mixed sequence ("cross"), by
the view of one domain's own events ("single"), or both. A candidate's score is the dot product of such a
vector with the candidate's row of the item table, which also embeds the events.

Invariant: a vector at a position reads the events before it and nothing else.

Letters: B mixed sequences, S single sequences, n events, L = n + 1 positions, P picked positions, r width, D
domains.

Sources: SyNCRec (arXiv 2407.11245); SASRec (Kang and McAuley, ICDM 2018).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from training.models.acmoe import (
    CROSS_TASK,
    ExpertBank,
    GateInput,
    Side,
    TaskHeads,
    flat_context,
    prefix_mean,
)
from training.models.sequence_encoder import (
    INITIAL_STD,
    EventEmbedding,
    SequenceEncoder,
    at_positions,
    real_events,
)

View = Literal["mixed", "single"]


class EventRows(NamedTuple):
    """Sequences of events.

    Attributes:
        items: (B, n) int64 rows of the item table, 0 for padding.
        domains: (B, n) int64 domain of each event, D for unknown.
        length: (B,) int64 events of each sequence, holes included.
        with_holes: Whether padding may stand before a sequence's end; no position then reads it.
    """

    items: Tensor
    domains: Tensor
    length: Tensor
    with_holes: bool = False

    @property
    def present(self) -> Tensor:
        """(B, n + 1) bool: the start mark and the events."""
        return torch.nn.functional.pad(real_events(self.items), (1, 0), value=True)


class SequenceNet(nn.Module, ABC):
    """An item table and what encodes sequences of its rows."""

    def __init__(self, *, num_rows: int, width: int) -> None:
        super().__init__()
        self.items = nn.Embedding(num_rows, width, sparse=True)
        nn.init.normal_(self.items.weight, std=INITIAL_STD)

    @property
    def views(self) -> tuple[Side, ...]:
        """The views it has."""
        return ("cross", "single")

    @abstractmethod
    def cross(self, rows: EventRows, at: Tensor) -> Tensor:
        """Vectors (P, r) at flat positions `at` (P,) of the mixed sequences' B x L."""

    @abstractmethod
    def single(self, buckets: Sequence[EventRows], at: Tensor, sizes: Sequence[int]) -> Tensor:
        """Vectors at positions of single-domain sequences.

        Args:
            buckets: Sequences of one domain each, grouped by length; n >= 1, padding is of that domain too.
            at: (P,) int64 flat positions in all buckets' S x L, one bucket after the other, sorted by domain.
            sizes: How many of them each domain has, D numbers.

        Returns:
            (P, r) float32.
        """

    @abstractmethod
    def last(self, rows: EventRows, tasks: Tensor) -> Tensor:
        """Vectors (B, r) after the last event, for inference.

        Args:
            rows: Without holes.
            tasks: (B,) int64, 0 for the mixed view, 1 + d for the view of domain d, whose events `rows` then
                has alone.
        """

    def dense_parameters(self) -> list[nn.Parameter]:
        """Everything that is not the item table."""
        table = self.table
        return [p for p in self.parameters() if p is not table]

    @property
    def table(self) -> nn.Parameter:
        """The weight of the item table, whose gradients are sparse."""
        return next(self.items.parameters())


class SyncrecNet(SequenceNet):
    """SyNCRec: K experts read by the cross task and the task of each domain.

    Args:
        num_rows: Rows of the item table.
        num_domains: D.
        width: r.
        max_len: Most events of a sequence, T.
        num_experts: K.
        num_cross_experts: Experts that learn from the cross task.
        num_layers: Of each expert.
        num_heads: Of each layer.
        dropout: Drop rate.
        gate: What gates read.
        stop_gradient: Whether an expert learns from its own side only.
    """

    def __init__(
        self,
        *,
        num_rows: int,
        num_domains: int,
        width: int,
        max_len: int,
        num_experts: int,
        num_cross_experts: int,
        num_layers: int,
        num_heads: int,
        dropout: float,
        gate: GateInput,
        stop_gradient: bool = True,
    ) -> None:
        super().__init__(num_rows=num_rows, width=width)
        self.gate = gate
        self.positions = max_len + 1
        self.embedding = EventEmbedding(
            width=width, max_len=max_len, num_domains=num_domains, dropout=dropout
        )
        self.bank = ExpertBank(
            num_experts=num_experts,
            num_cross_experts=num_cross_experts,
            width=width,
            num_layers=num_layers,
            num_heads=num_heads,
            dropout=dropout,
            stop_gradient=stop_gradient,
        )
        self.heads = TaskHeads(
            num_tasks=1 + num_domains,
            num_experts=num_experts,
            width=width,
            context_width=width if gate == "prefix_mean" else width * self.positions,
        )
        # W^H of each domain, which the agreement of both views is measured by.
        self.agreement = nn.Parameter(torch.eye(width).repeat(num_domains, 1, 1) / width**0.5)

    def cross(self, rows: EventRows, at: Tensor) -> Tensor:
        """See `SequenceNet`; single experts get no gradient from here."""
        outputs, context = self._read(rows, side="cross")
        vectors: Tensor = self.heads(CROSS_TASK, outputs.index_select(0, at), context.index_select(0, at))
        return vectors

    def single(self, buckets: Sequence[EventRows], at: Tensor, sizes: Sequence[int]) -> Tensor:
        """See `SequenceNet`; cross experts get no gradient from here."""
        read = [self._read(rows, side="single") for rows in buckets]
        outputs = torch.cat([outputs for outputs, _ in read]).index_select(0, at)
        context = torch.cat([context for _, context in read]).index_select(0, at)
        parts = [
            self.heads(1 + domain, own, own_context)
            for domain, (own, own_context) in enumerate(
                zip(torch.split(outputs, list(sizes)), torch.split(context, list(sizes)), strict=True)
            )
            if len(own)
        ]
        return torch.cat(parts) if parts else outputs.new_zeros((0, self.items.embedding_dim))

    def last(self, rows: EventRows, tasks: Tensor) -> Tensor:
        """See `SequenceNet`; the experts' top layers compute the last position only."""
        states = self.embedding(self.items(rows.items), rows.domains, rows.length)
        outputs = self.bank.last(states, rows.length)
        context = self._context(states, rows.present)
        return self.heads.by_row(tasks, outputs, at_positions(context, rows.length))

    def _read(self, rows: EventRows, *, side: Side) -> tuple[Tensor, Tensor]:
        """Expert outputs (B * L, K, r) and what gates read (B * L, C)."""
        states = self.embedding(self.items(rows.items), rows.domains, rows.length)
        present = rows.present
        outputs = self.bank(states, side=side, present=present if rows.with_holes else None)
        return outputs.flatten(0, 1), self._context(states, present).flatten(0, 1)

    def _context(self, states: Tensor, present: Tensor) -> Tensor:
        if self.gate == "prefix_mean":
            return prefix_mean(states, present)
        whole = flat_context(states, present, positions=self.positions)
        return whole.unsqueeze(1).expand(-1, states.shape[1], -1)


class SasrecNet(SequenceNet):
    """SASRec: one encoder of the mixed sequence, or one of each domain's own events.

    Args:
        num_rows: Rows of the item table.
        num_domains: D.
        width: r.
        max_len: Most events of a sequence, T.
        num_layers: Of an encoder.
        num_heads: Of each layer.
        dropout: Drop rate.
        view: Which sequences it reads.
    """

    def __init__(
        self,
        *,
        num_rows: int,
        num_domains: int,
        width: int,
        max_len: int,
        num_layers: int,
        num_heads: int,
        dropout: float,
        view: View,
    ) -> None:
        super().__init__(num_rows=num_rows, width=width)
        self.view = view
        count = 1 if view == "mixed" else num_domains
        self.embeddings = nn.ModuleList(
            EventEmbedding(width=width, max_len=max_len, num_domains=num_domains, dropout=dropout)
            for _ in range(count)
        )
        self.encoders = nn.ModuleList(
            SequenceEncoder(width=width, num_layers=num_layers, num_heads=num_heads, dropout=dropout)
            for _ in range(count)
        )

    @property
    def views(self) -> tuple[Side, ...]:
        """The one it was made for."""
        return ("cross",) if self.view == "mixed" else ("single",)

    def cross(self, rows: EventRows, at: Tensor) -> Tensor:
        """See `SequenceNet`."""
        return self._encode(rows, 0).flatten(0, 1).index_select(0, at)

    def single(self, buckets: Sequence[EventRows], at: Tensor, sizes: Sequence[int]) -> Tensor:
        """See `SequenceNet`; a domain's sequences go through its own encoder."""
        del sizes
        read = []
        for rows in buckets:
            own = rows.domains[:, 0]
            states = self.items.weight.new_zeros((*rows.domains.shape, self.items.embedding_dim))
            whole = nn.functional.pad(states, (0, 0, 1, 0))
            for domain in torch.unique(own).tolist():
                mine = torch.nonzero(own == domain).squeeze(1)
                part = EventRows(rows.items[mine], rows.domains[mine], rows.length[mine], rows.with_holes)
                whole = whole.index_copy(0, mine, self._encode(part, domain))
            read.append(whole.flatten(0, 1))
        return torch.cat(read).index_select(0, at)

    def last(self, rows: EventRows, tasks: Tensor) -> Tensor:
        """See `SequenceNet`."""
        out = self.items.weight.new_zeros((len(rows.length), self.items.embedding_dim))
        for task in torch.unique(tasks).tolist():
            mine = torch.nonzero(tasks == task).squeeze(1)
            place = max(0, task - 1)
            part = EventRows(rows.items[mine], rows.domains[mine], rows.length[mine])
            states = self._embed(part, place)
            out = out.index_copy(0, mine, self._encoder(place).last(states, part.length))
        return out

    def _encode(self, rows: EventRows, place: int) -> Tensor:
        present = rows.present if rows.with_holes else None
        states: Tensor = self._encoder(place)(self._embed(rows, place), present)
        return states

    def _embed(self, rows: EventRows, place: int) -> Tensor:
        states: Tensor = self.embeddings[place](self.items(rows.items), rows.domains, rows.length)
        return states

    def _encoder(self, place: int) -> SequenceEncoder:
        return cast(SequenceEncoder, self.encoders[place])
