"""What may take part in training beside the loop, and the hook that does nothing.

The loop knows this protocol and no method behind it. Invariant: all that a hook remembers is in its
`state_dict`, so a run that goes on from a checkpoint is exact.
"""

from __future__ import annotations

from typing import Any, Protocol

from training.models.base import CtrModel, ModelOutput, TensorBatch


class LoopHook(Protocol):
    """Takes part in every step."""

    @property
    def judged(self) -> bool:
        """Whether the model may be validated now; validations before are passed over."""
        ...

    @property
    def finished(self) -> bool:
        """Whether training may end here."""
        ...

    def due(self, step: int) -> bool:
        """Whether `before_step` has work to do there; the same on all ranks."""
        ...

    def before_step(self, step: int) -> None:
        """`step` optimiser steps are done and the next begins; called once per step."""
        ...

    def forward(self, inputs: TensorBatch) -> ModelOutput:
        """What the step's loss is taken of."""
        ...

    def keep_best(self) -> None:
        """The model has its best validation value so far."""
        ...

    def restore_best(self) -> None:
        """Training is over and the best weights are back."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, for a checkpoint."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        ...


class PlainSteps:
    """Trains the model as it is."""

    judged = True
    finished = False

    def __init__(self, model: CtrModel) -> None:
        self._model = model

    def due(self, step: int) -> bool:  # noqa: ARG002 (never)
        """Never."""
        return False

    def before_step(self, step: int) -> None:
        """Nothing."""

    def forward(self, inputs: TensorBatch) -> ModelOutput:
        """The model's own output."""
        output: ModelOutput = self._model(inputs)
        return output

    def keep_best(self) -> None:
        """Nothing."""

    def restore_best(self) -> None:
        """Nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""
