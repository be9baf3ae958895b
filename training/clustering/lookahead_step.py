"""Gradients by domain and the stateless step they make: Theta_A = Theta - eta P mean_{u in A} g_u.

Reads a model in evaluation mode and rows by domain; gives flat dense vectors and sparse table rows. The loss
is the mean cross-entropy without penalty. Invariant: `.grad` of no parameter is touched, and P is frozen:
read from an optimiser's state, never written back.

Letters: D domains, P dense parameters, U touched rows of a table, H its width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from training.clustering.errors import MatrixError
from training.clustering.lookahead_model import (
    LabelledRows,
    ParameterMap,
    ServedRows,
    mean_loss,
    unflatten,
)
from training.engine.optim import RowwiseAdagrad
from training.models.base import CtrModel
from training.models.embedding import EmbeddingBank

MIN_MOMENT_RATIO = 0.01
"""Least v of a dense parameter as a share of the mean squared gradient of the domains at hand."""


@dataclass(frozen=True, eq=False)
class TableRows:
    """Touched rows of one table: `rows` (U,) int64 ascending, `values` (U, H)."""

    rows: Tensor
    values: Tensor


@dataclass(frozen=True, eq=False)
class DomainGradient:
    """Gradient of one domain's loss, or the direction P makes of it.

    Attributes:
        loss: Mean cross-entropy of the rows, nats per row.
        dense: (P,) in the order of `ParameterMap.dense`.
        tables: By parameter name; frozen rows are left out.
    """

    loss: float
    dense: Tensor
    tables: dict[str, TableRows]


@dataclass(frozen=True, eq=False)
class FrozenRows:
    """Table rows that the lookahead leaves alone: per table, ascending (start, stop) ranges."""

    ranges: dict[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)

    def keep(self, table: str, rows: Tensor) -> Tensor:
        """(U,) boolean: which of the rows may move."""
        kept = torch.ones_like(rows, dtype=torch.bool)
        for start, stop in self.ranges.get(table, ()):
            kept &= (rows < start) | (rows >= stop)
        return kept


def frozen_rows(model: CtrModel, max_rows: int | None) -> FrozenRows:
    """Freeze the encoders with more than `max_rows` rows, such as user and item ids.

    Args:
        model: Whose tables.
        max_rows: None freezes nothing.
    """
    if max_rows is None:
        return FrozenRows()
    ranges: dict[str, tuple[tuple[int, int], ...]] = {}
    for group, module in model.inputs.banks.named_children():
        bank = cast(EmbeddingBank, module)
        starts = sorted(bank.offsets.values())
        stops = [*starts[1:], bank.table.num_embeddings]
        ranges[f"inputs.banks.{group}.table.weight"] = tuple(
            (a, b) for a, b in zip(starts, stops, strict=True) if b - a > max_rows
        )
    return FrozenRows(ranges)


@dataclass(frozen=True, eq=False)
class SecondMoment:
    """What an adaptive optimiser knows of one parameter; P = 1 / (sqrt(max(v_hat, floor)) + eps).

    Attributes:
        value: v, as the parameter, or (rows,) for one number per table row; v_hat = v / correction.
        correction: 1 - beta2^step; 1 for a sum.
        eps: Of the optimiser.
        floor: As `value`, or 0; see `Preconditioner.bounded`.
    """

    value: Tensor
    correction: float
    eps: float
    floor: Tensor | float = 0.0

    def factor(self, rows: Tensor | None = None) -> Tensor:
        """P of the whole parameter, or of some of its rows.

        0 where training has seen no gradient yet: there the formula gives 1 / eps, a step no optimiser takes.
        """
        value = self.value if rows is None else self.value.index_select(0, rows)
        floor = torch.as_tensor(self.floor, dtype=value.dtype, device=value.device)
        scale = torch.maximum(value / self.correction, floor).sqrt()
        return torch.where(value > 0, 1.0 / (scale + self.eps), torch.zeros_like(scale))


@dataclass(frozen=True, eq=False)
class Preconditioner:
    """P of the step: plain SGD without moments, else frozen adaptive factors by parameter name."""

    moments: dict[str, SecondMoment] | None = None

    def apply(self, gradient: DomainGradient, parameters: ParameterMap) -> DomainGradient:
        """P g; a parameter without a moment does not move."""
        if self.moments is None:
            return gradient
        factors = [self.dense_factor(name, p).reshape(-1) for name, p in parameters.dense.items()]
        tables = {name: self.apply_table(name, touched) for name, touched in gradient.tables.items()}
        return DomainGradient(gradient.loss, gradient.dense * torch.cat(factors), tables)

    def bounded(self, mean_squares: Tensor, parameters: ParameterMap) -> "Preconditioner":
        """Keep P from blowing up where the lookahead sees a gradient that training does not.

        A bias before batch normalisation has no gradient in training, only rounding, but has one in
        evaluation mode; 1 / sqrt(v) would then throw it 1e8 times too far. v of dense parameters is
        therefore taken as at least `MIN_MOMENT_RATIO` of the domains' mean squared gradient (ours, not in
        the paper). Linear in the gradients as before.

        Args:
            mean_squares: (P,) mean of g_u^2 over domains.
            parameters: What the vector is made of.
        """
        if self.moments is None:
            return self
        floors = unflatten(MIN_MOMENT_RATIO * mean_squares, parameters.dense)
        return Preconditioner(
            {
                name: replace(moment, floor=floors[name]) if name in floors else moment
                for name, moment in self.moments.items()
            }
        )

    def dense_factor(self, name: str, parameter: Tensor) -> Tensor:
        """Factors of one dense parameter, in its shape; ones for SGD."""
        if self.moments is None:
            return torch.ones_like(parameter)
        moment = self.moments.get(name)
        return torch.zeros_like(parameter) if moment is None else moment.factor()

    def apply_table(self, name: str, touched: TableRows) -> TableRows:
        """P g of one table's touched rows."""
        if self.moments is None:
            return touched
        moment = self.moments.get(name)
        if moment is None:
            return TableRows(touched.rows, torch.zeros_like(touched.values))
        factor = moment.factor(touched.rows)
        factor = factor if factor.dim() == touched.values.dim() else factor.unsqueeze(1)
        return TableRows(touched.rows, touched.values * factor)


SGD = Preconditioner()
"""P = 1."""


def adaptive_preconditioner(model: CtrModel, optimisers: Sequence[Optimizer]) -> Preconditioner:
    """Freeze the second moments of Adam, AdamW, SparseAdam or RowwiseAdagrad.

    Args:
        model: Whose parameters the optimisers hold.
        optimisers: Read only.

    Raises:
        MatrixError: an optimiser of another kind.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    moments: dict[str, SecondMoment] = {}
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            for parameter in group["params"]:
                if state := optimiser.state.get(parameter):
                    moments[names[id(parameter)]] = _moment(optimiser, state, group)
    return Preconditioner(moments)


def _moment(optimiser: Optimizer, state: dict[str, Any], group: dict[str, Any]) -> SecondMoment:
    if isinstance(optimiser, RowwiseAdagrad):
        return SecondMoment(state["sum"], 1.0, group["eps"])
    if "exp_avg_sq" in state:
        return SecondMoment(
            state["exp_avg_sq"], 1.0 - group["betas"][1] ** float(state["step"]), group["eps"]
        )
    raise MatrixError(f"{type(optimiser).__name__} keeps no second moment that a lookahead can read")


def domain_gradient(
    model: CtrModel,
    served: ServedRows,
    parameters: ParameterMap,
    rows: LabelledRows,
    frozen: FrozenRows,
) -> DomainGradient:
    """Gradient of the mean loss over all rows given."""
    dense, tables = parameters.dense, parameters.tables
    with torch.enable_grad():
        loss = mean_loss(model, served, rows)
        found = torch.autograd.grad(loss, [*dense.values(), *tables.values()], allow_unused=True)
    flat = [
        (torch.zeros_like(p) if g is None else g).reshape(-1)
        for p, g in zip(dense.values(), found[: len(dense)], strict=True)
    ]
    touched = {
        name: _table_rows(name, gradient, frozen)
        for name, gradient in zip(tables, found[len(dense) :], strict=True)
        if gradient is not None
    }
    return DomainGradient(float(loss.detach()), torch.cat(flat), touched)


def _table_rows(name: str, gradient: Tensor, frozen: FrozenRows) -> TableRows:
    merged = gradient.coalesce()
    rows, values = merged.indices()[0], merged.values()
    kept = frozen.keep(name, rows)
    return TableRows(rows[kept], values[kept])
