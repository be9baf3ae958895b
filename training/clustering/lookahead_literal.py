"""Mode literal: the scheme of the paper taken word for word, as the reference for tests and costs.

Reads a model and rows by domain; gives `LookaheadLosses`. Every set gets its own copy of the whole model, its
own backward pass and one full evaluation loop; nothing is shared. Invariant: the given model is only copied.
"""

import copy
from typing import cast

import numpy as np
import torch
from torch import Tensor

from training.clustering.affinity import LookaheadLosses, LookaheadPlan
from training.clustering.arrays import BoolArray, FloatArray
from training.clustering.lookahead_model import LabelledRows, ServedRows, Serving, mean_loss, parameter_map
from training.clustering.lookahead_step import FrozenRows, Preconditioner, TableRows
from training.models.base import CtrModel


def literal_losses(
    model: CtrModel,
    train: LabelledRows,
    evaluation: LabelledRows,
    plan: LookaheadPlan,
    *,
    step_size: float,
    serving: Serving,
    preconditioner: Preconditioner,
    frozen: FrozenRows,
) -> LookaheadLosses:
    """Measure a plan by one model copy per set.

    Args:
        model: In evaluation mode.
        train: B_u of each domain.
        evaluation: E_v of each domain.
        plan: Sets to step on.
        step_size: eta.
        serving: What serves the rows.
        preconditioner: P.
        frozen: Table rows left out.
    """

    def after(sets: BoolArray) -> FloatArray:
        rows = []
        for members in sets:
            twin = copy.deepcopy(model)
            step_on_set(
                twin,
                train,
                members,
                step_size=step_size,
                serving=serving,
                preconditioner=preconditioner,
                frozen=frozen,
            )
            rows.append(evaluate_domains(twin, evaluation, serving))
        return np.array(rows)

    D = plan.num_domains
    return LookaheadLosses(
        base=evaluate_domains(model, evaluation, serving),
        after_single=after(np.eye(D, dtype=bool)),
        after_companions=after(plan.companions),
        after_others=after(plan.others),
        after_treatments=after(plan.treatments),
    )


def step_on_set(
    twin: CtrModel,
    train: LabelledRows,
    members: BoolArray,
    *,
    step_size: float,
    serving: Serving,
    preconditioner: Preconditioner,
    frozen: FrozenRows,
) -> None:
    """One step of `twin` on the mean of the members' losses, in place; none for an empty set."""
    if not members.any():
        return
    served, parameters = ServedRows(twin, serving), parameter_map(twin)
    twin.zero_grad(set_to_none=True)
    losses = [mean_loss(twin, served, train.span(u, u + 1)) for u in np.flatnonzero(members).tolist()]
    torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        dense = {n: p for n, p in parameters.dense.items() if p.grad is not None}
        tables = {n: p for n, p in parameters.tables.items() if p.grad is not None}
        for name, parameter in dense.items():
            gradient = cast(Tensor, parameter.grad)
            parameter.sub_(step_size * preconditioner.dense_factor(name, parameter) * gradient)
        for name, table in tables.items():
            gradient = cast(Tensor, table.grad).coalesce()
            kept = frozen.keep(name, gradient.indices()[0])
            touched = TableRows(gradient.indices()[0][kept], gradient.values()[kept])
            moved = preconditioner.apply_table(name, touched)
            table[moved.rows] -= step_size * moved.values


@torch.no_grad()
def evaluate_domains(model: CtrModel, evaluation: LabelledRows, serving: Serving) -> FloatArray:
    """(D,) mean loss of each domain, one full forward pass per domain."""
    served = ServedRows(model, serving)
    return np.array(
        [float(mean_loss(model, served, evaluation.span(v, v + 1))) for v in range(evaluation.num_domains)]
    )
