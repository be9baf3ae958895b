"""Exponential moving average of the dense weights.

Embedding tables stay as they are: averaging them would sweep every row at every step. Invariant: outside
`applied()` the model holds its live weights; inside it holds the averaged ones.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """Running average of dense weights, corrected for its start like Adam's moments.

    average_t = decay * average_{t-1} + (1 - decay) * weights_t, read as average_t / (1 - decay^t).
    """

    def __init__(self, parameters: Sequence[nn.Parameter], *, decay: float) -> None:
        """Start empty.

        Args:
            parameters: The dense parameters, in a fixed order.
            decay: In (0, 1); 0.999 remembers about the last 1000 steps.
        """
        self._parameters = list(parameters)
        self._decay = decay
        self._steps = 0
        self._sums = [torch.zeros_like(p, requires_grad=False) for p in self._parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after one optimiser step."""
        self._steps += 1
        for total, parameter in zip(self._sums, self._parameters, strict=True):
            total.mul_(self._decay).add_(parameter, alpha=1.0 - self._decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Hold the averaged weights in the model for the length of the block."""
        if self._steps == 0:
            yield
            return
        live = [p.detach().clone() for p in self._parameters]
        correction = 1.0 - self._decay**self._steps
        self._assign([total / correction for total in self._sums])
        try:
            yield
        finally:
            self._assign(live)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on, for a checkpoint."""
        return {"steps": self._steps, "sums": self._sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._steps = int(state["steps"])
        for total, saved in zip(self._sums, state["sums"], strict=True):
            total.copy_(saved)

    @torch.no_grad()
    def _assign(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            parameter.copy_(value)
