"""What every ranker reads and returns.

A batch has R request rows (user, context, domain) and N candidate rows (item, pairs); `request_index`
says which request a candidate belongs to. In training each row is its own request: R = N and the index is
None. Writing rankers over both sides keeps user-side work at R rows in the exported graph.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from training.models.inputs import InputLayer


@dataclass(frozen=True)
class TensorBatch:
    """One training batch, B rows; the blocks of `service.contract.layout` as tensors.

    Attributes:
        user_ints, context_ints, item_ints: (B, width) int32 or int64 ids.
        user_floats, context_floats, item_floats: (B, width) float32.
        pairs: (B, P) float32, values of the schema's pair features in order.
        domain: (B,) int64 domain index, D for unknown.
    """

    user_ints: Tensor
    user_floats: Tensor
    context_ints: Tensor
    context_floats: Tensor
    item_ints: Tensor
    item_floats: Tensor
    pairs: Tensor
    domain: Tensor


class Sides(NamedTuple):
    """Dense inputs of a ranker.

    Attributes:
        request: (R, P) float32, user, context and, in its last columns, the domain embedding.
        row: (N, Q) float32, item and pairs.
        request_index: (N,) int64 request of each row; None when row i belongs to request i.
        domain: (R,) int64 domain index, D for unknown.
    """

    request: Tensor
    row: Tensor
    request_index: Tensor | None
    domain: Tensor


def at_rows(values: Tensor, index: Tensor | None) -> Tensor:
    """Spread request-level values (R, ...) to candidate rows (N, ...)."""
    return values if index is None else values.index_select(0, index)


class Heads(NamedTuple):
    """Several predictions for each row, of a method that trains each of them on its own.

    Attributes:
        logits: (B, H) float32.
        weights: (B, H) float32 shares of the row's loss, rows sum to 1; 0 for heads that do not count.
    """

    logits: Tensor
    weights: Tensor


class ModelOutput(NamedTuple):
    """What a training step reads.

    Attributes:
        logits: (B,) float32.
        penalty: The scalar that the loss adds: L2 on touched rows and losses of the method.
        heads: What the loss is taken of in the place of the logits; None where it is taken of them.
    """

    logits: Tensor
    penalty: Tensor
    heads: Heads | None = None


class TableGroup(NamedTuple):
    """Embedding tables that train alike."""

    name: str
    parameters: list[nn.Parameter]
    lr_scale: float


class Ranker(nn.Module, ABC):
    """Logits from dense inputs. Subclasses hold one method each.

    Attributes:
        num_choices: Experts that rows choose from, where `with_experts` says which; else None.
    """

    num_choices: int | None = None

    @abstractmethod
    def forward(self, sides: Sides) -> Tensor:
        """Logits (N,) float32."""

    def with_experts(self, sides: Sides) -> tuple[Tensor, Tensor | None]:
        """Logits (N,) float32, and the experts (N, k) int64 of each row where rows choose among experts."""
        logits: Tensor = self(sides)
        return logits, None

    def choice_margins(self, sides: Sides) -> Tensor | None:  # noqa: ARG002 (no choice, no margin)
        """(N,) float32: how much better the last expert chosen is than the best one left; None without."""
        return None

    def with_heads(self, sides: Sides) -> tuple[Tensor, Heads | None]:
        """Logits (N,) float32, and the heads where the method trains each on its own."""
        logits: Tensor = self(sides)
        return logits, None

    def for_inference(self) -> Ranker:
        """A ranker with the same logits in evaluation mode, without what only training needs."""
        return self

    def experts_kept(self) -> tuple[tuple[str, ...], ...] | None:
        """Names of the experts that each of D + 1 domains uses; None where there are no masks."""
        return None

    def penalty(self) -> Tensor | None:
        """Loss terms of the method for the last training forward; None when it has none."""
        return None


class CtrModel(nn.Module):
    """Input layer and ranker."""

    def __init__(self, inputs: InputLayer, ranker: Ranker) -> None:
        super().__init__()
        self.inputs = inputs
        self.ranker = ranker

    def forward(self, batch: TensorBatch) -> ModelOutput:
        """Score B training rows."""
        sides, penalty = self.sides(batch)
        logits, heads = self.ranker.with_heads(sides)
        own = self.ranker.penalty()
        return ModelOutput(logits, penalty if own is None else penalty + own, heads)

    def sides(self, batch: TensorBatch) -> tuple[Sides, Tensor]:
        """Embed B training rows: what the ranker reads, and the penalty of the lookups.

        A domain hidden in training is hidden from inputs and ranker alike, so that the rows, towers and
        biases that serve unknown domains are trained together.
        """
        domain = self.inputs.hide_domains(batch.domain)
        request, request_l2 = self.inputs.request_side(
            batch.user_ints, batch.user_floats, batch.context_ints, batch.context_floats, domain
        )
        row, row_l2 = self.inputs.row_side(batch.item_ints, batch.item_floats, batch.pairs)
        return Sides(request, row, None, domain), request_l2 + row_l2

    def tables(self) -> list[TableGroup]:
        """Embedding tables with sparse gradients."""
        return [
            TableGroup(name, list(bank.parameters()), bank.lr_scale)
            for name, bank in self.inputs.banks.named_children()
            if isinstance(bank.lr_scale, float)
        ]

    def dense_parameters(self) -> list[nn.Parameter]:
        """Everything that is not an embedding table."""
        tables = {id(p) for group in self.tables() for p in group.parameters}
        return [p for p in self.parameters() if id(p) not in tables]
