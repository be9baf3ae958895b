"""The scoring graph: a trained model with everything a request needs inside.

Encoded rows in, calibrated probabilities out. Pair features, domain tables and the per-domain
calibrator are part of the graph; the service only fills inputs. One call serves R requests and their
N candidates; a row's score never depends on its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.lower import lower
from service.contract.layout import entity_layout
from service.contract.manifest import ExpertChoice, GraphInput
from service.contract.schema import Entity, FeatureSchema
from training.models.base import CtrModel, Sides, at_rows
from training.models.pairs import PairLayer
from training.models.specialise import specialise

OUTPUT = "score"
CALIBRATOR_SCALE = "calibrator_scale"
CALIBRATOR_BIAS = "calibrator_bias"
EXPERTS = "experts"
"""Output with the experts that each row chose, in graphs whose rows choose."""


@dataclass(frozen=True)
class CalibratorTable:
    """Calibrators by domain index: p = sigmoid(scale * logit + bias).

    Attributes:
        scale, bias: (D + 1,) float32; the last entry serves unknown domains.
    """

    scale: NDArray[np.float32]
    bias: NDArray[np.float32]


class ScoringGraph(nn.Module):
    """A model in inference form.

    Args:
        model: Trained; switched to evaluation mode.
        schema: The schema it was trained with.
        calibrators: Per-domain calibrators to bake in.
        domains: Indices of the domains to specialise to where the method can, D for the unknown one; None
            for a graph of all. A graph of one domain does not look at its domain index.
    """

    def __init__(
        self,
        model: CtrModel,
        schema: FeatureSchema,
        calibrators: CalibratorTable,
        *,
        domains: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        special = None if domains is None else specialise(model, domains)
        self.is_specialised = special is not None
        self.reads_domain = special is None or special.reads_domain
        ranker = model.ranker.for_inference() if special is None else special.ranker
        self.model = CtrModel(model.inputs, lower(ranker))
        self.pairs = PairLayer(schema)
        scale, bias = calibrators.scale.astype(np.float32), calibrators.bias.astype(np.float32)
        if domains is not None and not self.reads_domain:
            scale, bias = scale[list(domains)], bias[list(domains)]
        num_experts = ranker.num_choices
        self.experts = None if num_experts is None else ExpertChoice(output=EXPERTS, num_experts=num_experts)
        self.register_buffer(CALIBRATOR_SCALE, torch.from_numpy(scale))
        self.register_buffer(CALIBRATOR_BIAS, torch.from_numpy(bias))
        self.eval()

    def forward(
        self,
        user_ints: Tensor,
        user_floats: Tensor,
        context_ints: Tensor,
        context_floats: Tensor,
        domain: Tensor,
        item_ints: Tensor,
        item_floats: Tensor,
        request_index: Tensor,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Score N candidates of R requests.

        Args:
            user_ints: (R, width) int32.
            user_floats: (R, width) float32.
            context_ints: (R, width) int32.
            context_floats: (R, width) float32.
            domain: (R,) int64, D for unknown domains.
            item_ints: (N, width) int32.
            item_floats: (N, width) float32.
            request_index: (N,) int64, which request each candidate belongs to.

        Returns:
            (N,) float32 calibrated probabilities; where rows choose among experts, also (N, k) int64, which.
        """
        sides = self._sides(
            user_ints,
            user_floats,
            context_ints,
            context_floats,
            domain,
            item_ints,
            item_floats,
            request_index,
        )
        logits, experts = self.model.ranker.with_experts(sides)
        scale, bias = self.get_buffer(CALIBRATOR_SCALE), self.get_buffer(CALIBRATOR_BIAS)
        if self.reads_domain:
            scale = at_rows(scale.index_select(0, domain), request_index)
            bias = at_rows(bias.index_select(0, domain), request_index)
        scores = torch.sigmoid(scale * logits + bias)
        return scores if experts is None else (scores, experts)

    @property
    def lines(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Scales and biases of the calibrators inside."""
        scale: NDArray[np.float32] = self.get_buffer(CALIBRATOR_SCALE).numpy()
        bias: NDArray[np.float32] = self.get_buffer(CALIBRATOR_BIAS).numpy()
        return scale, bias

    def choice_margins(self, inputs: Sequence[Tensor]) -> Tensor | None:
        """(N,) float32 of `forward`'s inputs in order: how clear each row's choice of experts is, or None."""
        return self.model.ranker.choice_margins(self._sides(*inputs))

    def _sides(
        self,
        user_ints: Tensor,
        user_floats: Tensor,
        context_ints: Tensor,
        context_floats: Tensor,
        domain: Tensor,
        item_ints: Tensor,
        item_floats: Tensor,
        request_index: Tensor,
    ) -> Sides:
        """What the ranker reads."""
        blocks = {
            Entity.USER: (user_ints, user_floats),
            Entity.CONTEXT: (context_ints, context_floats),
            Entity.ITEM: (item_ints, item_floats),
        }
        pairs = self.pairs(blocks, domain, request_index)
        inputs = self.model.inputs
        request, _ = inputs.request_side(
            user_ints, user_floats, context_ints, context_floats, domain if self.reads_domain else None
        )
        row, _ = inputs.row_side(item_ints, item_floats, pairs)
        return Sides(request, row, request_index, domain)


def graph_inputs(schema: FeatureSchema) -> tuple[GraphInput, ...]:
    """The inputs of `ScoringGraph.forward`, in order, as the manifest describes them."""
    layouts = {entity: entity_layout(schema, entity) for entity in Entity}

    def block(entity: Entity, part: str) -> GraphInput:
        ints = part == "ints"
        width = layouts[entity].int_width if ints else layouts[entity].float_width
        return GraphInput.model_validate(
            {
                "name": f"{entity.value}_{part}",
                "source": f"{entity.value}.{part}",
                "dtype": "int32" if ints else "float32",
                "width": width,
            }
        )

    return (
        block(Entity.USER, "ints"),
        block(Entity.USER, "floats"),
        block(Entity.CONTEXT, "ints"),
        block(Entity.CONTEXT, "floats"),
        GraphInput(name="domain", source="domain", dtype="int64", width=0),
        block(Entity.ITEM, "ints"),
        block(Entity.ITEM, "floats"),
        GraphInput(name="request_index", source="request_index", dtype="int64", width=0),
    )


def is_vector(spec: GraphInput) -> bool:
    """Whether an input is a vector (R,) or (N,) rather than a block of columns."""
    return spec.source in ("domain", "request_index")


def example_inputs(schema: FeatureSchema, *, num_requests: int, num_rows: int) -> dict[str, Tensor]:
    """Zero-filled inputs of the right shapes and types, by input name."""
    shapes: dict[str, Tensor] = {}
    for spec in graph_inputs(schema):
        rows = num_rows if spec.source.startswith(("item", "request_index")) else num_requests
        shape = (rows,) if is_vector(spec) else (rows, spec.width)
        shapes[spec.name] = torch.zeros(shape, dtype=getattr(torch, spec.dtype))
    return shapes
