"""CESAA: fusion by hand, forms against the model as trained, poisoned experts, the loss of a batch."""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch

from service.contract.errors import SchemaError
from tests.support.models import INPUTS, MODELS, fresh_model, random_batch, trained_model
from tests.support.schemas import full_schema
from training.models import routed_experts
from training.models.base import Sides
from training.models.build import build_model
from training.models.cesaa import Cesaa
from training.models.cesaa_form import CesaaForm, RoutedForm, cesaa_form
from training.models.config import CesaaConfig
from training.models.fusion import fused
from training.models.routed_experts import DenseExperts, GroupedExperts
from training.models.routing_information import joint_distribution, mutual_information
from training.models.topk_gate import choose

SCHEMA = full_schema()
FORMS = (GroupedExperts, DenseExperts)


@pytest.fixture(params=[0, 64], ids=["request apart", "request joins rows"])
def narrow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Request sides of both kinds."""
    monkeypatch.setattr(routed_experts, "NARROW", request.param)


NAMES = [name for name, config in MODELS.items() if config.type == "cesaa"]
EXACT = {"atol": 1e-6, "rtol": 1e-5}


def trained(name: str = "cesaa") -> tuple[Cesaa, Sides]:
    """A ranker, and the sides of 40 rows in 7 requests."""
    model = trained_model(name, SCHEMA)
    assert isinstance(model.ranker, Cesaa)
    with torch.no_grad():
        of_requests, _ = model.sides(random_batch(SCHEMA, 7, seed=4))
        of_rows, _ = model.sides(random_batch(SCHEMA, 40, seed=5))
    index = torch.arange(40) % 7
    return model.ranker, Sides(of_requests.request, of_rows.row, index, of_requests.domain)


def test_fusion_by_hand():
    """Expert outputs (1,0), (0,2), (3,3), (-1,1), shared (.5,-.5), logits (2, 1, .5, -1), k = 2."""
    outputs = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0], [-1.0, 1.0]])
    weights = choose(torch.tensor([[2.0, 1.0, 0.5, -1.0]]), 2).dense_weights()
    routed, shared = weights @ outputs, torch.tensor([[0.5, -0.5]])

    assert routed[0].tolist() == pytest.approx([0.731059, 0.537883], abs=1e-6)
    assert fused(routed, shared, "sum")[0].tolist() == pytest.approx([1.231059, 0.037883], abs=1e-6)
    assert fused(routed, shared, "concat")[0].tolist() == pytest.approx(
        [0.731059, 0.537883, 0.5, -0.5], abs=1e-6
    )
    assert fused(routed, None, "sum") is routed


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(("name", "form"), list(product(NAMES, FORMS)))
@pytest.mark.parametrize("num_rows", [0, 1, 2, 5, 33])
def test_forms_give_the_logits_of_the_model_as_trained(name: str, form: RoutedForm, num_rows: int):
    ranker, every = trained(name)
    some = every._replace(row=every.row[:num_rows], request_index=every.request_index[:num_rows])  # type: ignore[index]
    with torch.no_grad():
        expected = ranker(some)
        logits, experts = cesaa_form(ranker, form).with_experts(some)

    torch.testing.assert_close(logits, expected, **EXACT)
    assert experts is not None
    assert experts.tolist() == ranker.gate(some).experts.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_forms_hold_with_masks_on(name: str):
    ranker, sides = trained(name)
    k, E = ranker.gate.top_k, ranker.num_experts
    ranker.gate.allow(
        [tuple(range(k)), tuple(range(E - k, E)), *[tuple(range(E))] * (SCHEMA.num_domains - 1)]
    )
    with torch.no_grad():
        for form in FORMS:
            torch.testing.assert_close(cesaa_form(ranker, form)(sides), ranker(sides), **EXACT)


def poisoned(form: CesaaForm, chosen: set[int]) -> CesaaForm:
    """Every weight of experts that nobody chose is nan."""
    own = copy.deepcopy(form)
    assert isinstance(own.routed, GroupedExperts)
    with torch.no_grad():
        for number, expert in enumerate(own.routed.experts):
            if number not in chosen:
                for parameter in expert.parameters():
                    parameter.fill_(torch.nan)
                if own.routed.joins:
                    own.routed.biases[number].fill_(torch.nan)
                else:
                    request = own.routed.request
                    request.weight.view(-1, own.routed.first_width, request.in_features)[number] = torch.nan
                    request.bias.view(-1, own.routed.first_width)[number] = torch.nan
    return own


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("row", [0, 7, 23])
def test_unchosen_experts_may_be_poisoned_in_the_grouped_form(row: int):
    """Scores stay finite and right; computing all experts gives nan."""
    ranker, every = trained()
    assert every.request_index is not None
    one = every._replace(row=every.row[row : row + 1], request_index=every.request_index[row : row + 1])
    with torch.no_grad():
        chosen = set(ranker.gate(one).experts.flatten().tolist())
        own = poisoned(cesaa_form(ranker, GroupedExperts), chosen)
        torch.testing.assert_close(own(one), ranker(one), **EXACT)
        ranker.experts.linears[0].weight[next(e for e in range(4) if e not in chosen)] = torch.nan
        assert torch.isnan(ranker(one)).all()


def test_a_row_keeps_its_score_when_others_meet_poisoned_experts():
    """Rows that chose sound experts are right beside rows that did not."""
    ranker, sides = trained()
    with torch.no_grad():
        experts = ranker.gate(sides).experts
        expected = ranker(sides)
        found = poisoned(cesaa_form(ranker, GroupedExperts), {0, 1, 2})(sides)
    hit = (experts == 3).any(dim=1)

    assert hit.any()
    assert not hit.all()
    assert torch.isnan(found[hit]).all()
    torch.testing.assert_close(found[~hit], expected[~hit], **EXACT)


def test_the_loss_of_a_batch_is_minus_the_information_of_its_noisy_choice():
    """Minus I times its weight, of the very draws of the forward pass; none in evaluation mode."""
    model = fresh_model("cesaa", SCHEMA).train()
    ranker = model.ranker
    assert isinstance(ranker, Cesaa)
    ranker.set_mi_weight(0.5)
    sides, _ = model.sides(random_batch(SCHEMA, 64, seed=2))
    torch.manual_seed(5)
    ranker(sides)
    found = ranker.penalty()
    torch.manual_seed(5)
    pi = ranker.gate(sides).probabilities
    joint = joint_distribution(pi, sides.domain, num_domains=SCHEMA.num_domains, prior="batch")

    assert found is not None
    assert found.item() == pytest.approx(-0.5 * mutual_information(joint).item(), rel=1e-5)
    assert ranker.penalty() is None
    ranker.eval()(sides)
    assert ranker.penalty() is None


def test_a_fixed_choice_in_the_place_of_the_gate():
    """The gate's own weights give the model's logits."""
    ranker, sides = trained()
    with torch.no_grad():
        own = ranker.logits_with(sides, ranker.gate(sides).dense_weights())
        torch.testing.assert_close(own, ranker(sides))


def test_experts_do_not_read_the_domain_unless_told_to():
    """Their first layers lack its columns."""
    plain, told = (
        build_model(CesaaConfig(inputs=INPUTS, expert_input=read), SCHEMA).ranker
        for read in ("features", "features+domain")
    )
    assert isinstance(plain, Cesaa)
    assert isinstance(told, Cesaa)
    widths = [r.experts.first.request.in_features for r in (plain, told)]  # type: ignore[union-attr]
    assert widths[1] - widths[0] == INPUTS.domain_dim


def test_masks_are_named_like_those_of_other_methods():
    ranker, _ = trained()
    assert ranker.experts_kept() is None
    ranker.gate.allow([(0, 3), *[(0, 1, 2, 3)] * SCHEMA.num_domains])

    kept = ranker.experts_kept()
    assert kept is not None
    assert kept[0] == ("routed.0", "routed.3")
    assert kept[-1] == ("routed.0", "routed.1", "routed.2", "routed.3")


def test_concat_without_a_shared_expert_is_refused():
    config = CesaaConfig(inputs=INPUTS).model_copy(update={"fusion": "concat", "shared_expert": False})
    with pytest.raises(SchemaError, match="fusion is concat, but there is no shared expert"):
        build_model(config, SCHEMA)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"top_k": 9}, "top_k is 9; allowed are 1 to num_experts, 8"),
        ({"fusion": "concat", "shared_expert": False}, "fusion is concat, but there is no shared expert"),
    ],
)
def test_configs_that_do_not_fit_are_refused(fields: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        CesaaConfig.model_validate(fields)
