"""CESAA: each row runs one shared expert and its k best of E routed experts; one tower serves all domains.

    o = E_sh(e) + sum over the chosen i of G_i E_i(e)         or the two side by side, with fusion `concat`
    logit = tower(o) + linear term + bias of the domain,      loss = BCE - weight * I(E;D)

Here, as trained, every expert is computed and the unchosen ones count 0; graphs compute the chosen ones only
(`cesaa_form.py`). Invariant: in evaluation mode a row's logit hangs on that row alone.

Source: CESAA, arXiv 2411.06826, modules CES and AEA. We differ in adding a linear term over the inputs and a
bias per domain to the logit, as all rankers here have, and in the option that experts read the domain. The
last layer of an expert is linear, so that experts may take from the sum as well as add to it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from service.contract.errors import SchemaError
from training.models.base import Ranker, Sides
from training.models.cesaa_form import FixedSet, RoutedForm, cesaa_form
from training.models.fusion import Fusion, fused, without_domain
from training.models.layers import StackedExperts
from training.models.routed_experts import GroupedExperts
from training.models.routing_information import Prior, joint_distribution, mutual_information
from training.models.topk_gate import GateInput, Routing, TopKGate
from training.models.towers import MlpTowerRanker

ExpertInput = Literal["features", "features+domain"]


class Cesaa(MlpTowerRanker):
    """Gate, experts, the shared expert, the tower.

    Args:
        request_width: P, width of the request side, the domain embedding in its last columns.
        row_width: Q, width of the row side.
        domain_width: Width of the domain embedding.
        num_domains: D.
        num_experts: E, routed ones.
        top_k: k.
        expert_widths: Hidden widths of each expert; the last one, H, is its output.
        tower_widths: Hidden widths of the tower before its output.
        shared_expert: Whether there is an expert that every row runs.
        fusion: How its output and that of the chosen ones meet.
        gate_input: What the gate reads.
        expert_input: What experts read.
        mi_weight: Factor on -I(E;D) in the loss.
        mi_prior: P(D) in it.
        dropout: Drop rate after each hidden layer.
        batch_norm: Whether hidden layers of the experts are normalised, over all rows.

    Attributes:
        routed_form: How inference computes the chosen experts.
        fixed: Domains whose rows all use one set of experts in inference, by index.

    Raises:
        SchemaError: k does not fit, or `concat` without a shared expert.
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
        expert_widths: tuple[int, ...],
        tower_widths: tuple[int, ...],
        shared_expert: bool,
        fusion: Fusion,
        gate_input: GateInput,
        expert_input: ExpertInput,
        mi_weight: float,
        mi_prior: Prior,
        dropout: float,
        batch_norm: bool,
    ) -> None:
        if fusion == "concat" and not shared_expert:
            raise SchemaError("fusion is concat, but there is no shared expert; set shared_expert or sum")
        super().__init__(
            request_width=request_width,
            row_width=row_width,
            tower_of_domain=[0] * (num_domains + 1),
            inner_width=expert_widths[-1] * (2 if fusion == "concat" else 1),
            tower_widths=tower_widths,
            dropout=dropout,
        )
        self.num_domains, self.domain_width = num_domains, domain_width
        self.fusion: Fusion = fusion
        self.mi_prior: Prior = mi_prior
        self.experts_read_domain = expert_input == "features+domain"

        def experts(number: int) -> StackedExperts:
            return StackedExperts(
                request_width - (0 if self.experts_read_domain else domain_width),
                row_width,
                expert_widths,
                num_experts=number,
                dropout=dropout,
                batch_norm=batch_norm,
                linear_output=True,
            )

        self.gate = TopKGate(
            request_width=request_width,
            row_width=row_width,
            domain_width=domain_width,
            num_domains=num_domains,
            num_experts=num_experts,
            top_k=top_k,
            gate_input=gate_input,
        )
        self.experts = experts(num_experts)
        self.shared = experts(1) if shared_expert else None
        self.register_buffer("mi_weight", torch.tensor(float(mi_weight)), persistent=True)
        self.routed_form: RoutedForm = GroupedExperts
        self.fixed: dict[int, FixedSet] = {}
        self._penalty: Tensor | None = None

    @property
    def num_experts(self) -> int:
        """E."""
        return self.experts.num_experts

    def tower_logits(self, sides: Sides) -> Tensor:
        """(N, 1) float32; in training remembers the loss term of this batch."""
        routing = self.gate(sides)
        if self.training:
            self._penalty = self._information_loss(routing, sides)
        return self._tower_logits(sides, routing.dense_weights())

    def logits_with(self, sides: Sides, weights: Tensor) -> Tensor:
        """Logits (N,) with weights (N, E) float32 of the experts in the place of the gate's."""
        return (self._tower_logits(sides, weights) + self._common(sides)).squeeze(-1)

    def penalty(self) -> Tensor | None:
        """-weight * I(E;D) of the last training batch; None outside of training."""
        found, self._penalty = self._penalty, None
        return found

    def set_mi_weight(self, value: float) -> None:
        """Change the factor on -I(E;D)."""
        self.get_buffer("mi_weight").fill_(value)

    def for_inference(self) -> Ranker:
        """Each expert computed on the rows that chose it, unless `routed_form` says otherwise."""
        return cesaa_form(self, self.routed_form)

    def experts_kept(self) -> tuple[tuple[str, ...], ...] | None:
        """Experts that each of D + 1 domains may choose; None where all may choose every one."""
        allowed = self.gate.allowed_experts
        if all(len(own) == self.num_experts for own in allowed):
            return None
        return tuple(tuple(f"routed.{expert}" for expert in own) for own in allowed)

    def expert_sides(self, sides: Sides) -> Sides:
        """What experts read of the inputs."""
        return sides if self.experts_read_domain else without_domain(sides, self.domain_width)

    def _tower_logits(self, sides: Sides, weights: Tensor) -> Tensor:
        own = self.expert_sides(sides)
        routed = torch.matmul(weights.unsqueeze(1), self.experts(own)).squeeze(1)
        shared = None if self.shared is None else self.shared(own).squeeze(1)
        return self.run_towers(fused(routed, shared, self.fusion).unsqueeze(1))

    def _information_loss(self, routing: Routing, sides: Sides) -> Tensor:
        domain = sides.domain if sides.request_index is None else sides.domain[sides.request_index]
        joint = joint_distribution(
            routing.probabilities.float(), domain, num_domains=self.num_domains, prior=self.mi_prior
        )
        return -self.get_buffer("mi_weight") * mutual_information(joint)
