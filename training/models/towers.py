"""Rankers with K towers: which tower serves which domain, and what is added to every tower's logit.

A tower serves one domain or a group of them; `tower_of_domain` says which. All towers are computed for
every row and the row's own one is gathered: K is moderate, and rows of a batch may mix domains. The
table is a buffer: it is stored with the weights and may be replaced while K stays.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from service.contract.errors import SchemaError
from training.models.base import Ranker, Sides, at_rows
from training.models.layers import Activation, StackedLinear, TwoSidedLinear


class TowerRanker(Ranker):
    """Logit = tower of the row's domain + linear term over the inputs + bias of the domain.

    Args:
        request_width: P, width of the request side.
        row_width: Q, width of the row side.
        tower_of_domain: (D + 1,) tower of each domain; the last entry serves unknown domains. K is its
            largest entry plus one.
    """

    def __init__(self, *, request_width: int, row_width: int, tower_of_domain: Sequence[int]) -> None:
        super().__init__()
        self.num_towers = max(tower_of_domain) + 1
        self.register_buffer("tower_of_domain", torch.tensor(tower_of_domain), persistent=True)
        self.linear = TwoSidedLinear(request_width, row_width, 1)
        self.domain_bias = nn.Embedding(len(tower_of_domain), 1)
        nn.init.zeros_(self.domain_bias.weight)

    @abstractmethod
    def tower_logits(self, sides: Sides) -> Tensor:
        """What each tower says of each row, (N, K) float32."""

    def forward(self, sides: Sides) -> Tensor:
        """Logits (N,) float32, each from the tower of its row's domain."""
        logits = self.tower_logits(sides)
        if self.num_towers > 1:
            own = at_rows(self.towers_of(sides.domain), sides.request_index)
            logits = torch.gather(logits, 1, own.unsqueeze(1))
        return (logits + self._common(sides)).squeeze(-1)

    def forward_all(self, sides: Sides) -> Tensor:
        """Logits (N, K) float32 of every tower for every row; `forward` gathers one column of them."""
        return self.tower_logits(sides) + self._common(sides)

    def towers_of(self, domain: Tensor) -> Tensor:
        """Tower (R,) int64 of each domain index (R,)."""
        return self.get_buffer("tower_of_domain").index_select(0, domain)

    def set_towers(self, tower_of_domain: Sequence[int]) -> None:
        """Let domains be served by other towers; weights stay as they are.

        Args:
            tower_of_domain: (D + 1,) as in the constructor, entries in 0..K-1; a tower may serve no domain.

        Raises:
            SchemaError: Wrong length, or a tower that does not exist.
        """
        buffer = self.get_buffer("tower_of_domain")
        check_towers(tower_of_domain, num_domains=buffer.shape[0] - 1, num_towers=self.num_towers)
        buffer.copy_(torch.tensor(tower_of_domain))

    def _common(self, sides: Sides) -> Tensor:
        """(N, 1) float32 part of the logit that all towers have in common."""
        bias = at_rows(self.domain_bias(sides.domain), sides.request_index)
        common: Tensor = bias + self.linear(sides)
        return common


class MlpTowerRanker(TowerRanker):
    """A tower ranker whose towers are MLPs, each on its own input.

    Args:
        request_width: P, width of the request side.
        row_width: Q, width of the row side.
        tower_of_domain: (D + 1,) tower of each domain; the last entry serves unknown domains.
        inner_width: Width H of what each tower reads.
        tower_widths: Hidden widths of each tower before its output.
        dropout: Drop rate after each hidden layer.
    """

    def __init__(
        self,
        *,
        request_width: int,
        row_width: int,
        tower_of_domain: Sequence[int],
        inner_width: int,
        tower_widths: Sequence[int],
        dropout: float,
    ) -> None:
        super().__init__(request_width=request_width, row_width=row_width, tower_of_domain=tower_of_domain)
        widths = [inner_width, *tower_widths]
        self.towers = nn.ModuleList(StackedLinear(self.num_towers, a, b) for a, b in pairwise(widths))
        self.activation = Activation(1, batch_norm=False, dropout=dropout)
        self.out = StackedLinear(self.num_towers, widths[-1], 1)

    def run_towers(self, x: Tensor, gates: Sequence[Tensor] = ()) -> Tensor:
        """Run every tower on its own input.

        Args:
            x: (N, K, H) float32.
            gates: (N, K, width) factors on the output of each hidden layer; none to leave them as they are.

        Returns:
            (N, K) float32.
        """
        for number, tower in enumerate(self.towers):
            x = self.activation(tower(x))
            if gates:
                x = x * gates[number]
        out: Tensor = self.out(x).squeeze(-1)
        return out


def check_towers(tower_of_domain: Sequence[int], *, num_domains: int, num_towers: int | None = None) -> None:
    """Refuse a table that does not give every domain, and the unknown one, a tower.

    Args:
        tower_of_domain: The table.
        num_domains: D; the table has D + 1 entries.
        num_towers: K where it is fixed; None to take it from the table, which must then use every tower.

    Raises:
        SchemaError: With the offending entry and what is allowed.
    """
    table = list(tower_of_domain)
    if len(table) != num_domains + 1:
        raise SchemaError(
            f"tower_of_domain has {len(table)} entries; {num_domains} domains and the unknown one "
            f"need {num_domains + 1}"
        )
    last = max(table) if num_towers is None else num_towers - 1
    if bad := sorted({t for t in table if not 0 <= t <= last}):
        raise SchemaError(f"tower_of_domain names towers {bad}; allowed are 0 to {max(last, 0)}")
    if num_towers is None and (idle := sorted(set(range(last + 1)) - set(table))):
        raise SchemaError(f"tower_of_domain gives towers {idle} no domain; number towers from 0 without gaps")
