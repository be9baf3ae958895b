"""CESAA of one domain: only the experts that it may choose, its embedding and bias folded into biases.

    chosen by row      the gate over the experts that the domain's mask leaves
    chosen for good    where the gate reads the domain alone, or where one set is given: no gate at all

Invariant: the logits are those of the whole model in inference form for rows of the domain, up to rounding.

Source: CESAA, arXiv 2411.06826; the forms are ours.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.models.cesaa import Cesaa
from training.models.cesaa_form import CesaaForm, ClearGate, FixedGate, plain_tower
from training.models.fold import fold_batch_norm
from training.models.layers import TwoSidedLinear
from training.models.routed_experts import DenseExperts, StaticExperts
from training.models.slicing import fold_domain, keep_experts, keep_rows
from training.models.topk_gate import choose


@torch.no_grad()
def cesaa_of_one_domain(ranker: Cesaa, domain: int, vector: Tensor) -> CesaaForm:
    """A ranker of one domain.

    Args:
        ranker: As trained.
        domain: Index, D for the unknown domain.
        vector: (domain_width,) float32 embedding of the domain, the last columns of what `ranker` reads.
    """
    own = copy.deepcopy(ranker).eval()
    fold_batch_norm(own)
    if own.experts_read_domain:
        fold_domain(own.experts, vector)
        if own.shared is not None:
            fold_domain(own.shared, vector)
    fold_domain(own.linear, vector)
    own.linear.request.bias.add_(own.domain_bias.weight[domain])
    fixed = own.fixed.get(domain)
    gate, routed = _choice(own, domain, vector) if fixed is None else _fixed(own, *fixed)
    return CesaaForm(
        gate=gate,
        routed=routed,
        shared=own.shared,
        fusion=own.fusion,
        tower=plain_tower(own),
        linear=own.linear,
        domain_bias=None,
        domain_width=0,
        num_choices=own.num_experts,
    )


def _fixed(own: Cesaa, experts: Sequence[int], weights: Sequence[float]) -> tuple[FixedGate, nn.Module]:
    return FixedGate(experts, weights), StaticExperts(own.experts, experts, weights)


def _choice(own: Cesaa, domain: int, vector: Tensor) -> tuple[ClearGate | FixedGate, nn.Module]:
    """Gate and experts with nothing that the domain does not use."""
    allowed = list(own.gate.allowed_experts[domain])
    clean = own.gate.clean
    if not isinstance(clean, TwoSidedLinear):
        logits = clean(vector.unsqueeze(0))
        forbidden = torch.ones_like(logits, dtype=torch.bool)
        forbidden[0, allowed] = False
        routing = choose(logits.masked_fill(forbidden, -torch.inf), own.gate.top_k)
        return _fixed(own, routing.experts[0].tolist(), routing.weights[0].tolist())
    gate = keep_rows(clean, allowed)
    fold_domain(gate, vector)
    stack = keep_experts(own.experts, allowed)
    every = len(allowed) == own.gate.top_k  # each row chooses all of them: there is nothing to skip
    return (
        ClearGate(gate, top_k=own.gate.top_k, domain_width=0, by_domain=False, allowed=None, numbers=allowed),
        DenseExperts(stack) if every else own.routed_form(stack),
    )
