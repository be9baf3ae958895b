"""How the outputs of a row's chosen experts and of its shared expert meet, and what experts read.

Source: CESAA, arXiv 2411.06826, module CES, fusion.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from training.models.base import Sides

Fusion = Literal["sum", "concat"]


def fused(routed: Tensor, shared: Tensor | None, fusion: Fusion) -> Tensor:
    """What the tower reads: (N, H), or (N, 2 H) with `concat`.

    Args:
        routed: (N, H) float32, weighted sum of the chosen experts.
        shared: (N, H) float32; None where there is no shared expert.
        fusion: Sum, or side by side.
    """
    if shared is None:
        return routed
    return routed + shared if fusion == "sum" else torch.cat([routed, shared], dim=1)


def without_domain(sides: Sides, domain_width: int) -> Sides:
    """The same without the domain embedding in the last columns of the request side."""
    return sides._replace(request=sides.request[:, : sides.request.shape[1] - domain_width])
