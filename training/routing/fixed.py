"""Let rows of some domains use one set of experts with constant weights, whatever the gate says.

That is what a graph of one domain without a gate computes; here the whole model is put into that state for a
while, so that what it would cost can be measured. Invariant: after the block the model is as before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType

import torch
from torch import Tensor, nn

from training.models.base import CtrModel, Sides, at_rows
from training.models.topk_gate import Routing
from training.routing.warmup import cesaa_of


class FixedRouting:
    """A context in which some domains have constant experts.

    Args:
        model: Its ranker is a `Cesaa`.
        experts: By domain index: k experts and their weights.
    """

    def __init__(self, model: CtrModel, experts: Mapping[int, tuple[Sequence[int], Sequence[float]]]) -> None:
        self._ranker = cesaa_of(model)
        self._experts = experts
        self._undo: torch.utils.hooks.RemovableHandle | None = None

    def __enter__(self) -> None:
        table = self._ranker.gate.get_buffer("allowed")
        k = self._ranker.gate.top_k
        wanted = torch.zeros(table.shape[0], k, dtype=torch.int64, device=table.device)
        weights = torch.zeros(table.shape[0], k, device=table.device)
        fixed = torch.zeros(table.shape[0], dtype=torch.bool, device=table.device)
        for domain, (experts, own) in self._experts.items():
            wanted[domain] = torch.tensor(experts)
            weights[domain] = torch.tensor(own)
            fixed[domain] = True

        def replace(_: nn.Module, given: tuple[Sides], routing: Routing) -> Routing:
            (sides,) = given

            def of_rows(values: Tensor) -> Tensor:
                return at_rows(values.index_select(0, sides.domain), sides.request_index)

            here = of_rows(fixed).unsqueeze(1)
            return Routing(
                routing.logits,
                torch.where(here, of_rows(wanted), routing.experts),
                torch.where(here, of_rows(weights), routing.weights),
            )

        self._undo = self._ranker.gate.register_forward_hook(replace)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._undo is not None:
            self._undo.remove()
