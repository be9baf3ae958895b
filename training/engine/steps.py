"""From a batch to gradients: what the loop asks of whoever computes a step.

`LocalSteps` is one process by itself; `shared_steps.SharedSteps` is one rank of several. Invariant:
`backward` leaves in the parameters the gradients of the mean loss of the whole step, and touches no weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch

from training.data.dataset import Batch
from training.engine.batch import model_inputs, targets
from training.engine.loss import training_loss
from training.engine.precision import Precision, forward_precision
from training.models.base import ModelOutput, TensorBatch

Forward = Callable[[TensorBatch], ModelOutput]


class StepLoss(NamedTuple):
    """Losses of the whole step, nats per row.

    Attributes:
        rows: Weighted mean over rows.
        total: With the penalty, what gradients are of.
    """

    rows: float
    total: float


class Steps(Protocol):
    """Computes the gradients of a step."""

    def num_rows(self, batch: Batch) -> int:
        """Rows of the step that this batch is (a part of); called once per step, before `backward`."""
        ...

    def backward(self, batch: Batch, forward: Forward) -> StepLoss:
        """Add the gradients of the step's loss to the parameters'."""
        ...


class LocalSteps:
    """Steps of one process by itself."""

    def __init__(self, *, precision: Precision, device: torch.device) -> None:
        """Compute on `device`, with matrix products of the forward pass in `precision`."""
        self._precision, self._device = precision, device

    def num_rows(self, batch: Batch) -> int:
        """Rows of the batch."""
        return len(batch)

    def backward(self, batch: Batch, forward: Forward) -> StepLoss:
        """Gradients of the batch's loss."""
        label, weight = targets(batch, self._device)
        with forward_precision(self._precision, self._device):
            output = forward(model_inputs(batch, self._device))
        loss = training_loss(output, label, weight)
        total = loss + output.penalty
        total.backward()  # type: ignore[no-untyped-call]
        return StepLoss(float(loss.detach()), float(total.detach()))
