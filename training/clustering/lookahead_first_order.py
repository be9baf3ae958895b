"""Mode first_order: inner products of gradients instead of losses after steps.

Reads a model and rows by domain; gives `LookaheadGram` with entries g_u . P g'_v. Dense parts are one product
of matrices; tables contribute through the rows that train and evaluation batches have in common. Invariant:
at most one block of train gradients and one group of evaluation gradients is held densely; where all train
gradients fit the bound, exactly 2 D gradients are computed, else evaluation gradients once more per block.

Letters: D domains, P dense parameters, U touched rows of a table, H its width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.clustering.affinity import LookaheadGram
from training.clustering.arrays import FloatArray
from training.clustering.lookahead_model import LabelledRows, ParameterMap, ServedRows
from training.clustering.lookahead_step import (
    DomainGradient,
    FrozenRows,
    Preconditioner,
    TableRows,
    domain_gradient,
)
from training.models.base import CtrModel

EVAL_GROUP = 16
"""Evaluation gradients multiplied at once."""


@dataclass(frozen=True, eq=False)
class GradientSource:
    """What gradients are taken of: a model in evaluation mode and what serves its rows."""

    model: CtrModel
    served: ServedRows
    parameters: ParameterMap
    frozen: FrozenRows

    def of(self, rows: LabelledRows, u: int) -> DomainGradient:
        """Gradient of domain u's mean loss."""
        return domain_gradient(self.model, self.served, self.parameters, rows.span(u, u + 1), self.frozen)


def first_order_gram(
    source: GradientSource,
    train: LabelledRows,
    evaluation: LabelledRows,
    *,
    step_size: float,
    preconditioner: Preconditioner,
    max_numbers: int = 1 << 27,
) -> LookaheadGram:
    """Gram matrix of train (rows) and preconditioned evaluation gradients (columns).

    Args:
        source: What to differentiate.
        train: B_u of each domain.
        evaluation: E_v of each domain.
        step_size: eta.
        preconditioner: P; bounded by the first block's gradients, see `Preconditioner.bounded`.
        max_numbers: Bound on the dense numbers of a block of train gradients, and of table rows.
    """
    D = train.num_domains
    block = max(1, min(D, max_numbers // max(1, source.parameters.num_dense)))
    gram = np.zeros((D, D))
    base = np.empty(D)
    train_tables: list[dict[str, TableRows]] = []
    eval_tables: list[dict[str, TableRows]] = []
    for first in range(0, D, block):
        dense, tables = _stacked(source, train, range(first, min(D, first + block)))
        if first == 0:
            preconditioner = preconditioner.bounded(dense.square().mean(dim=0), source.parameters)
        train_tables += tables
        for start in range(0, D, EVAL_GROUP):
            group = range(start, min(D, start + EVAL_GROUP))
            found = [preconditioner.apply(source.of(evaluation, v), source.parameters) for v in group]
            part = dense @ torch.stack([g.dense for g in found]).T
            gram[first : first + block, start : start + EVAL_GROUP] = part.double().cpu().numpy()
            if first == 0:
                base[start : start + EVAL_GROUP] = [g.loss for g in found]
                eval_tables += [g.tables for g in found]
    for name in source.parameters.tables:
        gram += table_gram(
            [t.get(name) for t in train_tables], [t.get(name) for t in eval_tables], max_numbers=max_numbers
        )
    return LookaheadGram(base=base, gram=gram, step_size=step_size)


def _stacked(
    source: GradientSource, rows: LabelledRows, ids: range
) -> tuple[Tensor, list[dict[str, TableRows]]]:
    """Dense gradients (b, P) of some domains, and their table rows."""
    dense: Tensor | None = None
    tables = []
    for place, u in enumerate(ids):
        gradient = source.of(rows, u)
        if dense is None:
            dense = gradient.dense.new_empty(len(ids), len(gradient.dense))
        dense[place] = gradient.dense
        tables.append(gradient.tables)
    return (dense if dense is not None else torch.empty(0, 0)), tables


def table_gram(
    train: Sequence[TableRows | None], evaluation: Sequence[TableRows | None], *, max_numbers: int
) -> FloatArray:
    """Inner products over the rows of one table that both sides touch.

    Rows that no domain of the other side touches add nothing and are never made dense; common rows are,
    as many at a time as `max_numbers` allows for either side.

    Args:
        train: Of D domains; None where the table is not touched.
        evaluation: Of D' domains.
        max_numbers: Bound on D * rows * H.

    Returns:
        (D, D') float64.
    """
    gram = np.zeros((len(train), len(evaluation)))
    left, right = _joined(train), _joined(evaluation)
    if left is None or right is None:
        return gram
    common = _unique(left.rows)
    common = common[torch.isin(common, _unique(right.rows))]
    width = left.values.shape[1]
    step = max(1, max_numbers // (max(gram.shape) * width))
    left, right = left.within(common), right.within(common)
    for start in range(0, len(common), step):
        a = left.dense(start, min(len(common), start + step), len(train))
        b = right.dense(start, min(len(common), start + step), len(evaluation))
        gram += (a @ b.T).double().cpu().numpy()
    return gram


@dataclass(frozen=True, eq=False)
class _Joined:
    """Table rows of many domains: `rows` (U,), `values` (U, H), `owner` (U,) domain."""

    rows: Tensor
    values: Tensor
    owner: Tensor

    def within(self, common: Tensor) -> "_Joined":
        """Only rows in `common` (ascending), renumbered by their place there, sorted by it."""
        place = torch.searchsorted(common, self.rows).clamp_max(max(0, len(common) - 1))
        kept = common[place] == self.rows if len(common) else torch.zeros_like(place, dtype=torch.bool)
        order = torch.argsort(place[kept], stable=True)
        return _Joined(place[kept][order], self.values[kept][order], self.owner[kept][order])

    def dense(self, first: int, last: int, num_domains: int) -> Tensor:
        """(num_domains, (last - first) * H) of rows `first` to `last` - 1; each domain has a row once."""
        bounds = torch.tensor([first, last], device=self.rows.device)
        start, stop = torch.searchsorted(self.rows, bounds).tolist()
        out = self.values.new_zeros(num_domains, last - first, self.values.shape[1])
        out[self.owner[start:stop], self.rows[start:stop] - first] = self.values[start:stop]
        return out.flatten(1)


def _unique(rows: Tensor) -> Tensor:
    """Ascending, without repeats."""
    ascending = rows.sort().values
    return torch.unique_consecutive(ascending)  # type: ignore[no-any-return]


def _joined(parts: Sequence[TableRows | None]) -> _Joined | None:
    held = [(d, part) for d, part in enumerate(parts) if part is not None]
    if not held:
        return None
    owner = [torch.full_like(part.rows, d) for d, part in held]
    return _Joined(
        torch.cat([part.rows for _, part in held]),
        torch.cat([part.values for _, part in held]),
        torch.cat(owner),
    )
