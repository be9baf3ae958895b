"""The worked example of a lookahead, and what cannot be measured."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from service.contract.schema import FeatureSchema
from tests.support.lookahead import PLAN, ROWS, losses, make_model
from training.clustering.affinity import (
    LookaheadGram,
    LookaheadLosses,
    LookaheadPlan,
    affinities,
)
from training.clustering.errors import MatrixError, RulesError
from training.clustering.lookahead import LookaheadRows, measure
from training.clustering.lookahead_cost import LookaheadMode, LookaheadSize, estimate_cost
from training.clustering.lookahead_exact import PlanSets
from training.clustering.lookahead_model import LabelledRows, Serving, row_losses
from training.clustering.lookahead_step import SGD
from training.models.base import CtrModel, Sides, TensorBatch
from training.models.towers import TowerRanker


class Logistic(TowerRanker):
    """Logistic regression without bias over the row side, the model of spec D4."""

    def __init__(self, request_width: int, row_width: int) -> None:
        super().__init__(request_width=request_width, row_width=row_width, tower_of_domain=[0, 0, 0, 0])
        self.weight = torch.nn.Parameter(torch.zeros(row_width))

    def tower_logits(self, sides: Sides) -> Tensor:
        return (sides.row @ self.weight).unsqueeze(1)

    def _common(self, sides: Sides) -> Tensor:
        return torch.zeros(sides.row.shape[0], 1, dtype=sides.row.dtype)


X = [
    [[1, 0], [1, 1], [-1, 0], [-1, -1]],
    [[1, 0], [0, 1], [-1, 0], [0, -1]],
    [[1, 1], [-1, 1], [1, -1], [-1, -1]],
]
Y = [[1, 1, 0, 0], [1, 0, 0, 1], [0, 1, 0, 1]]
MI = [[0.207194, 0.038055, -0.194351], [0.043676, 0.087353, -0.095789], [-0.191579, -0.095789, 0.169095]]
MH = [[0.092698, 0.015565, -0.077427], [0.007725, 0.036921, -0.029644], [-0.113858, -0.053006, 0.097421]]
MT = [
    [0.128922, 0.064461, -0.141583],
    [0.022190, -0.022894, -0.000704],
    [-0.069386, -0.000704, 0.043676],
    [0.207194, 0.038055, -0.194351],
]


@pytest.fixture(scope="module")
def worked() -> tuple[CtrModel, LookaheadRows, LookaheadPlan]:
    """Spec D4 as a model with an input layer."""
    from service.contract.schema import Entity, NumericFeature, StandardiseEncoder
    from training.models.inputs import InputLayer

    schema = FeatureSchema(
        name="worked",
        domains=("a", "b", "c"),
        encoders={"plain": StandardiseEncoder()},
        features=(NumericFeature(name="x", entity=Entity.ITEM, encoder="plain", width=2),),
    )
    inputs = InputLayer(schema, banks={}, bank_of={}, domain_dim=2)
    model = CtrModel(inputs, Logistic(inputs.request_width, inputs.row_width)).double()
    nothing = torch.zeros(12, 0)
    batch = TensorBatch(
        user_ints=nothing.long(),
        user_floats=nothing.double(),
        context_ints=nothing.long(),
        context_floats=nothing.double(),
        item_ints=nothing.long(),
        item_floats=torch.tensor(X).double().reshape(12, 2),
        pairs=nothing.double(),
        domain=torch.arange(3).repeat_interleave(4),
    )
    rows = LabelledRows(batch, torch.tensor(Y).double().flatten(), np.array([4, 4, 4]))
    plan = LookaheadPlan(
        companions=np.ones((3, 3), dtype=bool),
        treatments=np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 0, 0]], dtype=bool),
    )
    return model, LookaheadRows(rows, rows), plan


@pytest.mark.parametrize("serving", ["own", "mean"])
@pytest.mark.parametrize("mode", ["exact", "literal"])
def test_worked_example(worked, mode: LookaheadMode, serving: Serving):
    """Every matrix of spec D4, to its six digits."""
    model, rows, plan = worked
    out = measure(model, rows, plan, serving=serving, step_size=0.5, interval_rows=1, mode=mode).delivered
    assert isinstance(out, LookaheadLosses)
    gains = affinities(out, plan)

    np.testing.assert_allclose(out.base, np.log(2), rtol=1e-12)
    np.testing.assert_allclose(out.after_companions[0], [0.672531, 0.682839, 0.714198], atol=6e-7)
    np.testing.assert_allclose(gains.mi, MI, atol=6e-7)
    np.testing.assert_allclose(gains.mh, MH, atol=6e-7)
    np.testing.assert_allclose(gains.mt, MT, atol=6e-7)


def test_worked_example_gram(worked):
    """The Gram matrix of the gradients (-.5,-.25), (-.25,.25), (.5,0) of spec D4."""
    model, rows, plan = worked
    out = measure(
        model, rows, plan, serving="own", step_size=0.5, interval_rows=1, mode="first_order"
    ).delivered
    gradients = np.array([[-0.5, -0.25], [-0.25, 0.25], [0.5, 0.0]])
    assert isinstance(out, LookaheadGram)

    np.testing.assert_allclose(out.gram, gradients @ gradients.T, atol=1e-12)


def test_the_mean_of_towers_averages_probabilities():
    """-log of the mean of sigmoids by hand, for both labels."""
    logits = torch.tensor([[0.3, -2.0, 5.0], [1.0, 0.0, -1.0]], dtype=torch.float64)
    labels = torch.tensor([1.0, 0.0], dtype=torch.float64)
    p = torch.sigmoid(logits).mean(dim=1)

    torch.testing.assert_close(
        row_losses(logits, labels, "mean"), torch.stack([-torch.log(p[0]), -torch.log(1 - p[1])])
    )


def test_equal_sets_are_measured_once():
    """At t = 0 all rows of M_u are one set, and {u} may be a treatment: 2 D + R + 2 shrinks."""
    plan = LookaheadPlan(np.ones((4, 4), dtype=bool), np.eye(4, dtype=bool)[:2])
    sets = PlanSets(plan)

    assert len(sets.members) == 1 + 4 + 1 + 4  # empty, singles, all, all but one
    out = sets.deliver(sets.members.sum(axis=1)[:, None] * np.ones(4))
    assert (out.base == 0).all()
    assert (out.after_single == 1).all()
    assert (out.after_companions == 4).all()
    assert (out.after_others == 3).all()
    assert (out.after_treatments == 1).all()


def size(**changes) -> LookaheadSize:
    values = {"num_domains": 10, "num_sets": 40, "train_rows": 2560, "eval_rows": 1280} | changes
    return LookaheadSize(**{"num_dense": 10_000, "width": 100, "interval_rows": 1_000_000} | values)


def test_auto_takes_exact_where_it_is_cheap_and_first_order_elsewhere():
    """The choice follows the estimate; the reason names shares and limit."""
    cheap = estimate_cost(size(), mode="auto", max_share=0.1)
    dear = estimate_cost(size(interval_rows=100_000), mode="auto", max_share=0.1)
    hopeless = estimate_cost(size(interval_rows=10_000), mode="auto", max_share=0.1)

    assert cheap.mode == "exact"
    assert cheap.exact_share <= 0.1
    assert dear.mode == hopeless.mode == "first_order"
    assert dear.first_order_share <= 0.1 < dear.exact_share
    assert "which is still above 10.0%" in hopeless.reason
    assert estimate_cost(size(interval_rows=1), mode="exact", max_share=0.1).mode == "exact"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: estimate_cost(size(interval_rows=0), mode="auto", max_share=0.1),
            RulesError,
            "0 rows between",
        ),
        (lambda: estimate_cost(size(), mode="auto", max_share=0.0), RulesError, "share of 0.0"),
        (lambda: losses(make_model(), "exact", step_size=0.0), RulesError, "step_size 0.0"),
        (lambda: losses(make_model(), "exact", chunk_models=0), RulesError, "chunk_models 0"),
        (lambda: losses(make_model("dcnv2"), "exact"), MatrixError, "Dcnv2 has no towers"),
        (
            lambda: LookaheadRows(ROWS.train, ROWS.evaluation.span(0, 2)),
            MatrixError,
            "5 domains to step on, 2",
        ),
        (
            lambda: LabelledRows(ROWS.train.inputs, ROWS.train.labels, np.array([1, 2])),
            MatrixError,
            "43 rows and 43 labels for domains of",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(call: Callable[[], object], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        call()


def test_rows_of_another_number_of_domains_than_the_plan_are_refused():
    rows = LookaheadRows(ROWS.train.span(0, 3), ROWS.evaluation.span(0, 3))
    with pytest.raises(MatrixError, match="rows of 3 domains; the plan has 5"):
        measure(make_model(), rows, PLAN, serving="own", step_size=0.1, interval_rows=1, preconditioner=SGD)
