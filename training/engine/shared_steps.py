"""Steps of one rank of several: its part of the batch, the gradients of all of it.

Dense gradients go through torch's DistributedDataParallel, which sends them while the rest of the backward
pass runs. Table gradients are sparse, and NCCL cannot add those up: each rank sends the rows it touched, and
all ranks merge what they get in order of rank. Invariant: after `backward` all ranks hold the same gradients,
those of the weighted mean over the rows of the whole batch; so equal weights stay equal without being sent.

Letters: W ranks, B rows of the step, b of them on this rank, U touched rows of a table, H its width.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.data.dataset import Batch
from training.engine.batch import model_inputs, targets
from training.engine.distributed import FIRST, RankGroup
from training.engine.loss import training_loss
from training.engine.precision import Precision, forward_precision
from training.engine.shared_norm import SharedRows, share_norms
from training.engine.steps import Forward, StepLoss
from training.models.aread import Aread
from training.models.base import CtrModel, TensorBatch

_LEAST_WEIGHT = 1e-12
"""As in `training_loss`: a step whose weights are all 0 has loss 0."""


class SharedSteps:
    """Computes one rank's part of every step."""

    def __init__(
        self, model: CtrModel, *, group: RankGroup, precision: Precision, device: torch.device
    ) -> None:
        """Make the weights of all ranks those of the first, and the model's normalisations shared.

        Args:
            model: On `device`; it stays the caller's to read, save and evaluate.
            group: Of several ranks.
            precision: Of matrix products in the forward pass.
            device: Where to compute.
        """
        self._group, self._device = group, device
        self._tables = [p for tables in model.tables() for p in tables.parameters]
        for held in (*self._tables, *model.buffers()):
            dist.broadcast(held.detach(), FIRST)
        rows = SharedRows()
        share_norms(model, rows)
        self._part = _PartOfStep(model, rows, world_size=group.world_size, precision=precision, device=device)
        # Tables are merged here, and buffers are equal without being sent at every step.
        own = {id(table) for table in self._tables}
        left_out = [name for name, p in self._part.named_parameters() if id(p) in own]
        left_out += [name for name, _ in self._part.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(  # type: ignore[no-untyped-call]
            self._part, left_out
        )
        # It costs a copy of weights of one expert, whose gradient counts an axis of length 1 otherwise.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        # Masks say which experts take part in a step; of other models every weight does.
        masked = isinstance(model.ranker, Aread)
        self._parallel = DistributedDataParallel(self._part, find_unused_parameters=masked)
        self._totals = torch.zeros(2, dtype=torch.float64)

    def num_rows(self, batch: Batch) -> int:
        """B."""
        self._totals = self._group.sum(
            torch.tensor([len(batch), batch.weight.sum(dtype="float64")], dtype=torch.float64)
        )
        return int(self._totals[0])

    def backward(self, batch: Batch, forward: Forward) -> StepLoss:
        """Gradients of the whole step's loss."""
        label, weight = targets(batch, self._device)
        self._part.forward_of = forward
        rows, total_weight = self._totals.tolist()
        scaled, shares = self._parallel(
            model_inputs(batch, self._device), label, weight, rows=rows, total_weight=total_weight
        )
        scaled.backward()
        touched = [_touched(table) for table in self._tables]
        own = torch.tensor([*shares.tolist(), *(len(ids) for ids, _ in touched)], dtype=torch.float64)
        told = self._group.all(own)  # (W, 2 + tables)
        for table, mine, counts in zip(self._tables, touched, told[:, 2:].long().T.tolist(), strict=True):
            if max(counts):
                table.grad = self._merged(table, *mine, counts=counts)
        loss, penalty = told[:, :2].sum(dim=0).tolist()
        return StepLoss(loss, loss + penalty)

    def _merged(self, table: nn.Parameter, ids: Tensor, values: Tensor, *, counts: Sequence[int]) -> Tensor:
        """Sparse gradient (rows, H) of all ranks from this rank's ids (U,) and values (U, H)."""
        most = max(counts)
        padded_ids = ids.new_zeros(most)
        padded_ids[: len(ids)] = ids
        padded = values.new_zeros(most, table.shape[1])
        padded[: len(ids)] = values
        all_ids, all_values = self._group.all(padded_ids), self._group.all(padded)
        merged = torch.sparse_coo_tensor(
            torch.cat([part[:n] for part, n in zip(all_ids, counts, strict=True)]).unsqueeze(0),
            # The loss is scaled by W for the mean that dense gradients get.
            torch.cat([part[:n] for part, n in zip(all_values, counts, strict=True)])
            / self._group.world_size,
            table.shape,
            check_invariants=False,
        )
        return merged.coalesce()


class _PartOfStep(nn.Module):
    """This rank's part of the loss, as a module for DistributedDataParallel to wrap.

    Args:
        model: Whose parameters are trained.
        rows: Told of each step.
        world_size: W.
        precision: Of matrix products in the forward pass.
        device: Where to compute.

    Attributes:
        forward_of: Forward pass of the step at hand, through the model.
    """

    forward_of: Forward

    def __init__(
        self,
        model: CtrModel,
        rows: SharedRows,
        *,
        world_size: int,
        precision: Precision,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.model = model
        self._rows, self._world_size = rows, world_size
        self._precision, self._device = precision, device

    def forward(
        self, inputs: TensorBatch, label: Tensor, weight: Tensor, *, rows: float, total_weight: float
    ) -> tuple[Tensor, Tensor]:
        """This rank's part of the loss.

        Args:
            inputs: b rows.
            label: (b,) float32, 0 or 1.
            weight: (b,) float32.
            rows: B.
            total_weight: Sum of the weights of B rows.

        Returns:
            W times the part, scalar, so that the mean over ranks is the loss of the step; and (2,) float64
            without gradient: the parts of row loss and penalty.
        """
        with self._rows.step(), forward_precision(self._precision, self._device):
            output = self.forward_of(inputs)
        loss = training_loss(output, label, weight)
        loss = loss * (weight.sum() / max(total_weight, _LEAST_WEIGHT))
        # Of no rows at all a mean is not a number.
        penalty = output.penalty * (len(label) / rows) if len(label) else torch.zeros_like(loss)
        shares = torch.stack([loss.detach().double(), penalty.detach().double()]).cpu()
        return self._world_size * (loss + penalty), shares


def _touched(table: nn.Parameter) -> tuple[Tensor, Tensor]:
    """Ids (U,) and values (U, H) of a table's sparse gradient; none where it has no gradient."""
    if table.grad is None:
        device = table.device
        return torch.zeros(0, dtype=torch.int64, device=device), table.new_zeros(0, table.shape[1])
    gradient = table.grad.coalesce()
    return gradient.indices()[0], gradient.values()
