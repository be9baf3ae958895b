"""The serving form of HIER against the head's own formula, and schemas it does not go with."""

import numpy as np
import pytest
import torch

from service.contract.errors import SchemaError
from service.contract.schema import FeatureSchema
from training.hier.factors import Factors
from training.hier.head import head_inputs
from training.models.base import Sides
from training.models.build import build_model
from training.models.config import HierConfig
from training.models.hier import HEAD_COLUMNS, HierRanker, zero_shot_head

WIDTH, EXEMPLARS, DOMAINS = 4, 3, 2


@pytest.fixture
def ranker():
    return HierRanker(num_domains=DOMAINS, width=WIDTH, num_exemplars=EXEMPLARS)


def test_a_head_folded_into_users_is_the_head(ranker):
    generator = torch.Generator().manual_seed(0)
    heads = torch.randn(DOMAINS + 1, len(HEAD_COLUMNS) + WIDTH, generator=generator)
    users = torch.randn(3, WIDTH + EXEMPLARS, generator=generator)
    items = torch.randn(5, WIDTH + EXEMPLARS, generator=generator)
    here = torch.rand(5, 3, generator=generator)  # log popularity, rates of item and user in the domain
    item_elsewhere = torch.rand(5, 1, generator=generator)
    user_elsewhere = torch.rand(3, 1, generator=generator)
    ranker.get_buffer("heads").copy_(heads)
    domain, index = torch.tensor([1, 0, DOMAINS]), torch.tensor([0, 0, 2, 1, 2])
    request = torch.cat([users, user_elsewhere], dim=1)
    logits = ranker(Sides(request, torch.cat([items, here, item_elsewhere], dim=1), index, domain))
    factors = Factors(users.numpy(), items.numpy(), users.mean(dim=0).numpy(), WIDTH)
    counted = torch.cat(
        [here[:, :1], item_elsewhere, user_elsewhere[index], here[:, 1:2], here[:, 2:]], dim=1
    )
    inputs = head_inputs(factors, index.numpy(), np.arange(5), counted.double().numpy())
    expected = (inputs * heads[domain[index]].double().numpy()).sum(axis=1)
    np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_a_domain_without_a_head_has_the_plain_inner_product(ranker):
    users = torch.tensor([[1.0, 2, 3, 4, 5, 6, 7, 9]])
    items = torch.tensor([[1.0, 1, 1, 1, 1, 1, 1, 9, 9, 9, 9]])
    logits = ranker(Sides(users, items, None, torch.tensor([0])))
    assert logits.tolist() == [28.0]  # rates and popularity of 9 do not count
    assert zero_shot_head(2) == [1.0, *[0.0] * 10]


def test_other_schemas_and_towers_are_refused():
    schema = FeatureSchema(name="s", domains=("d",), encoders={}, features=())
    with pytest.raises(SchemaError, match="model of type hier needs the feature 'user_entities'"):
        build_model(HierConfig(), schema)
    with pytest.raises(SchemaError, match="model hier has no towers, but a tower_of_domain is given"):
        build_model(HierConfig(), schema, [0, 0])
