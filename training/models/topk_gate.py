"""A gate that lets each row choose its k best experts out of E.

    h  = z W_g                                     clean logits; z = [features; domain], or the domain alone
    h~ = h + eps (softplus(z W_n) + eps0)          in training only, eps ~ N(0, 1)
    G  = softmax over the k largest of h~, 0 elsewhere; with k = 1 the chosen entry of the full softmax

With k = 1 a softmax over the one logit kept would be the constant 1, and the gate would learn nothing from
the loss of the predictions. Invariants: exactly k experts a row, none that the row's domain does not allow;
in evaluation mode nothing is random; a row's choice hangs on that row alone.

Source: CESAA, arXiv 2411.06826, module CES, with the noise of Shazeer et al., "Outrageously Large Neural
Networks", ICLR 2017. W_g starts small but not at zero: with equal logits two runtimes choose differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from service.contract.errors import SchemaError
from training.models.base import Sides, at_rows
from training.models.layers import TwoSidedLinear

GateInput = Literal["features+domain", "domain"]
NOISE_FLOOR = 1e-2
"""eps0."""
START_STD = 0.01
"""Of W_g at first."""


class Routing(NamedTuple):
    """Which experts N rows chose.

    Attributes:
        logits: (N, E) float32 that were compared, noisy in training; -inf where a domain does not allow it.
        experts: (N, k) int64, the best first.
        weights: (N, k) float32 of the chosen ones.
    """

    logits: Tensor
    experts: Tensor
    weights: Tensor

    @property
    def probabilities(self) -> Tensor:
        """(N, E) softmax over all experts: what a row thinks of each before it chooses."""
        return torch.softmax(self.logits, dim=1)

    def dense_weights(self) -> Tensor:
        """G, (N, E): the weight of each expert, 0 for those not chosen."""
        return torch.zeros_like(self.logits).scatter(1, self.experts, self.weights)


def choose(logits: Tensor, k: int) -> Routing:
    """The k best experts of each row and their weights.

    Args:
        logits: (N, E) float32.
        k: From 1 to E.
    """
    kept, experts = torch.topk(logits, k, dim=1)
    weights = torch.softmax(logits, dim=1).gather(1, experts) if k == 1 else functional.softmax(kept, dim=1)
    return Routing(logits, experts, weights)


def noisy(logits: Tensor, noise_logits: Tensor, eps: Tensor) -> Tensor:
    """Logits (N, E) with noise.

    Args:
        logits: (N, E) clean.
        noise_logits: (N, E), z W_n: the standard deviation before softplus.
        eps: (N, E) draws from N(0, 1).
    """
    return logits + eps * (functional.softplus(noise_logits) + NOISE_FLOOR)


class TopKGate(nn.Module):
    """Gate logits, noise, the experts that domains allow, the choice.

    Args:
        request_width: P, width of the request side, the domain embedding in its last columns.
        row_width: Q, width of the row side.
        domain_width: Width of the domain embedding.
        num_domains: D.
        num_experts: E.
        top_k: k.
        gate_input: What z is.

    Raises:
        SchemaError: k is not between 1 and E.
    """

    def __init__(
        self,
        *,
        request_width: int,
        row_width: int,
        domain_width: int,
        num_domains: int,
        num_experts: int,
        top_k: int,
        gate_input: GateInput,
    ) -> None:
        super().__init__()
        if not 1 <= top_k <= num_experts:
            raise SchemaError(f"top_k is {top_k}; allowed are 1 to num_experts, {num_experts}")
        self.top_k = top_k
        self.domain_width = domain_width
        self.by_domain = gate_input == "domain"

        def gate() -> nn.Module:
            if self.by_domain:
                return nn.Linear(domain_width, num_experts, bias=False)
            return TwoSidedLinear(request_width, row_width, num_experts, bias=False)

        self.clean = gate()
        self.noise = gate()
        for parameter in self.clean.parameters():
            nn.init.normal_(parameter, std=START_STD)
        for parameter in self.noise.parameters():
            nn.init.zeros_(parameter)
        every = torch.ones(num_domains + 1, num_experts, dtype=torch.bool)
        self.register_buffer("allowed", every, persistent=True)

    def forward(self, sides: Sides) -> Routing:
        """The choice of N rows."""
        logits = self._read(self.clean, sides)
        if self.training:
            logits = noisy(logits, self._read(self.noise, sides), torch.randn_like(logits))
        allowed = at_rows(self.get_buffer("allowed").index_select(0, sides.domain), sides.request_index)
        return choose(logits.masked_fill(~allowed, -torch.inf), self.top_k)

    @property
    def allowed_experts(self) -> tuple[tuple[int, ...], ...]:
        """Experts that each of D + 1 domains may choose from."""
        return tuple(tuple(row.nonzero().flatten().tolist()) for row in self.get_buffer("allowed"))

    def allow(self, experts: Sequence[Sequence[int]]) -> None:
        """Say which experts each domain may choose from.

        Args:
            experts: Of the D + 1 domains; at least k each.

        Raises:
            SchemaError: Not a list per domain, fewer than k experts, or one that does not exist.
        """
        table = self.get_buffer("allowed")
        if len(experts) != table.shape[0]:
            raise SchemaError(f"allowed experts of {len(experts)} domains; {table.shape[0]} are needed")
        for domain, allowed in enumerate(experts):
            if bad := sorted({e for e in allowed if not 0 <= e < table.shape[1]}):
                raise SchemaError(f"domain index {domain} allows experts {bad}; there are {table.shape[1]}")
            if len(set(allowed)) < self.top_k:
                raise SchemaError(
                    f"domain index {domain} allows {len(set(allowed))} experts; each row chooses {self.top_k}"
                )
        table.zero_()
        for domain, allowed in enumerate(experts):
            table[domain, list(allowed)] = True

    def _read(self, gate: nn.Module, sides: Sides) -> Tensor:
        """(N, E) from the inputs that the gate reads."""
        if self.by_domain:
            own = sides.request[:, sides.request.shape[1] - self.domain_width :]
            return at_rows(gate(own), sides.request_index)
        logits: Tensor = gate(sides)
        return logits
