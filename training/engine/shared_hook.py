"""A hook of the loop where several ranks train: the first rank works, the others are told.

What a hook finds may take long and hang on the last bit of a sum, so one rank finds it and sends the result:
the hook's state and the model's buffers (towers of domains, masks). Invariant: after `before_step` hook and
buffers are equal on all ranks.
"""

from __future__ import annotations

from typing import Any

from training.engine.distributed import RankGroup
from training.engine.hook import LoopHook
from training.models.base import CtrModel, ModelOutput, TensorBatch


class HookOnFirst:
    """Runs `inner` on the first rank and copies what it did to the others."""

    def __init__(self, inner: LoopHook, model: CtrModel, *, group: RankGroup) -> None:
        """Share a hook.

        Args:
            inner: The hook, made alike on all ranks.
            model: Whose buffers it may write.
            group: Of several ranks.
        """
        self._inner, self._model, self._group = inner, model, group

    @property
    def judged(self) -> bool:
        """As the inner hook."""
        return self._inner.judged

    @property
    def finished(self) -> bool:
        """As the inner hook."""
        return self._inner.finished

    def due(self, step: int) -> bool:
        """As the inner hook."""
        return self._inner.due(step)

    def before_step(self, step: int) -> None:
        """Let the first rank work, where there is work."""
        if not self._inner.due(step):
            return

        def work() -> dict[str, Any]:
            self._inner.before_step(step)
            return {"hook": self._inner.state_dict(), "buffers": self._buffers()}

        told = self._group.on_first(work)
        if not self._group.is_first:
            self._inner.load_state_dict(told["hook"])
            self._model.load_state_dict(told["buffers"], strict=False)

    def forward(self, inputs: TensorBatch) -> ModelOutput:
        """As the inner hook."""
        return self._inner.forward(inputs)

    def keep_best(self) -> None:
        """As the inner hook."""
        self._inner.keep_best()

    def restore_best(self) -> None:
        """As the inner hook."""
        self._inner.restore_best()

    def state_dict(self) -> dict[str, Any]:
        """As the inner hook."""
        return self._inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As the inner hook."""
        self._inner.load_state_dict(state)

    def _buffers(self) -> dict[str, Any]:
        weights = {name for name, _ in self._model.named_parameters()}
        state = self._model.state_dict()
        return {name: value.cpu() for name, value in state.items() if name not in weights}
