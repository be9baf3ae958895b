"""PEPNet: gates that scale the embeddings by domain, and gates that scale the towers' hidden layers by user.

Source: Chang et al., "PEPNet: Parameter and Embedding Personalized Network for Infusing with
Personalized Prior Information", KDD 2023, eq. 2-4 (gate unit, EPNet) and 5-7 (PPNet), with domains (or
groups of them) in the place of tasks. Each tower owns its layers and its gates. We differ in these points:
the embedding gate of a side reads that side and the domain only, so that request work is done once
per request; the first layer reads the scaled embeddings as they are, gates act on hidden outputs; ids of
users and items are the only priors of the tower gates; a linear term and a bias per domain are added.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.models.base import Sides
from training.models.layers import StackedLinear, TwoSidedLinear
from training.models.towers import MlpTowerRanker

GATE_RANGE = 2.0


class GateUnit(nn.Module):
    """E gates 2 * sigmoid(V relu(U x + b) + c), (N, E, width): factors around one (eq. 2).

    Args:
        request_width: Width of the request side of x.
        row_width: Width of its row side.
        num_gates: E.
        hidden_width: Hidden width of each gate.
        width: Numbers that each gate scales.
    """

    def __init__(
        self, request_width: int, row_width: int, *, num_gates: int, hidden_width: int, width: int
    ) -> None:
        super().__init__()
        self.num_gates = num_gates
        self.hidden_width = hidden_width
        self.hidden = TwoSidedLinear(request_width, row_width, num_gates * hidden_width)
        self.out = StackedLinear(num_gates, hidden_width, width)

    def forward(self, sides: Sides) -> Tensor:
        """(N, E, width) float32 in (0, 2)."""
        hidden = torch.relu(self.hidden(sides))
        gates = self.out(hidden.reshape(hidden.shape[0], self.num_gates, self.hidden_width))
        return GATE_RANGE * torch.sigmoid(gates)


class EmbeddingGates(nn.Module):
    """EPNet: each side times a gate that reads the domain embedding and, without gradient, the side.

    Args:
        request_width: P.
        row_width: Q.
        domain_width: Width of the domain embedding, the last columns of the request side.
        hidden_width: Hidden width of the gates.
    """

    def __init__(self, request_width: int, row_width: int, *, domain_width: int, hidden_width: int) -> None:
        super().__init__()
        self.domain_start = request_width - domain_width
        self.domain_width = domain_width
        self.request = GateUnit(
            domain_width, request_width, num_gates=1, hidden_width=hidden_width, width=request_width
        )
        self.row = GateUnit(domain_width, row_width, num_gates=1, hidden_width=hidden_width, width=row_width)

    def forward(self, sides: Sides) -> Sides:
        """Scaled sides, same shapes."""
        prior = sides.request.narrow(1, self.domain_start, self.domain_width)
        at_request = self.request(Sides(prior, sides.request.detach(), None, sides.domain))
        at_row = self.row(Sides(prior, sides.row.detach(), sides.request_index, sides.domain))
        return sides._replace(
            request=sides.request * at_request.squeeze(1), row=sides.row * at_row.squeeze(1)
        )


class PepNet(MlpTowerRanker):
    """Gated embeddings, then K gated towers.

    Args:
        request_width: P, width of the request side.
        row_width: Q, width of the row side.
        tower_of_domain: (D + 1,) tower that serves each domain; the last entry serves unknown domains.
        domain_width: Width of the domain embedding, the last columns of the request side.
        request_ids, row_ids: Columns of each side that hold embeddings of ids, the priors of tower gates.
        embedding_gate_width: Hidden width of the gates on embeddings.
        tower_gate_width: Hidden width of the gates on each hidden layer of each tower.
        tower_widths: Hidden widths of each tower, at least one.
        dropout: Drop rate after each hidden layer.
    """

    def __init__(
        self,
        *,
        request_width: int,
        row_width: int,
        tower_of_domain: Sequence[int],
        domain_width: int,
        request_ids: Sequence[int],
        row_ids: Sequence[int],
        embedding_gate_width: int,
        tower_gate_width: int,
        tower_widths: Sequence[int],
        dropout: float,
    ) -> None:
        super().__init__(
            request_width=request_width,
            row_width=row_width,
            tower_of_domain=tower_of_domain,
            inner_width=tower_widths[0],
            tower_widths=tower_widths[1:],
            dropout=dropout,
        )
        self.embedding_gates = EmbeddingGates(
            request_width, row_width, domain_width=domain_width, hidden_width=embedding_gate_width
        )
        self.register_buffer("request_ids", torch.tensor(request_ids, dtype=torch.int64), persistent=False)
        self.register_buffer("row_ids", torch.tensor(row_ids, dtype=torch.int64), persistent=False)
        self.first_width = tower_widths[0]
        self.first = TwoSidedLinear(request_width, row_width, self.num_towers * tower_widths[0])
        self.tower_gates = nn.ModuleList(
            GateUnit(
                request_width + len(request_ids),
                row_width + len(row_ids),
                num_gates=self.num_towers,
                hidden_width=tower_gate_width,
                width=width,
            )
            for width in tower_widths
        )

    def tower_logits(self, sides: Sides) -> Tensor:
        """What each tower says of each row, (N, K) float32."""
        scaled = self.embedding_gates(sides)
        first_gate, *gates = self._tower_gates(sides, scaled)
        x = self.first(scaled).reshape(sides.row.shape[0], self.num_towers, self.first_width)
        return self.run_towers(self.activation(x) * first_gate, gates)

    def _tower_gates(self, sides: Sides, scaled: Sides) -> list[Tensor]:
        """PPNet: factors (N, K, width) of each hidden layer, from priors and, without gradient, inputs."""
        inputs = sides._replace(
            request=_beside(sides.request, self.get_buffer("request_ids"), scaled.request),
            row=_beside(sides.row, self.get_buffer("row_ids"), scaled.row),
        )
        return [gate(inputs) for gate in self.tower_gates]


def _beside(side: Tensor, columns: Tensor, scaled: Tensor) -> Tensor:
    """The chosen columns of a side, then all scaled ones without gradient, (rows, chosen + width)."""
    if columns.shape[0] == 0:
        return scaled.detach()
    return torch.cat([side.index_select(1, columns), scaled.detach()], dim=1)
