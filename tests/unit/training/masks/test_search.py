"""Mask updates: cheap against plain, nothing but masks changes, and the same rows for all candidates."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from tests.support.models import fresh_model, random_batch, trained_model
from tests.support.schemas import full_schema
from training.clustering.lookahead_model import LabelledRows, undisturbed
from training.masks.errors import MaskSearchError
from training.masks.plain import PlainTuner
from training.masks.rows import draw_rows
from training.masks.schedule import SearchSchedule, UpdateSettings
from training.masks.search import MaskSearch, aread_of
from training.masks.stack import CandidateStack, cached, own_pyramid
from training.masks.tuning import StackedAdam, TuningRules, head_losses
from training.models.base import TensorBatch
from training.models.mask import random_mask

SCHEMA = full_schema()
AREADS = ["aread", "aread_base_masks", "aread_ple_clusters"]
RULES = TuningRules(steps=3, rows=8, eval_batches=2, chunk_candidates=8)
SETTINGS = SearchSchedule(candidates=4, target_density=0.6, target_updates=2).at(1)
EVERY = range(SCHEMA.num_domains)


@dataclass
class RandomRows:
    """Random rows and labels of a domain; counts what is asked for."""

    seed: int = 0
    short: int = 0

    def num_rows(self, domain):
        return 100

    def draw(self, domain, num_rows, rng):
        number = num_rows - self.short
        batch = random_batch(SCHEMA, number, seed=int(rng.integers(2**31)) + self.seed)
        fields = {name: getattr(batch, name) for name in TensorBatch.__dataclass_fields__}
        inputs = TensorBatch(**fields | {"domain": torch.full((number,), domain)})
        labels = torch.from_numpy(rng.integers(0, 2, number).astype(np.float32))
        return LabelledRows(inputs, labels, np.array([number]))


def search(model, mode="cheap", *, rules=RULES, seed=3, **options):
    return MaskSearch(
        model=model, tuning=RandomRows(), real=RandomRows(9), rules=rules, mode=mode, seed=seed, **options
    )


def masked(model, density=0.7):
    """Give every domain a random mask; gives the masks."""
    ranker = aread_of(model)
    rng = np.random.default_rng(1)
    masks = {d: random_mask(ranker.shape, density, rng) for d in EVERY}
    ranker.set_masks(masks)
    return masks


@pytest.mark.parametrize("name", AREADS)
def test_stacked_heads_are_those_of_the_model_with_the_mask(name):
    model = trained_model(name, SCHEMA)
    ranker = aread_of(model)
    rng = np.random.default_rng(0)
    masks = [[random_mask(ranker.shape, q, rng) for q in (0.3, 0.6, 1.0)] for _ in EVERY]
    bits = torch.from_numpy(np.array([[mask.bits for mask in own] for own in masks]))
    rows = draw_rows(RandomRows(), EVERY, 5, key=(1,), device=torch.device("cpu"))
    with undisturbed(model), torch.no_grad():
        stack = CandidateStack(ranker, torch.tensor(list(EVERY)), 3)
        reading = cached(model, ranker, rows)
        logits, log_weights = stack.heads(bits, reading)
        gates = stack.gates(bits)
        for z in range(3):
            ranker.set_masks({d: masks[d][z] for d in EVERY})
            heads = model(rows.inputs).heads

            torch.testing.assert_close(logits[:, z].mT.reshape(15, -1), heads.logits, atol=1e-5, rtol=1e-5)
            weights = heads.weights.reshape(3, 5, -1)[:, 0]
            torch.testing.assert_close(log_weights[:, z].exp(), weights)
            for found, expected in zip(gates, ranker.own_gates.gates(), strict=True):
                torch.testing.assert_close(found[:, z], expected[:3])


def test_stacked_adam_is_adam():
    torch.manual_seed(0)
    start = torch.randn(2, 3, 4)
    targets = torch.randn(2, 3, 4)
    mine = start.clone().requires_grad_()
    other = torch.nn.Parameter(start.clone())
    stacked, reference = (
        StackedAdam({"a": mine}, lr=0.05),
        torch.optim.Adam([other], lr=0.05, betas=(0.9, 0.99)),
    )
    for _ in range(7):
        stacked.step({"a": (mine.detach() - targets) ** 3})
        reference.zero_grad()
        other.grad = (other.detach() - targets) ** 3
        reference.step()

    torch.testing.assert_close(mine.detach(), other.detach(), atol=1e-6, rtol=1e-6)


def test_stacked_adam_leaves_what_has_no_gradient():
    value = torch.ones(2, requires_grad=True)

    StackedAdam({"a": value}, lr=0.1).step({"a": None})

    assert value.tolist() == [1.0, 1.0]


def test_head_losses_by_hand():
    # One domain, one candidate, heads at logit 0 and ln 3 on labels 1 and 0: ln 2; -ln .75 and -ln .25.
    logits = torch.tensor([[[[0.0, 0.0], [np.log(3.0)] * 2, [50.0, 50.0]]]], dtype=torch.float64)
    weights = torch.tensor([[[0.5, 0.5, 0.0]]], dtype=torch.float64)

    found = head_losses(logits, weights, torch.tensor([[1.0, 0.0]], dtype=torch.float64))

    expected = (np.log(2) + (-np.log(0.75) - np.log(0.25)) / 2) / 2
    assert found.item() == pytest.approx(expected)


@pytest.mark.parametrize("name", AREADS)
@pytest.mark.parametrize("first", [True, False])
def test_cheap_search_is_the_plain_one_with_a_frozen_base(name, first):
    model = trained_model(name, SCHEMA)
    ranker = aread_of(model)
    current = {} if first else masked(model)
    ranker.use_masks(wanted=not first)

    cheap = search(model)(1, SETTINGS, EVERY, current)
    plain = search(model, "plain", freeze_base=True)(1, SETTINGS, EVERY, current)

    np.testing.assert_array_equal(cheap.bits, plain.bits)
    np.testing.assert_allclose(cheap.scores, plain.scores, atol=1e-6)
    assert cheap.masks == plain.masks


@pytest.mark.parametrize("mode", ["cheap", "plain"])
@pytest.mark.parametrize("masks_count", [True, False])
def test_an_update_changes_nothing_of_the_model(mode, masks_count):
    model = trained_model("aread", SCHEMA).train()
    current = masked(model)
    aread_of(model).use_masks(wanted=masks_count)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    torch.manual_seed(5)
    generators = torch.get_rng_state().clone(), np.random.get_state()[1].copy(), random.getstate()

    search(model, mode)(2, SETTINGS, EVERY, current)

    for name, value in model.state_dict().items():
        assert torch.equal(before[name], value), name
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())
    assert torch.equal(generators[0], torch.get_rng_state())
    np.testing.assert_array_equal(generators[1], np.random.get_state()[1])
    assert generators[2] == random.getstate()


def test_chosen_masks_are_valid_new_and_have_the_lowest_score():
    model = trained_model("aread", SCHEMA)
    current = masked(model)

    found = search(model)(1, SETTINGS, EVERY, current)

    assert found.scores.shape == (SCHEMA.num_domains, SETTINGS.num_candidates)
    for row, domain in enumerate(EVERY):
        mask = found.masks[domain]
        assert mask.is_valid
        assert mask.density <= SETTINGS.target_density
        np.testing.assert_array_equal(mask.bits, found.bits[row, found.scores[row].argmin()])


def test_a_search_repeats_and_domains_do_not_depend_on_each_other():
    model = trained_model("aread", SCHEMA)
    current = masked(model)
    whole = search(model)(1, SETTINGS, EVERY, current)
    again = search(model)(1, SETTINGS, EVERY, current)
    alone = search(model)(1, SETTINGS, [1], current)
    other = search(model, seed=4)(1, SETTINGS, EVERY, current)

    np.testing.assert_array_equal(whole.scores, again.scores)
    assert whole.masks == again.masks
    np.testing.assert_allclose(whole.scores[1:2], alone.scores, atol=1e-6)
    assert whole.masks[1] == alone.masks[1]
    assert not np.array_equal(whole.scores, other.scores)


def test_candidates_of_a_domain_are_scored_on_the_same_rows():
    """Without tuning, scores are those of the model itself with each candidate's mask on one set of rows."""
    model = trained_model("aread", SCHEMA)
    ranker = aread_of(model)
    current = masked(model)
    still = replace(RULES, lr=1e-12)
    found = search(model, rules=still)(1, SETTINGS, EVERY, current)

    rows = draw_rows(RandomRows(9), EVERY, 16, key=(3, 1, 2), device=torch.device("cpu"))
    for z in range(SETTINGS.num_candidates):
        own = {d: type(current[d])(ranker.shape, found.bits[d, z]) for d in EVERY}
        ranker.set_masks(own)
        with torch.no_grad():
            p = torch.sigmoid(model(rows.inputs).logits.double()).reshape(len(EVERY), -1)
        y = rows.labels.double().reshape(len(EVERY), -1)
        expected = -(y * p.log() + (1 - y) * (1 - p).log()).mean(dim=1)

        np.testing.assert_allclose(found.scores[:, z], expected.numpy(), atol=1e-6)


def test_tuning_lowers_the_loss_on_its_own_rows():
    model = trained_model("aread", SCHEMA)
    rows = RandomRows()
    one = TuningRules(steps=20, rows=16, eval_batches=1)
    settings = UpdateSettings(sigma=0.1, active=0.6, num_candidates=2, target_density=1.0)
    same = _SameRows(rows)
    quick = MaskSearch(model=model, tuning=same, real=same, rules=one, mode="cheap", seed=0)
    still = MaskSearch(
        model=model, tuning=same, real=same, rules=replace(one, lr=1e-12), mode="cheap", seed=0
    )

    assert (quick(1, settings, EVERY, {}).scores < still(1, settings, EVERY, {}).scores).all()


class _SameRows(RandomRows):
    """Gives the same 16 rows again and again."""

    def __init__(self, rows):
        super().__init__()
        self._rows = rows

    def draw(self, domain, num_rows, rng):
        part = self._rows.draw(domain, 16, np.random.default_rng(domain))
        place = torch.arange(num_rows) % 16
        fields = {name: getattr(part.inputs, name)[place] for name in TensorBatch.__dataclass_fields__}
        return LabelledRows(TensorBatch(**fields), part.labels[place], np.array([num_rows]))


def test_models_without_masks_are_refused():
    model = trained_model("dcnv2", SCHEMA)

    with pytest.raises(MaskSearchError, match="ranker Dcnv2 has no masks; only aread has"):
        search(model)(1, SETTINGS, EVERY, {})
    with pytest.raises(MaskSearchError, match="ranker Dcnv2 has no masks; only aread has"):
        PlainTuner(model, rules=RULES)


def test_models_in_inference_form_are_refused():
    ranker = aread_of(fresh_model("aread", SCHEMA).eval()).for_inference()

    with pytest.raises(MaskSearchError, match="a ranker with a FrozenPyramid; a model in inference form"):
        own_pyramid(ranker)


def test_sources_that_give_too_few_rows_are_refused():
    with pytest.raises(MaskSearchError, match="RandomRows gave 7 rows of domain index 2; 8 were asked for"):
        draw_rows(RandomRows(short=1), [2], 8, key=(0,), device=torch.device("cpu"))


def test_where_masks_matter_the_whole_model_tuned_agrees():
    """Some heads shout noise: candidates differ by how many of them they read, whatever else is tuned."""
    model = trained_model("aread", SCHEMA)
    ranker = aread_of(model)
    with torch.no_grad():
        own_pyramid(ranker).head[::3] *= 60.0
    rules = replace(RULES, lr=1e-3, eval_batches=8)
    settings = replace(SETTINGS, num_candidates=6, sigma=0.6, target_density=1.0)
    current = masked(model, density=0.4)

    cheap = search(model, rules=rules)(1, settings, EVERY, current)
    plain = search(model, "plain", rules=rules)(1, settings, EVERY, current)

    for mine, other in zip(cheap.scores, plain.scores, strict=True):
        assert np.corrcoef(mine, other)[0, 1] > 0.95
        assert other[mine.argmin()] - other.min() < 0.1 * np.ptp(other)
