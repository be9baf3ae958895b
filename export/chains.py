"""Layers as an exported graph runs them: plain matrix products without joining and splitting between them.

    TwoSidedGemm   row half and gathered request half of a first layer in one product with a matrix as bias
    ExpertChains   experts of a stack, each a chain of plain layers of its own, joined once at the end

ONNX Runtime packs constant two-dimensional matrices ahead of time and fuses ReLU into the product before
it; a batched product, or a wide one with a split after it, gets neither and measures slower at every size.
Invariant: outputs are those of the layers they were made from, up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.models.base import Sides, at_rows
from training.models.layers import Activation, ExpertStack, StackedLinear, TwoSidedLinear


class TwoSidedGemm(TwoSidedLinear):
    """`TwoSidedLinear` whose two halves are added by the product itself.

    Args:
        request: (P, width) half, with the bias.
        row: (Q, width) half.
    """

    def __init__(self, request: nn.Linear, row: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.request = request
        self.row = row

    @classmethod
    def of(cls, linear: TwoSidedLinear) -> TwoSidedGemm:
        """The same map."""
        return cls(linear.request, linear.row)

    def forward(self, sides: Sides) -> Tensor:
        """(N, width) float32."""
        request = at_rows(self.request(sides.request), sides.request_index)
        return torch.addmm(request, sides.row, self.row.weight.t())


def halves_of(linear: TwoSidedLinear, sizes: Sequence[int]) -> list[TwoSidedGemm]:
    """Maps of some outputs each, in order."""
    rows = torch.split(linear.row.weight.detach(), list(sizes))
    weights = torch.split(linear.request.weight.detach(), list(sizes))
    biases: list[Tensor | None] = [None] * len(sizes)
    if isinstance(linear.request.bias, nn.Parameter):
        biases = list(torch.split(linear.request.bias.detach(), list(sizes)))
    return [
        TwoSidedGemm(plain_linear(weight, bias), plain_linear(row, None))
        for weight, bias, row in zip(weights, biases, rows, strict=True)
    ]


def plain_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer of given weight (outer, inner) and bias (outer,)."""
    own = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    own.weight = nn.Parameter(weight.detach().contiguous(), requires_grad=False)
    if bias is not None:
        own.bias = nn.Parameter(bias.detach().contiguous(), requires_grad=False)
    return own


class ExpertChains(nn.Module):
    """`ExpertStack` for inference.

    Args:
        stack: In evaluation mode, normalisation folded.
    """

    def __init__(self, stack: ExpertStack) -> None:
        super().__init__()
        self.num_experts, self.widths, self.out_width = stack.num_experts, stack.widths, stack.out_width
        self.linear_output = not isinstance(stack.activations[-1], Activation)
        self.first: nn.Module | None = None
        self.firsts = nn.ModuleList()
        if isinstance(stack.first, TwoSidedLinear):
            self.firsts = nn.ModuleList(halves_of(stack.first, [stack.widths[0]] * stack.num_experts))
            self.reads_sides = True
        else:
            self.reads_sides = False
            if isinstance(stack.first, StackedLinear):
                self.firsts = nn.ModuleList(_maps(stack.first))
            else:
                self.first = stack.first
        layers = [_maps(linear) for linear in stack.linears if isinstance(linear, StackedLinear)]
        self.chains = nn.ModuleList(
            nn.ModuleList(layer[expert] for layer in layers) for expert in range(stack.num_experts)
        )

    def outputs(self, inputs: Sides | Tensor) -> list[Tensor]:
        """Outputs (N, out_width) of the experts, one after the other."""
        return [self._chain(expert, x) for expert, x in enumerate(self._first(inputs))]

    def forward(self, inputs: Sides | Tensor) -> Tensor:
        """(N, E, out_width) float32."""
        flat = torch.cat(self.outputs(inputs), dim=1)
        return flat.reshape(flat.shape[0], self.num_experts, self.out_width)

    def _first(self, inputs: Sides | Tensor) -> list[Tensor]:
        """First layers without activation, (N, widths[0]) each."""
        if self.reads_sides:
            return [first(inputs) for first in self.firsts]
        if self.first is None:
            if not isinstance(inputs, Tensor):
                raise TypeError(f"experts over blocks of numbers got {type(inputs).__name__}")
            return [first(x) for first, x in zip(self.firsts, inputs.unbind(1), strict=True)]
        values: Tensor = self.first(inputs)
        return list(values.reshape(values.shape[0], self.num_experts, self.widths[0]).unbind(1))

    def _chain(self, expert: int, x: Tensor) -> Tensor:
        layers = self.chains[expert]
        if not isinstance(layers, nn.ModuleList):
            raise TypeError(f"expert {expert} is a {type(layers).__name__}; expected ModuleList")
        for layer in layers:
            x = layer(torch.relu(x))
        return x if self.linear_output else torch.relu(x)


def _maps(linear: StackedLinear) -> list[nn.Linear]:
    """The maps of a stack, (inner, outer) each, one by one."""
    pairs = zip(linear.weight.detach().unbind(0), linear.bias.detach().unbind(0), strict=True)
    return [plain_linear(weight.t(), bias) for weight, bias in pairs]
