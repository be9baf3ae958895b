"""Carry a batch from numpy to torch.

Reads `training.data.dataset.Batch`; gives the model's `TensorBatch` and the loss's label and weight.
Invariant: ids arrive as int64, numbers as float32, all on one device.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data.dataset import Batch
from training.models.base import TensorBatch


def model_inputs(batch: Batch, device: torch.device) -> TensorBatch:
    """The part of B rows that a model reads, as tensors on `device`."""
    return TensorBatch(
        user_ints=_ids(batch.user_ints, device),
        user_floats=_floats(batch.user_floats, device),
        context_ints=_ids(batch.context_ints, device),
        context_floats=_floats(batch.context_floats, device),
        item_ints=_ids(batch.item_ints, device),
        item_floats=_floats(batch.item_floats, device),
        pairs=_floats(batch.pairs, device),
        domain=_ids(batch.domain, device),
    )


def targets(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    """Label and weight of B rows: (B,) float32 each, on `device`."""
    return _floats(batch.label, device), _floats(batch.weight, device)


def _ids(values: NDArray[np.int32], device: torch.device) -> Tensor:
    return torch.from_numpy(values.astype(np.int64)).to(device)


def _floats(values: NDArray[np.float32], device: torch.device) -> Tensor:
    # A reader may hand out read-only views of a mapped file; torch wants memory it may write.
    return torch.from_numpy(np.require(values, dtype=np.float32, requirements=["C", "W"])).to(device)
