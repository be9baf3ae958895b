"""Number format of the forward pass in training. Weights, gradients and evaluation stay float32."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, TypeAlias

import torch

Precision: TypeAlias = Literal["fp32", "bf16"]


def forward_precision(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """Context for one forward pass and its loss; bf16 casts matrix products only (torch autocast)."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device_type=device.type, dtype=torch.bfloat16)
