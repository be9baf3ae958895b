"""The chosen experts by one operator of ONNX Runtime, com.microsoft MoE.

It takes rows, gate logits and the stacked weights of experts with exactly two layers, the second as wide as
the rows: ours are padded to that with zeros. Behaviour of the operator changed between releases of the
runtime, so this form is taken only when it is asked for, and every opening of the bundle replays golden rows
against it. Invariant: none of its own; in torch it cannot run, so it is compared as a graph.

Source: ONNX Runtime, contrib operators, MoE; weights as W[e] (outer, inner).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from export.errors import ExportError
from service.contract.errors import ContractError
from training.models.base import Sides, at_rows
from training.models.layers import ExpertStack, StackedLinear, TwoSidedLinear


class FusedError(ExportError, ContractError):
    """Experts that the operator cannot compute."""


class FusedExperts(nn.Module):
    """Experts of two layers each.

    Args:
        stack: E experts, normalisation folded.

    Raises:
        FusedError: Not two layers.
    """

    def __init__(self, stack: ExpertStack) -> None:
        super().__init__()
        if len(stack.widths) != 2 or not isinstance(stack.first, TwoSidedLinear):
            raise FusedError(
                f"form fused: experts of widths {list(stack.widths)}; the operator takes exactly 2 layers"
            )
        (last,) = stack.linears
        if not isinstance(last, StackedLinear):
            raise FusedError(f"form fused: an expert ends in {type(last).__name__}, not in a plain layer")
        E, (hidden, out) = stack.num_experts, stack.widths
        self.num_experts, self.out_width = E, out
        first = stack.first
        joined = torch.cat([first.request.weight, first.row.weight], dim=1).detach()
        self.width = max(joined.shape[1], out)
        self.pad = self.width - joined.shape[1]
        up = functional.pad(joined.reshape(E, hidden, -1), (0, self.pad))
        down = functional.pad(last.weight.detach().mT, (0, 0, 0, self.width - out))
        self.register_buffer("up", up.contiguous())
        self.register_buffer("up_bias", first.request.bias.detach().reshape(E, hidden).contiguous())
        self.register_buffer("down", down.contiguous())
        self.register_buffer("down_bias", functional.pad(last.bias.detach(), (0, self.width - out)))

    def forward(self, sides: Sides, experts: Tensor, weights: Tensor) -> Tensor:
        """(N, H) float32 from experts (N, k) int64 and weights (N, k) float32.

        The operator chooses by logits of its own: the log of a row's weights, and minus infinity elsewhere,
        whose softmax over k experts are those weights again.
        """
        x = torch.cat([at_rows(sides.request, sides.request_index), sides.row], dim=1)
        x = functional.pad(x, (0, self.pad))
        least = torch.full((x.shape[0], self.num_experts), -1e30)
        logits = least.scatter(1, experts, weights.clamp_min(1e-30).log())
        names = ("up", "up_bias", "down", "down_bias")
        found = torch.onnx.ops.symbolic(
            "com.microsoft::MoE",
            (x, logits, *(self.get_buffer(name) for name in names)),
            {"k": experts.shape[1], "activation_type": "relu", "normalize_routing_weights": 1},
            dtype=x.dtype,
            shape=x.shape,
            version=1,
        )
        if experts.shape[1] == 1:
            found = found * weights
        mixed: Tensor = found[:, : self.out_width]
        return mixed
