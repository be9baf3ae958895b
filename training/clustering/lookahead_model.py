"""A model as a lookahead sees it: losses by domain, named parameters, and a promise to leave no trace.

Reads a `CtrModel` whose ranker has towers and labelled rows by domain. Invariant: inside `undisturbed`
everything runs in evaluation mode, and afterwards modes and random state are what they were; nothing here
writes a parameter, a buffer or a `.grad`.

Letters: D domains, N rows, K towers, I = P + Q width of the embedded input.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.clustering.arrays import IntArray
from training.clustering.errors import MatrixError
from training.engine.seed import random_state, restore_random_state
from training.models.base import CtrModel, Sides, TensorBatch
from training.models.towers import TowerRanker

Serving = Literal["own", "mean"]
"""`own`: the tower that serves the row's domain; `mean`: mean of the towers' probabilities (A3, t = 0)."""


@dataclass(frozen=True, eq=False)
class LabelledRows:
    """Rows of D domains one after the other.

    Attributes:
        inputs: (N,) rows.
        labels: (N,) float, 0 or 1.
        sizes: (D,) rows of each domain, all at least 1, sum N.

    Raises:
        MatrixError: sizes that do not add up to the rows.
    """

    inputs: TensorBatch
    labels: Tensor
    sizes: IntArray

    def __post_init__(self) -> None:
        rows = (self.inputs.domain.shape[0], self.labels.shape[0])
        if (self.sizes < 1).any() or rows != (self.sizes.sum(), self.sizes.sum()):
            raise MatrixError(
                f"{rows[0]} rows and {rows[1]} labels for domains of {self.sizes.tolist()} rows; "
                "every domain needs a row, and the sizes must add up"
            )

    @property
    def num_domains(self) -> int:
        """D."""
        return len(self.sizes)

    def span(self, first: int, last: int) -> "LabelledRows":
        """Domains `first` to `last` - 1."""
        start, stop = int(self.sizes[:first].sum()), int(self.sizes[:last].sum())
        return LabelledRows(
            slice_rows(self.inputs, slice(start, stop)), self.labels[start:stop], self.sizes[first:last]
        )


def slice_rows(batch: TensorBatch, rows: slice) -> TensorBatch:
    """Some rows of a batch, as views."""
    return TensorBatch(**{f.name: getattr(batch, f.name)[rows] for f in fields(TensorBatch)})


@dataclass(frozen=True, eq=False)
class ParameterMap:
    """Trainable parameters by place; names as in `model.named_parameters()`.

    Attributes:
        ranker: Dense ones of the ranker.
        inputs: Dense ones of the input layer: domain embedding, normalisation of pairs.
        tables: Embedding tables, (rows, dim) each, with sparse gradients.
    """

    ranker: dict[str, nn.Parameter]
    inputs: dict[str, nn.Parameter]
    tables: dict[str, nn.Parameter]

    @property
    def dense(self) -> dict[str, nn.Parameter]:
        """Input layer first, then ranker: the order of flat vectors."""
        return self.inputs | self.ranker

    @property
    def num_inputs(self) -> int:
        """Numbers of a flat vector that belong to the input layer."""
        return sum(p.numel() for p in self.inputs.values())

    @property
    def num_dense(self) -> int:
        """Length of a flat vector."""
        return sum(p.numel() for p in self.dense.values())


def parameter_map(model: CtrModel) -> ParameterMap:
    """Sort the trainable parameters of a model."""
    tables = {id(p) for group in model.tables() for p in group.parameters}
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return ParameterMap(
        ranker={n: p for n, p in named.items() if id(p) not in tables and n.startswith("ranker.")},
        inputs={n: p for n, p in named.items() if id(p) not in tables and not n.startswith("ranker.")},
        tables={n: p for n, p in named.items() if id(p) in tables},
    )


def unflatten(flat: Tensor, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Named views (..., *shape) of flat vectors (..., P)."""
    views, start = {}, 0
    for name, parameter in parameters.items():
        part = flat.narrow(-1, start, parameter.numel())
        views[name] = part.reshape(*flat.shape[:-1], *parameter.shape)
        start += parameter.numel()
    return views


def flatten(parameters: dict[str, nn.Parameter]) -> Tensor:
    """(P,) copy of the values."""
    return torch.cat([p.detach().reshape(-1) for p in parameters.values()])


class ServedRows(nn.Module):
    """Logits of embedded rows by what serves them: (N,) of the own tower, or (N, K) of all towers."""

    def __init__(self, model: CtrModel, serving: Serving) -> None:
        super().__init__()
        if not isinstance(model.ranker, TowerRanker):
            kind = type(model.ranker).__name__
            raise MatrixError(f"ranker {kind} has no towers; a lookahead needs a TowerRanker")
        self.ranker: TowerRanker = model.ranker
        self.serving = serving

    def forward(self, request: Tensor, row: Tensor, domain: Tensor) -> Tensor:
        """Logits of (N, P) and (N, Q) inputs of rows with domain (N,)."""
        sides = Sides(request, row, None, domain)
        if self.serving == "own":
            own: Tensor = self.ranker(sides)
            return own
        return self.ranker.forward_all(sides)


class EmbeddedRows(nn.Module):
    """The input layer as one map to (N, I); affine in all of its parameters in evaluation mode."""

    def __init__(self, model: CtrModel) -> None:
        super().__init__()
        self.inputs = model.inputs
        self._model = [model]  # in a list, so that parameters keep their names

    def forward(self, batch: TensorBatch) -> Tensor:
        """(N, I): request side, then row side."""
        sides, _ = self._model[0].sides(batch)
        return torch.cat([sides.request, sides.row], dim=1)


def row_losses(logits: Tensor, labels: Tensor, serving: Serving) -> Tensor:
    """Cross-entropy of each row in nats.

    Args:
        logits: (..., N) of the own tower; (..., N, K) of all, whose probabilities are averaged: then
            -log of the mean of sigmoid(+-z_k), by log-sum-exp.
        labels: (N,) 0 or 1.
        serving: What the logits are.

    Returns:
        (..., N).
    """
    clicked, ignored = functional.logsigmoid(logits), functional.logsigmoid(-logits)
    if serving == "mean":
        log_k = math.log(logits.shape[-1])
        clicked = torch.logsumexp(clicked, dim=-1) - log_k
        ignored = torch.logsumexp(ignored, dim=-1) - log_k
    return -(labels * clicked + (1 - labels) * ignored)


def domain_means(losses: Tensor, sizes: IntArray) -> Tensor:
    """Mean of each domain's rows, (..., D) float64 from (..., N)."""
    parts = torch.split(losses.double(), sizes.tolist(), dim=-1)
    return torch.stack([part.mean(dim=-1) for part in parts], dim=-1)


def mean_loss(model: CtrModel, served: ServedRows, rows: LabelledRows) -> Tensor:
    """Mean cross-entropy over all rows, scalar, with a graph where gradients are on."""
    sides, _ = model.sides(rows.inputs)
    logits = served(sides.request, sides.row, sides.domain)
    return row_losses(logits, rows.labels, served.serving).mean()


@contextmanager
def undisturbed(model: CtrModel) -> Iterator[None]:
    """Evaluation mode for a while; modes of all modules and all random states are put back."""
    modes = [(module, module.training) for module in model.modules()]
    generators = random_state()
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        restore_random_state(generators)
