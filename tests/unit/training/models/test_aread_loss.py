"""AREAD's loss over heads, masks beside weights, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional

from service.contract.errors import SchemaError
from tests.support.aread import SCHEMA, TOY, aread, toy
from tests.support.models import INPUTS, random_batch, trained_model
from training.engine.loss import training_loss
from training.models.aread import Aread
from training.models.base import Heads, ModelOutput
from training.models.build import build_model
from training.models.config import AreadConfig, MmoeBaseConfig, PleBaseConfig
from training.models.fold import fold_batch_norm
from training.models.layers import ExpertStack
from training.models.mask import MaskError, PyramidMask, random_mask
from training.models.pyramid import FrozenPyramid, mean_logit


def test_heads_that_are_left_out_get_no_gradient_and_no_nan():
    """A weight of 0 is a log weight of -inf: finite loss, gradient 0."""
    z = torch.tensor([[0.3, 7.0]], requires_grad=True)
    mean_logit(z, torch.tensor([[1.0, 0.0]]).log()).sum().backward()

    assert z.grad is not None
    assert z.grad.tolist() == [[pytest.approx(1.0), 0.0]]


def test_the_loss_is_each_heads_own_and_in_warm_up_that_of_the_mean():
    """Mean of BCE(p_j) over active heads; BCE(mean p_j) while masks do not count; row weights count."""
    model = trained_model("aread", SCHEMA).train()
    ranker = model.ranker
    assert isinstance(ranker, Aread)
    ranker.set_masks({0: random_mask(ranker.shape, 0.3, np.random.default_rng(0))})
    batch = random_batch(SCHEMA, 6, seed=1)
    y, w = torch.tensor([1.0, 0, 0, 1, 0, 1]), torch.tensor([1.0, 2, 0, 1, 3, 1])

    out = model(batch)

    assert out.heads is not None
    torch.testing.assert_close(out.heads.weights.sum(dim=1), torch.ones(6))
    rows = []
    for n in range(6):
        active = out.heads.weights[n] > 0
        z = out.heads.logits[n][active]
        rows.append(functional.binary_cross_entropy(z.sigmoid(), y[n].expand_as(z)))
    expected = (torch.stack(rows) * w).sum() / w.sum()
    torch.testing.assert_close(training_loss(out, y, w), expected, atol=1e-6, rtol=1e-5)

    ranker.use_masks(wanted=False)
    out = model.eval()(batch)
    assert out.heads is None
    with torch.no_grad():
        sides, _ = model.sides(batch)
        rows_of = ranker.own_gates(sides.domain, None)
        p = ranker.head_logits(ranker.read(sides), rows_of).sigmoid().mean(dim=1)
    expected = functional.binary_cross_entropy(p, y, weight=w, reduction="sum") / w.sum()
    torch.testing.assert_close(training_loss(out, y, w), expected, atol=1e-6, rtol=1e-5)


def test_a_loss_over_heads_by_hand():
    """Two heads of one row, weights 1/4 and 3/4, logits 0: log 2 whatever the split."""
    heads = Heads(torch.zeros(2, 2), torch.tensor([[0.25, 0.75], [1.0, 0.0]]))
    out = ModelOutput(torch.full((2,), 9.0), torch.zeros(()), heads)

    assert training_loss(out, torch.tensor([1.0, 0.0]), torch.ones(2)).item() == pytest.approx(np.log(2))


def test_masks_are_kept_with_the_weights():
    """A state dict carries masks and whether they count."""
    model = trained_model("aread", SCHEMA)
    ranker = model.ranker
    assert isinstance(ranker, Aread)
    mask = random_mask(ranker.shape, 0.4, np.random.default_rng(3))
    ranker.set_masks({1: mask})
    other = trained_model("aread", SCHEMA, seed=5)
    assert isinstance(other.ranker, Aread)
    other.ranker.use_masks(wanted=False)

    other.load_state_dict(model.state_dict())

    assert other.ranker.masks[1] == mask
    assert other.ranker.masks[0] == PyramidMask.full(ranker.shape)
    assert other.ranker.own_gates.masks_count


def test_the_experts_that_a_mask_keeps_have_names():
    """One path through the base's second expert; without a mask of its own a domain uses all."""
    model = aread("aread_base_masks", masked=False)
    bits = np.zeros(model.shape.num_edges, bool)
    for array, (i, j) in zip(model.shape.split(bits)[1:-1], [(1, 0), (0, 2), (2, 3), (3, 4)], strict=True):
        array[i, j] = True
    model.set_masks({2: PyramidMask(model.shape, bits).validate()})

    assert model.experts_kept()[2] == ("base.1", "0.0", "1.2", "2.3", "3.4")
    assert len(model.experts_kept()[0]) == 4 + 2 + 3 + 4 + 5
    assert trained_model("mmoe", SCHEMA).ranker.experts_kept() is None


def test_masks_that_do_not_fit_are_refused():
    """Wrong domain, wrong pyramid, dead ends: each error says what is allowed; nothing is changed."""
    model = aread(masked=False)
    full = PyramidMask.full(model.shape)
    with pytest.raises(MaskError, match="domain index 3; domains 0 to 2 have masks"):
        model.set_masks({3: full})
    with pytest.raises(MaskError, match=r"levels \(2, 3, 2\) for domain index 0; the model has \(3, 6, 12\)"):
        model.set_masks({0: PyramidMask.full(TOY)})
    empty = PyramidMask(model.shape, np.zeros(model.shape.num_edges, bool))
    with pytest.raises(MaskError, match="domain index 1 has dead ends or no output"):
        model.set_masks({0: random_mask(model.shape, 0.2, np.random.default_rng(0)), 1: empty})
    assert model.masks[0] == full


def test_parts_that_cannot_be_frozen_are_refused():
    """Folding and joining name the part they do not know."""
    stack = ExpertStack(nn.Linear(2, 2), (2,), num_experts=1, dropout=0.0, batch_norm=True)
    with pytest.raises(TypeError, match="cannot fold batch normalisation into Linear"):
        fold_batch_norm(stack)
    stack.activations[0].norm.running_mean = None
    with pytest.raises(TypeError, match="without running statistics"):
        fold_batch_norm(stack)
    pyramid, _ = toy()
    pyramid.levels[1].first = nn.Linear(1, 1)
    with pytest.raises(TypeError, match="start with Linear; expected StackedLinear"):
        pyramid.freeze()
    pyramid.levels[0] = nn.Linear(1, 1)
    with pytest.raises(TypeError, match="a level of Linear; expected ExpertStack"):
        FrozenPyramid(pyramid)


def test_configs_that_do_not_fit_are_refused():
    """Levels must agree; base masks need an MMoE base; clusters must be given exactly where wanted."""
    with pytest.raises(ValidationError, match="num_experts has 2 levels, expert_widths 3"):
        AreadConfig(num_experts=(2, 4))
    with pytest.raises(ValidationError, match="mask_base needs a base of type mmoe, got ple"):
        AreadConfig(base=PleBaseConfig(), mask_base=True)
    with pytest.raises(SchemaError, match=r"model\.group is cluster: build_model needs a tower_of_domain"):
        build_model(AreadConfig(inputs=INPUTS, group="cluster"), SCHEMA)
    with pytest.raises(SchemaError, match=r"model\.group is none: a tower_of_domain goes with cluster only"):
        build_model(AreadConfig(inputs=INPUTS), SCHEMA, [0, 0, 0, 0])
    with pytest.raises(SchemaError, match="tower_of_domain has 2 entries"):
        build_model(AreadConfig(inputs=INPUTS, group="cluster"), SCHEMA, [0, 0])


def test_the_default_pyramid_has_105_edges_and_its_published_sizes():
    """3 + 18 + 72 + 12 edges; level 1 is 32-32-16."""
    model = build_model(AreadConfig(inputs=INPUTS, base=MmoeBaseConfig()), SCHEMA).ranker
    assert isinstance(model, Aread)

    assert model.shape.num_edges == 105
    level = model.expert_pyramid.levels[1]
    assert [tuple(p.weight.shape) for p in (level.first, *level.linears)] == [(6, 32, 32), (6, 32, 16)]
