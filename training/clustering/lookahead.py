"""The lookahead of CDC on a real model: what would one step on these domains do to the losses of those?

    measured = measure(model, rows, plan, serving="mean", step_size=1e-3, interval_rows=1_024_000)
    state = update(state, plan, measured.delivered)

Reads a `CtrModel` whose ranker is a `TowerRanker`, rows of each measured domain and a plan; gives losses or a
Gram matrix. Invariant: parameters, buffers, `.grad`, optimiser state, modes and random states
are bit-identical afterwards, whatever mode ran and even where it failed.
"""

import time
from dataclasses import dataclass

import torch

from training.clustering.affinity import LookaheadGram, LookaheadLosses, LookaheadPlan
from training.clustering.errors import MatrixError, RulesError
from training.clustering.lookahead_cost import (
    CostEstimate,
    LookaheadMode,
    LookaheadSize,
    estimate_cost,
)
from training.clustering.lookahead_exact import PlanSets, exact_losses
from training.clustering.lookahead_first_order import GradientSource, first_order_gram
from training.clustering.lookahead_literal import literal_losses
from training.clustering.lookahead_model import (
    LabelledRows,
    ServedRows,
    Serving,
    parameter_map,
    undisturbed,
)
from training.clustering.lookahead_step import SGD, DomainGradient, Preconditioner, frozen_rows
from training.models.base import CtrModel

MAX_SHARE = 0.1
"""Share of the training time that lookaheads may take."""


@dataclass(frozen=True, eq=False)
class LookaheadRows:
    """Rows of D domains for one lookahead; domain j here is column and row j of the plan.

    Attributes:
        train: B_u, rows to step on.
        evaluation: E_v, held-out rows to measure on; none of them is in `train`.

    Raises:
        MatrixError: not the same domains on both sides.
    """

    train: LabelledRows
    evaluation: LabelledRows

    def __post_init__(self) -> None:
        if self.train.num_domains != self.evaluation.num_domains:
            raise MatrixError(
                f"{self.train.num_domains} domains to step on, {self.evaluation.num_domains} to measure on"
            )


@dataclass(frozen=True, eq=False)
class Measured:
    """What a lookahead delivers, with what it took.

    Attributes:
        delivered: For `state.update`.
        estimate: Mode, reason and estimated cost, for the log.
        num_sets: Different sets of the plan, the empty one included.
        seconds: Wall time.
    """

    delivered: LookaheadLosses | LookaheadGram
    estimate: CostEstimate
    num_sets: int
    seconds: float


def measure(
    model: CtrModel,
    rows: LookaheadRows,
    plan: LookaheadPlan,
    *,
    serving: Serving,
    step_size: float,
    interval_rows: int,
    mode: LookaheadMode = "auto",
    preconditioner: Preconditioner = SGD,
    frozen_above: int | None = None,
    max_share: float = MAX_SHARE,
    chunk_models: int = 16,
) -> Measured:
    """Measure what the steps of a plan do.

    Args:
        model: On the device of the rows; its state does not change.
        rows: Of the plan's domains.
        plan: Sets to step on.
        serving: `mean` before the first clustering, `own` after.
        step_size: eta.
        interval_rows: Rows trained on between two updates; decides `auto`.
        mode: `exact`, `first_order`, `literal` (tests and benchmarks only), or `auto`, see `estimate_cost`.
        preconditioner: P; see `adaptive_preconditioner`.
        frozen_above: Encoders with more rows than this are not perturbed; None perturbs all.
        max_share: Share of training that `auto` may spend.
        chunk_models: Perturbed models that mode exact runs side by side.

    Raises:
        MatrixError: a ranker without towers, or rows of another number of domains than the plan.
        RulesError: a step size or chunk that is not positive.
    """
    if rows.train.num_domains != plan.num_domains:
        raise MatrixError(f"rows of {rows.train.num_domains} domains; the plan has {plan.num_domains}")
    if not step_size > 0 or chunk_models < 1:
        raise RulesError(f"step_size {step_size} and chunk_models {chunk_models} must be above 0")
    started = time.perf_counter()
    source = GradientSource(
        model, ServedRows(model, serving), parameter_map(model), frozen_rows(model, frozen_above)
    )
    sets = PlanSets(plan)
    estimate = _estimate(source, rows, sets, mode, interval_rows, max_share)
    with undisturbed(model):
        if estimate.mode == "literal":
            delivered: LookaheadLosses | LookaheadGram = literal_losses(
                model,
                rows.train,
                rows.evaluation,
                plan,
                step_size=step_size,
                serving=serving,
                preconditioner=_train_gradients(source, rows.train, preconditioner)[1],
                frozen=source.frozen,
            )
        elif estimate.mode == "exact":
            delivered = _exact(source, rows, sets, preconditioner, step_size, chunk_models)
        else:
            delivered = first_order_gram(
                source, rows.train, rows.evaluation, step_size=step_size, preconditioner=preconditioner
            )
    return Measured(delivered, estimate, len(sets.members), time.perf_counter() - started)


def _estimate(
    source: GradientSource,
    rows: LookaheadRows,
    sets: PlanSets,
    mode: LookaheadMode,
    interval_rows: int,
    max_share: float,
) -> CostEstimate:
    inputs = source.model.inputs
    size = LookaheadSize(
        num_domains=rows.train.num_domains,
        num_sets=len(sets.members),
        train_rows=int(rows.train.sizes.sum()),
        eval_rows=int(rows.evaluation.sizes.sum()),
        num_dense=source.parameters.num_dense,
        width=inputs.request_width + inputs.row_width,
        interval_rows=interval_rows,
    )
    return estimate_cost(size, mode=mode, max_share=max_share)


def _exact(
    source: GradientSource,
    rows: LookaheadRows,
    sets: PlanSets,
    preconditioner: Preconditioner,
    step_size: float,
    chunk_models: int,
) -> LookaheadLosses:
    gradients, bounded = _train_gradients(source, rows.train, preconditioner)
    return exact_losses(
        source.model,
        source.served,
        source.parameters,
        [bounded.apply(gradient, source.parameters) for gradient in gradients],
        rows.evaluation,
        sets,
        step_size=step_size,
        chunk_models=chunk_models,
    )


def _train_gradients(
    source: GradientSource, train: LabelledRows, preconditioner: Preconditioner
) -> tuple[list[DomainGradient], Preconditioner]:
    """Gradient of each domain, and P bounded by them."""
    gradients = [source.of(train, u) for u in range(train.num_domains)]
    squares = torch.zeros_like(gradients[0].dense)
    for gradient in gradients:
        squares += gradient.dense.square() / len(gradients)
    return gradients, preconditioner.bounded(squares, source.parameters)
