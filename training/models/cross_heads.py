"""Cross network and linear term of several heads, computed from a handful of products with the inputs.

A cross layer is x_{l+1} = x_0 (w_l . x_l) + b_l + x_l (Wang et al., "Deep & Cross Network for Ad Click
Predictions", ADKDD 2017, eq. 3). So x_l = alpha_l x_0 + beta_l with a number alpha_l per row and
a vector beta_l of parameters only:

    alpha_{l+1} = alpha_l (1 + w_l . x_0) + w_l . beta_l        alpha_0 = 1
    beta_{l+1}  = beta_l + b_l                                  beta_0  = 0

and a head v reads v . x_L = alpha_L (v . x_0) + v . beta_L. Invariant: the logits are those of the cross
network run layer by layer, up to rounding; no vector as wide as the inputs is made per row.

Letters: I = P + Q width of the inputs, C cross layers, H heads.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from training.models.base import Sides
from training.models.layers import TwoSidedLinear


class CrossHeads(nn.Module):
    """H linear heads over a cross network's output, plus one linear term over the inputs for all.

    Args:
        request_width: P, width of the request side.
        row_width: Q, width of the row side.
        num_layers: C, at least 1.
        num_heads: H.
    """

    def __init__(self, *, request_width: int, row_width: int, num_layers: int, num_heads: int) -> None:
        super().__init__()
        self.num_layers = num_layers
        self.num_heads = num_heads
        # Rows: w_0 .. w_{C-1}, one v per head, the linear term.
        self.products = TwoSidedLinear(request_width, row_width, num_layers + num_heads + 1, bias=False)
        self.linear_bias = nn.Parameter(torch.zeros(1))
        self.cross_bias = nn.Parameter(torch.zeros(num_layers, request_width + row_width))

    def forward(self, sides: Sides) -> Tensor:
        """(N, H) float32."""
        return cross_logits(self.products(sides), self.offsets(), self.num_layers, self.num_heads)

    def offsets(self) -> Tensor:
        """(C + H,) float32: w_l . beta_l of the layers, then v . beta_C + bias of the heads."""
        weight = torch.cat([self.products.request.weight, self.products.row.weight], dim=1)
        beta = self.cross_bias.cumsum(dim=0)  # row l is beta_{l+1}
        layers = (weight[1 : self.num_layers] * beta[:-1]).sum(dim=1)
        heads = weight[self.num_layers : -1] @ beta[-1]
        return torch.cat([layers.new_zeros(1), layers, heads + self.linear_bias])

    def freeze(self) -> FrozenCrossHeads:
        """The same with constant offsets; shares the weights."""
        with torch.no_grad():
            return FrozenCrossHeads(self.products, self.offsets(), self.num_layers)


class FrozenCrossHeads(nn.Module):
    """`CrossHeads` for inference.

    The 1 of every alpha_l (1 + w_l . x_0) is in the bias of the products here.

    Args:
        products: Two-sided layer of C + H + 1 rows without bias.
        offsets: (C + H,) float32.
        num_layers: C.
    """

    def __init__(self, products: TwoSidedLinear, offsets: Tensor, num_layers: int) -> None:
        super().__init__()
        self.products = copy.deepcopy(products)
        self.num_layers = num_layers
        self.num_heads = offsets.shape[0] - num_layers
        if "bias" not in dict(self.products.request.named_parameters()):
            ones = torch.zeros(num_layers + self.num_heads + 1)
            ones[:num_layers] = 1.0
            self.products.request.bias = nn.Parameter(ones, requires_grad=False)
        self.register_buffer("offsets", offsets)

    def forward(self, sides: Sides) -> Tensor:
        """(N, H) float32."""
        offsets = self.get_buffer("offsets")
        parts = self.products(sides).split([1] * self.num_layers + [self.num_heads, 1], dim=1)
        alpha = parts[0]  # the first layer's offset is 0
        for layer in range(1, self.num_layers):
            alpha = alpha * parts[layer] + offsets.narrow(0, layer, 1)
        logits: Tensor = alpha * parts[-2] + parts[-1] + offsets.narrow(0, self.num_layers, self.num_heads)
        return logits


def cross_logits(products: Tensor, offsets: Tensor, num_layers: int, num_heads: int) -> Tensor:
    """Logits of heads from products with the inputs.

    Args:
        products: (N, C + H + 1) float32: w_l . x_0, v . x_0, linear term.
        offsets: (C + H,) float32 as `CrossHeads.offsets` gives them.
        num_layers: C.
        num_heads: H.

    Returns:
        (N, H) float32.
    """
    layers = products.narrow(1, 0, num_layers)
    heads, linear = products.narrow(1, num_layers, num_heads), products.narrow(1, num_layers + num_heads, 1)
    alpha = 1.0 + layers.narrow(1, 0, 1)  # the first layer's offset is 0
    for layer in range(1, num_layers):
        alpha = alpha + alpha * layers.narrow(1, layer, 1) + offsets.narrow(0, layer, 1)
    return alpha * heads + linear + offsets.narrow(0, num_layers, num_heads)
