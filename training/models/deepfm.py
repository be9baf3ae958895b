"""DeepFM: first-order and pairwise terms of a factorisation machine beside a deep network.

Source: Guo et al., "DeepFM: A Factorization-Machine based Neural Network for CTR Prediction", IJCAI
2017, eq. 1-3. We differ in what counts as a feature of the machine: each number of the dense inputs
rather than each field, since embeddings may differ in width and numbers and pooled lists have none. A
field's embedding then acts through the factors of its coordinates. We add a bias per domain.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.models.base import Ranker, Sides, at_rows
from training.models.layers import TwoSidedLinear, TwoSidedMlp


class PairwiseTerm(nn.Module):
    """sum_{a<b} <v_a, v_b> x_a x_b over the numbers x = [request; row], each with a factor vector v.

    Computed as half of (sum_a v_a x_a)^2 - sum_a (v_a x_a)^2, summed over the F factors (Rendle 2010,
    Lemma 3.1): linear in the width, and both sums split into a request and a row half.

    Args:
        request_width: P.
        row_width: Q.
        num_factors: F, length of each factor vector.
    """

    def __init__(self, request_width: int, row_width: int, num_factors: int) -> None:
        super().__init__()
        self.factors = TwoSidedLinear(request_width, row_width, num_factors, bias=False)

    def forward(self, sides: Sides) -> Tensor:
        """(N, 1) float32."""
        square_of_sum = self.factors(sides).pow(2).sum(dim=1, keepdim=True)
        request_half = _sum_of_squares(sides.request, self.factors.request)
        row_half = _sum_of_squares(sides.row, self.factors.row)
        half: Tensor = 0.5 * (square_of_sum - at_rows(request_half, sides.request_index) - row_half)
        return half


def _sum_of_squares(x: Tensor, factors: nn.Linear) -> Tensor:
    """sum_a x_a^2 |v_a|^2, (rows, 1), for x (rows, width) and factors of weight (F, width)."""
    return torch.matmul(x.pow(2), factors.weight.pow(2).sum(dim=0).unsqueeze(1))


class DeepFm(Ranker):
    """Linear, pairwise and deep terms over the same inputs, added up.

    Args:
        request_width: P, width of the request side.
        row_width: Q, width of the row side.
        num_domains: D; the domain bias has D + 1 rows.
        num_factors: Length of the factor vectors.
        deep_widths: Hidden widths of the deep network.
        dropout: Drop rate after each hidden layer.
        batch_norm: Whether hidden layers are normalised.
    """

    def __init__(
        self,
        *,
        request_width: int,
        row_width: int,
        num_domains: int,
        num_factors: int,
        deep_widths: Sequence[int],
        dropout: float,
        batch_norm: bool,
    ) -> None:
        super().__init__()
        self.linear = TwoSidedLinear(request_width, row_width, 1)
        self.pairwise = PairwiseTerm(request_width, row_width, num_factors)
        self.deep = TwoSidedMlp(request_width, row_width, deep_widths, dropout=dropout, batch_norm=batch_norm)
        self.out = nn.Linear(self.deep.out_width, 1, bias=False)
        self.domain_bias = nn.Embedding(num_domains + 1, 1)
        nn.init.zeros_(self.domain_bias.weight)

    def forward(self, sides: Sides) -> Tensor:
        """Logits (N,) float32."""
        machine = self.linear(sides) + self.pairwise(sides)
        bias = at_rows(self.domain_bias(sides.domain), sides.request_index)
        logits: Tensor = machine + self.out(self.deep(sides)) + bias
        return logits.squeeze(-1)
