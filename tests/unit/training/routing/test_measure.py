"""Routing figures by hand, the warm-up of the loss, sets of experts fixed for a while."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.support.models import fresh_model, random_batch, trained_model
from tests.support.schemas import full_schema
from training.models.cesaa import Cesaa
from training.report_routing import routing_section
from training.routing.errors import RoutingError
from training.routing.fixed import FixedRouting
from training.routing.measure import RowRouting, by_domain, information, smallest_set
from training.routing.warmup import InformationWarmup, cesaa_of, warmup_steps
from training.track import NoLog, Quiet

SCHEMA = full_schema()


def rows() -> RowRouting:
    """Domain 0: sets {0,1}, {0,1}, {0,2}; domain 1 has no rows; one row of unknown domain."""
    return RowRouting(
        domain=np.array([0, 0, 0, 2]),
        experts=np.array([[0, 1], [0, 1], [0, 2], [1, 2]]),
        weights=np.array([[0.75, 0.25], [0.5, 0.5], [0.875, 0.125], [0.5, 0.5]]),
        probability_sums=np.array([[2.0, 0.75, 0.25], [0.0, 0.0, 0.0], [0.0, 0.5, 0.5]]),
    )


def test_figures_of_a_domain_by_hand():
    """Load counts choices, mass weighs them, agreement is the share of the commonest set."""
    first, empty, unknown = by_domain(rows(), mass=0.9)

    assert first.load.tolist() == pytest.approx([3 / 6, 2 / 6, 1 / 6])
    assert first.mass.tolist() == pytest.approx([2.125 / 3, 0.75 / 3, 0.125 / 3])
    assert first.agreement == pytest.approx(2 / 3)
    assert first.modal == (0, 1)
    assert first.modal_weights == pytest.approx((0.625, 0.375))
    assert first.allowed == (0, 1)  # they hold .958
    assert first.changed_ratio == pytest.approx(1 / 3)
    assert (empty.rows, empty.modal, empty.allowed) == (0, (), (0, 1, 2))
    assert math.isnan(empty.agreement)
    assert unknown.agreement == 1.0


@pytest.mark.parametrize(
    ("wanted", "least", "expected"),
    [(0.5, 1, (2,)), (0.5, 2, (1, 2)), (0.6, 1, (1, 2)), (0.9, 1, (1, 2)), (1.0, 1, (0, 1, 2))],
)
def test_the_smallest_set_that_holds_the_mass(wanted: float, least: int, expected: tuple[int, ...]):
    """Masses .1, .35, .55."""
    assert smallest_set(np.array([0.1, 0.35, 0.55]), wanted=wanted, least=least) == expected


def test_information_over_all_rows():
    """Two domains, one-hot by domain: log 2 with equal priors, H(3/4, 1/4) by rows."""
    own = RowRouting(
        domain=np.array([0, 0, 0, 1]),
        experts=np.array([[0], [0], [0], [1]]),
        weights=np.ones((4, 1)),
        probability_sums=np.array([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]]),
    )

    assert information(own, prior="uniform") == pytest.approx(math.log(2))
    expected = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert information(own, prior="batch") == pytest.approx(expected)


@pytest.mark.parametrize(
    ("given", "batches", "epochs", "expected"),
    [
        (None, 1000, 10, 1000),  # an epoch
        (None, 100, 60, 500),  # at least 500
        (None, 300, 2, 200),  # at most a third of training
        (7, 300, 2, 7),
    ],
)
def test_length_of_the_warmup(given: int | None, batches: int, epochs: int, expected: int):
    assert warmup_steps(given, batches_per_epoch=batches, epochs=epochs) == expected


def test_a_warmup_as_long_as_training_is_refused():
    with pytest.raises(RoutingError, match="mi_warmup_steps is 600, training has 600 steps"):
        warmup_steps(600, batches_per_epoch=300, epochs=2)


def test_the_loss_counts_from_its_step_on():
    """Off before, on from step 3 for good; a checkpoint has it, being a buffer."""
    model = fresh_model("cesaa", SCHEMA)
    hook = InformationWarmup(model, weight=0.25, warmup=3, log=NoLog(), watcher=Quiet())
    ranker = cesaa_of(model)
    seen = []
    for step in range(5):
        hook.before_step(step)
        seen.append(float(ranker.get_buffer("mi_weight")))

    assert seen == [0.0, 0.0, 0.0, 0.25, 0.25]
    assert float(model.state_dict()["ranker.mi_weight"]) == 0.25


def test_a_weight_of_zero_is_never_due():
    hook = InformationWarmup(fresh_model("cesaa", SCHEMA), weight=0.0, warmup=0, log=NoLog(), watcher=Quiet())
    assert not any(hook.due(step) for step in range(3))


def test_other_models_have_no_routing():
    with pytest.raises(RoutingError, match="a model with a Mmoe has no routing"):
        cesaa_of(fresh_model("mmoe", SCHEMA))


def test_fixed_sets_hold_inside_the_block_only():
    """Rows of the domain use the set given, others and later calls the gate's own choice."""
    model = trained_model("cesaa", SCHEMA)
    ranker = model.ranker
    assert isinstance(ranker, Cesaa)
    with torch.no_grad():
        sides, _ = model.sides(random_batch(SCHEMA, 40, seed=3))
        before = ranker(sides)
        weights = ranker.gate(sides).dense_weights()
        own = sides.domain == 1
        weights[own] = torch.tensor([0.0, 0.25, 0.0, 0.75])
        with FixedRouting(model, {1: ((1, 3), (0.25, 0.75))}):
            inside = ranker(sides)
        expected = ranker.logits_with(sides, weights)

        torch.testing.assert_close(inside, expected)
        assert not torch.allclose(inside[own], before[own])
        torch.testing.assert_close(ranker(sides), before)


def test_no_routing_no_section():
    assert routing_section({"name": "mmoe"}) == ""
