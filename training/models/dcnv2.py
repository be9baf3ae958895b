"""DCN-V2: explicit feature crosses of bounded degree beside a deep network.

Source: Wang et al., "DCN V2: Improved Deep & Cross Network", WWW 2021, eq. 1 and 3 (low-rank cross
layer, parallel structure). We differ in adding a bias per domain to the logit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.models.base import Ranker, Sides, at_rows
from training.models.layers import TwoSidedLinear, TwoSidedMlp


class Dcnv2(Ranker):
    """Cross layers x_{l+1} = x_0 * (U V x_l + b) + x_l and an MLP, both read by one linear output.

    Args:
        request_width: P, width of the request side.
        row_width: Q, width of the row side.
        num_domains: D; the domain bias has D + 1 rows.
        num_cross_layers: Number of cross layers.
        cross_rank: Rank of each cross matrix.
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
        num_cross_layers: int,
        cross_rank: int,
        deep_widths: Sequence[int],
        dropout: float,
        batch_norm: bool,
    ) -> None:
        super().__init__()
        width = request_width + row_width
        self.first_down = TwoSidedLinear(request_width, row_width, cross_rank, bias=False)
        self.downs = nn.ModuleList(
            nn.Linear(width, cross_rank, bias=False) for _ in range(num_cross_layers - 1)
        )
        self.ups = nn.ModuleList(nn.Linear(cross_rank, width) for _ in range(num_cross_layers))
        self.deep = TwoSidedMlp(request_width, row_width, deep_widths, dropout=dropout, batch_norm=batch_norm)
        self.out = nn.Linear(width + self.deep.out_width, 1)
        self.domain_bias = nn.Embedding(num_domains + 1, 1)
        nn.init.zeros_(self.domain_bias.weight)

    def forward(self, sides: Sides) -> Tensor:
        """Logits (N,) float32."""
        x0 = torch.cat([at_rows(sides.request, sides.request_index), sides.row], dim=1)
        x = x0 * self.ups[0](self.first_down(sides)) + x0
        for down, up in zip(self.downs, self.ups[1:], strict=True):
            x = x0 * up(down(x)) + x
        out: Tensor = self.out(torch.cat([x, self.deep(sides)], dim=1))
        return (out + at_rows(self.domain_bias(sides.domain), sides.request_index)).squeeze(-1)
