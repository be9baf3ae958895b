"""CESAA of one domain: the whole model's logits from that domain's experts alone; constant choices."""

from __future__ import annotations

import pytest
import torch

from tests.support.models import MODELS, random_batch, trained_model
from tests.support.schemas import full_schema
from training.models.base import CtrModel, Sides
from training.models.cesaa import Cesaa
from training.models.cesaa_domain import cesaa_of_one_domain
from training.models.fusion import without_domain
from training.models.routed_experts import DenseExperts, GroupedExperts, StaticExperts
from training.models.specialise import specialise

SCHEMA = full_schema()
NAMES = [name for name, config in MODELS.items() if config.type == "cesaa"]
EXACT = {"atol": 1e-6, "rtol": 1e-5}


def model_of(name: str) -> tuple[CtrModel, Cesaa]:
    model = trained_model(name, SCHEMA)
    assert isinstance(model.ranker, Cesaa)
    return model, model.ranker


def sides_of(model: CtrModel, domain: int, num_rows: int) -> Sides:
    """Rows of one domain in 3 requests."""
    with torch.no_grad():
        requests, _ = model.sides(random_batch(SCHEMA, 3, seed=6))
        rows, _ = model.sides(random_batch(SCHEMA, num_rows, seed=7))
        own = torch.full((3,), domain)
        request = torch.cat([without_domain(requests, 4).request, model.inputs.domain(own)], dim=1)
    return Sides(request, rows.row, torch.arange(num_rows) % 3, own)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("domain", range(SCHEMA.num_domains + 1))
@pytest.mark.parametrize("masked", [False, True])
def test_one_domain_gives_the_logits_of_the_whole(name: str, domain: int, masked: bool):
    """With all experts and with k + 1 of them allowed; experts keep their names."""
    model, ranker = model_of(name)
    E, k = ranker.num_experts, ranker.gate.top_k
    if masked:
        ranker.gate.allow(
            [tuple((d + i) % E for i in range(min(k + 1, E))) for d in range(SCHEMA.num_domains + 1)]
        )
    sides = sides_of(model, domain, 17)
    special = specialise(model, (domain,))
    assert special is not None
    assert not special.reads_domain
    with torch.no_grad():
        logits, experts = special.ranker.with_experts(without_domain(sides, 4))
        torch.testing.assert_close(logits, ranker(sides), **EXACT)
        assert experts is not None
        assert experts.tolist() == ranker.gate(sides).experts.tolist()


def test_a_domain_of_k_experts_has_nothing_to_skip():
    """With exactly k allowed every row runs them all: no sorting is left in the graph."""
    model, ranker = model_of("cesaa")
    ranker.gate.allow([(1, 3), *[(0, 1, 2, 3)] * SCHEMA.num_domains])
    forms = [cesaa_of_one_domain(ranker, d, model.inputs.domain.weight[d].detach()).routed for d in (0, 1)]

    assert isinstance(forms[0], DenseExperts)
    assert forms[0].stack.num_experts == 2
    assert isinstance(forms[1], GroupedExperts)


def test_a_gate_by_domain_leaves_no_gate_in_a_graph_of_one():
    """Its choice is a constant."""
    model, ranker = model_of("cesaa_domain_gate")
    form = cesaa_of_one_domain(ranker, 1, model.inputs.domain.weight[1].detach())

    assert isinstance(form.routed, StaticExperts)
    assert not list(form.gate.parameters())


@pytest.mark.parametrize("name", ["cesaa", "cesaa_routed_only"])
def test_a_given_set_with_given_weights(name: str):
    """The logits of the whole model with these weights in the place of the gate's."""
    model, ranker = model_of(name)
    sides = sides_of(model, 2, 11)
    ranker.fixed = {2: ((0, 2), (0.7, 0.3))}
    form = cesaa_of_one_domain(ranker, 2, model.inputs.domain.weight[2].detach())
    weights = torch.zeros(11, ranker.num_experts)
    weights[:, 0], weights[:, 2] = 0.7, 0.3
    with torch.no_grad():
        expected = ranker.logits_with(sides, weights)
        if ranker.gate.top_k == 2:
            torch.testing.assert_close(ranker.for_inference()(sides), expected, **EXACT)
            others = sides_of(model, 1, 11)
            torch.testing.assert_close(ranker.for_inference()(others), ranker(others), **EXACT)
        torch.testing.assert_close(form(without_domain(sides, 4)), expected, **EXACT)
