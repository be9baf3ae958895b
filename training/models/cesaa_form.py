"""CESAA for inference: the gate without noise, the chosen experts in one of several forms, plain layers.

Invariant: every form gives the logits of the model as trained, in evaluation mode, up to rounding.

Source: CESAA, arXiv 2411.06826; the forms are ours.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from training.models.base import Ranker, Sides, at_rows
from training.models.fold import fold_batch_norm
from training.models.fusion import Fusion, fused, without_domain
from training.models.layers import ExpertStack, StackedLinear, TwoSidedLinear
from training.models.pyramid import joined
from training.models.slicing import keep_maps
from training.models.topk_gate import Routing, TopKGate, choose

if TYPE_CHECKING:
    from training.models.cesaa import Cesaa

RoutedForm = Callable[[ExpertStack], nn.Module]
"""Makes from E experts a module that gives (N, H) from sides, experts (N, k) and weights (N, k)."""


FixedSet = tuple[Sequence[int], Sequence[float]]
"""k experts and their weights."""


def _fixed_tables(fixed: Mapping[int, FixedSet], top_k: int) -> dict[str, Tensor]:
    """By domain index up to the last that has a set, and one row more: whether, experts, weights."""
    size = max(fixed) + 2
    tables = {
        "is_fixed": torch.zeros(size, 1, dtype=torch.bool),
        "fixed_experts": torch.zeros(size, top_k, dtype=torch.int64),
        "fixed_weights": torch.zeros(size, top_k),
    }
    for domain, (experts, weights) in fixed.items():
        tables["is_fixed"][domain] = True
        tables["fixed_experts"][domain] = torch.tensor(list(experts))
        tables["fixed_weights"][domain] = torch.tensor(list(weights))
    return tables


class ClearGate(nn.Module):
    """The gate without noise.

    Args:
        clean: Logits (N, E) from both sides, or (R, E) from the domain embedding.
        top_k: k.
        domain_width: Width of the domain embedding in the last columns of the request side.
        by_domain: Whether `clean` reads the domain embedding alone.
        allowed: (D + 1, E) bool; None where every domain may choose every expert.
        numbers: What the experts it chooses from are called outside; None for 0 to E - 1.
        fixed: Experts and weights of domains that have one set for all rows, by index.
    """

    def __init__(
        self,
        clean: nn.Module,
        *,
        top_k: int,
        domain_width: int,
        by_domain: bool,
        allowed: Tensor | None,
        numbers: Sequence[int] | None = None,
        fixed: Mapping[int, FixedSet] | None = None,
    ) -> None:
        super().__init__()
        self.fixes = bool(fixed)
        if fixed:
            for name, table in _fixed_tables(fixed, top_k).items():
                self.register_buffer(name, table)
        self.is_renumbered = numbers is not None
        if numbers is not None:
            self.register_buffer("numbers", torch.tensor(list(numbers)))
        self.clean = clean
        self.top_k, self.domain_width, self.by_domain = top_k, domain_width, by_domain
        self.masks = allowed is not None
        if allowed is not None:
            # Added to logits: a table of floats is gathered without a cast.
            forbidden = torch.zeros(allowed.shape).masked_fill(~allowed, -torch.inf)
            self.register_buffer("forbidden", forbidden)

    def forward(self, sides: Sides) -> Routing:
        """The choice of N rows."""
        if self.by_domain:
            own = sides.request[:, sides.request.shape[1] - self.domain_width :]
            logits = at_rows(self.clean(own), sides.request_index)
        else:
            logits = self.clean(sides)
        if self.masks:
            by_request = self.get_buffer("forbidden").index_select(0, sides.domain)
            logits = logits + at_rows(by_request, sides.request_index)
        routing = choose(logits, self.top_k)
        if not self.fixes:
            return routing

        def of_rows(name: str) -> Tensor:
            table = self.get_buffer(name)
            place = sides.domain.clamp_max(table.shape[0] - 1)
            return at_rows(table.index_select(0, place), sides.request_index)

        here = of_rows("is_fixed")
        return Routing(
            logits,
            torch.where(here, of_rows("fixed_experts"), routing.experts),
            torch.where(here, of_rows("fixed_weights"), routing.weights),
        )

    def named(self, experts: Tensor) -> Tensor:
        """Experts (N, k) int64 as they are called outside."""
        if not self.is_renumbered:
            return experts
        return self.get_buffer("numbers").index_select(0, experts.reshape(-1)).reshape(experts.shape)


class FixedGate(nn.Module):
    """The same experts with the same weights for every row.

    Args:
        experts: k numbers.
        weights: Of these.
    """

    def __init__(self, experts: Sequence[int], weights: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("experts", torch.tensor([list(experts)]))
        self.register_buffer("weights", torch.tensor([list(weights)]))

    def forward(self, sides: Sides) -> Routing:
        """The same for N rows; there are no logits to compare."""
        experts, weights = self.get_buffer("experts"), self.get_buffer("weights")
        size = (sides.row.shape[0], experts.shape[1])
        return Routing(weights.expand(size), experts.expand(size), weights.expand(size))

    def named(self, experts: Tensor) -> Tensor:
        """As they are."""
        return experts


class CesaaForm(Ranker):
    """Gate, chosen experts, shared expert, tower, linear term.

    Args:
        gate: Gives each row's experts and weights.
        routed: Gives (N, H) from sides, experts (N, k) and weights (N, k).
        shared: Gives (N, 1, H), or None.
        fusion: How the two meet.
        tower: Hidden layers and the output of the tower.
        linear: Linear term.
        domain_bias: (D + 1, 1) float32; None where it is folded into the linear term.
        domain_width: Columns at the end of the request side that experts do not read.
        num_choices: E, of the whole model.
    """

    def __init__(
        self,
        *,
        gate: ClearGate | FixedGate,
        routed: nn.Module,
        shared: nn.Module | None,
        fusion: Fusion,
        tower: Sequence[nn.Module],
        linear: TwoSidedLinear,
        domain_bias: Tensor | None,
        domain_width: int,
        num_choices: int,
    ) -> None:
        super().__init__()
        self.num_choices = num_choices
        self.gate, self.routed, self.shared = gate, routed, shared
        self.fusion: Fusion = fusion
        *hidden, self.out = tower
        self.hidden = nn.ModuleList(hidden)
        self.linear = linear
        self.adds_bias = domain_bias is not None
        if domain_bias is not None:
            self.register_buffer("domain_bias", domain_bias)
        self.domain_width = domain_width

    def forward(self, sides: Sides) -> Tensor:
        """Logits (N,) float32."""
        return self.with_experts(sides)[0]

    def with_experts(self, sides: Sides) -> tuple[Tensor, Tensor | None]:
        """Logits (N,) float32 and the experts (N, k) int64 that each row chose."""
        routing: Routing = self.gate(sides)
        own = without_domain(sides, self.domain_width) if self.domain_width else sides
        routed = self.routed(own, routing.experts, routing.weights)
        shared = None if self.shared is None else self.shared(own).squeeze(1)
        x = fused(routed, shared, self.fusion)
        for layer in self.hidden:
            x = torch.relu(layer(x))
        logits: Tensor = self.out(x) + self.linear(sides)
        if self.adds_bias:
            bias = self.get_buffer("domain_bias").index_select(0, sides.domain)
            logits = logits + at_rows(bias, sides.request_index)
        return logits.squeeze(1), self.gate.named(routing.experts)

    def choice_margins(self, sides: Sides) -> Tensor:
        """(N,) float32; infinite where nothing is left to choose from."""
        routing: Routing = self.gate(sides)
        k = routing.experts.shape[1]
        if isinstance(self.gate, FixedGate) or routing.logits.shape[1] == k:
            return torch.full((sides.row.shape[0],), torch.inf)
        best = routing.logits.topk(k + 1, dim=1).values
        return best[:, k - 1] - best[:, k]


@torch.no_grad()
def cesaa_form(ranker: Cesaa, routed_form: RoutedForm) -> CesaaForm:
    """A ranker of all domains.

    Args:
        ranker: As trained.
        routed_form: Makes the routed part from the stack of experts.
    """
    own = copy.deepcopy(ranker).eval()
    fold_batch_norm(own)
    return CesaaForm(
        gate=clear_gate(own.gate, own.fixed),
        routed=routed_form(own.experts),
        shared=own.shared,
        fusion=own.fusion,
        tower=plain_tower(own),
        linear=own.linear,
        domain_bias=own.domain_bias.weight.detach().clone(),
        domain_width=0 if own.experts_read_domain else own.domain_width,
        num_choices=own.num_experts,
    )


def clear_gate(gate: TopKGate, fixed: Mapping[int, FixedSet]) -> ClearGate:
    """The gate of all domains, without noise; some domains may have one set for all rows."""
    allowed = gate.get_buffer("allowed")
    return ClearGate(
        gate.clean,
        top_k=gate.top_k,
        domain_width=gate.domain_width,
        by_domain=gate.by_domain,
        allowed=None if bool(allowed.all()) else allowed,
        fixed=fixed,
    )


def plain_tower(ranker: Cesaa) -> list[nn.Module]:
    """Hidden layers and output of the one tower."""
    layers = [layer for layer in (*ranker.towers, ranker.out) if isinstance(layer, StackedLinear)]
    return [joined(keep_maps(layer, [0])) for layer in layers]
