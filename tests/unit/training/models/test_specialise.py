"""Rankers of some domains: the whole model's logits, dead experts gone, other domains refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.models import MODELS, random_batch, trained_model
from tests.support.schemas import full_schema
from training.models.aread import Aread
from training.models.aread_domain import AreadOfDomain
from training.models.aread_parts import KeptMmoeBase, used_experts
from training.models.base import CtrModel, Sides
from training.models.build import build_model
from training.models.config import AreadConfig
from training.models.mask import random_mask
from training.models.specialise import SpecialiseError, specialise

SCHEMA = full_schema()  # 3 domains; 3 stands for unknown ones
AREADS = ("aread", "aread_base_masks", "aread_feature_base_masks", "aread_ple_clusters")
DENSITIES = (0.05, 0.3, 0.7)


def masked_model(name: str) -> CtrModel:
    """A model with a sparse, a middling and a dense mask."""
    model = _with_base_masks() if name == "aread_feature_base_masks" else trained_model(name, SCHEMA)
    ranker = model.ranker
    assert isinstance(ranker, Aread)
    rng = np.random.default_rng(4)
    ranker.set_masks({d: random_mask(ranker.shape, q, rng) for d, q in enumerate(DENSITIES)})
    return model


def _with_base_masks() -> CtrModel:
    """Masks over base experts whose gates read features."""
    config = MODELS["aread"]
    assert isinstance(config, AreadConfig)
    torch.manual_seed(3)
    return build_model(config.model_copy(update={"mask_base": True}), SCHEMA).eval()


def sides(model: CtrModel, domain: int, *, seed: int = 0) -> Sides:
    """30 rows of one domain."""
    batch = random_batch(SCHEMA, 30, seed=seed)
    own = torch.full((30,), domain)
    request, _ = model.inputs.request_side(
        batch.user_ints, batch.user_floats, batch.context_ints, batch.context_floats, own
    )
    row, _ = model.inputs.row_side(batch.item_ints, batch.item_floats, batch.pairs)
    return Sides(request, row, None, own)


def without_domain(model: CtrModel, given: Sides) -> Sides:
    """The same without the domain embedding."""
    return given._replace(request=given.request[:, : -model.inputs.domain_dim])


@torch.no_grad()
@pytest.mark.parametrize("domain", [0, 1, 2, 3])
@pytest.mark.parametrize("name", [*AREADS, "mmoe", "mmoe_clusters", "mmoe_domain_gate", "mmoe_per_domain"])
def test_one_domain_scores_as_in_the_whole_model(name: str, domain: int):
    """Gates, masks, tables and the domain embedding of the trained model against constants without them."""
    model = masked_model(name) if name in AREADS else trained_model(name, SCHEMA)
    special = specialise(model, [domain])
    assert special is not None
    assert not special.reads_domain
    given = sides(model, domain)

    np.testing.assert_allclose(
        special.ranker(without_domain(model, given)), model.ranker(given), atol=2e-5, rtol=1e-5
    )


@torch.no_grad()
@pytest.mark.parametrize("name", ["aread", "aread_base_masks", "aread_feature_base_masks"])
def test_several_domains_score_as_in_the_whole_model_and_others_not_at_all(name: str):
    model = masked_model(name)
    special = specialise(model, [1, 0])
    assert special is not None
    assert special.reads_domain
    for domain in (0, 1):
        given = sides(model, domain)
        np.testing.assert_allclose(special.ranker(given), model.ranker(given), atol=2e-5, rtol=1e-5)
    for domain in (2, 3):
        assert special.ranker(sides(model, domain)).isnan().all()


@torch.no_grad()
@pytest.mark.parametrize("name", ["aread", "aread_base_masks", "aread_feature_base_masks"])
def test_what_a_mask_leaves_out_is_not_there(name: str):
    """Widths of every layer are those of the experts in use; poison in the others reaches nothing."""
    model = masked_model(name)
    ranker = model.ranker
    assert isinstance(ranker, Aread)
    used = used_experts(ranker, [0])
    before = ranker(sides(model, 0))
    for stack, kept in zip(ranker.expert_pyramid.levels, used.levels, strict=True):
        dead = sorted(set(range(stack.num_experts)) - set(kept))
        assert dead
        for linear in (stack.first, *stack.linears):
            linear.bias[dead] = 1e6
            linear.weight[dead] = torch.nan
    special = specialise(model, [0])
    assert special is not None
    own = special.ranker
    assert isinstance(own, AreadOfDomain)

    np.testing.assert_allclose(own(without_domain(model, sides(model, 0))), before, atol=2e-5, rtol=1e-5)
    assert own.head.out_features == len(used.levels[-1])
    assert own.head.in_features == len(used.levels[-1]) * ranker.expert_pyramid.levels[-1].out_width
    if used.base is not None:
        assert own.base.experts.num_experts == len(used.base)
    if isinstance(own.base, KeptMmoeBase):
        assert own.base.gates.request.out_features == len(used.levels[0]) * own.base.num_experts
    assert not [key for key in own.state_dict() if "mask" in key or "domain" in key or "group" in key]


@torch.no_grad()
def test_a_base_gate_with_little_left_keeps_the_floor_of_its_sum():
    """Active softmax mass far below 1e-4: the formula with 1e-8, not a softmax over what is left."""
    model = masked_model("aread_feature_base_masks")
    ranker = model.ranker
    assert isinstance(ranker, Aread)
    used = used_experts(ranker, [0])
    assert used.base is not None
    dead = next(e for e in range(3) if e not in used.base)
    ranker.base.gates.request.bias[dead :: ranker.base.num_experts] += 17.0
    special = specialise(model, [0])
    assert special is not None
    given = sides(model, 0)

    gates = ranker.base.read(given).gates[:, used.levels[0]][:, :, list(used.base)]
    assert gates.sum(dim=-1).max() < 1e-4
    np.testing.assert_allclose(
        special.ranker(without_domain(model, given)), ranker(given), atol=2e-5, rtol=1e-5
    )


@pytest.mark.parametrize("name", ["dcnv2", "deepfm", "star_clusters", "pepnet_clusters", "ple_clusters"])
def test_other_methods_have_nothing_to_drop(name: str):
    assert specialise(trained_model(name, SCHEMA), [0]) is None


def test_several_domains_that_use_everything_have_nothing_to_drop():
    """The unknown domain uses every expert; so does a model in warm-up, whatever its masks."""
    model = masked_model("aread")
    assert specialise(model, [0, 3]) is None
    model.ranker.use_masks(wanted=False)
    assert specialise(model, [0, 1]) is None


@pytest.mark.parametrize(
    ("domains", "words"),
    [
        ([], "a ranker of no domains; at least 1 is needed"),
        ([0, 4], r"domain indices \[4\]; allowed are 0 to 3"),
        ([1, 1], r"domain indices \[1, 1\] name a domain twice"),
    ],
)
def test_odd_domains_are_refused(domains: list[int], words: str):
    with pytest.raises(SpecialiseError, match=words):
        specialise(trained_model("aread", SCHEMA), domains)
