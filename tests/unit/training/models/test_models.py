"""Every method: shapes, batch sizes, the two-sided form, sparse gradients, the fallback row."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from service.contract.errors import SchemaError
from tests.support.models import INPUTS, MODELS, random_batch, trained_model
from tests.support.schemas import full_schema
from training.models.base import Sides, TensorBatch
from training.models.build import build_model
from training.models.config import InputConfig, MmoeConfig, TableConfig
from training.models.layers import StackedLinear, TwoSidedLinear

SCHEMA = full_schema()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("num_rows", [0, 1, 17])
def test_one_logit_per_row_at_any_batch_size(name: str, num_rows: int):
    """In evaluation mode a batch of 0, 1 or many rows gives that many finite logits."""
    out = trained_model(name, SCHEMA)(random_batch(SCHEMA, num_rows, seed=1))

    assert out.logits.shape == (num_rows,)
    assert torch.isfinite(out.logits).all()


@pytest.mark.parametrize("name", MODELS)
def test_gathered_requests_score_like_repeated_ones(name: str):
    """R request rows plus an index give the logits of N rows that repeat the request."""
    model = trained_model(name, SCHEMA)
    batch = random_batch(SCHEMA, 12, seed=2)
    index = torch.tensor([0, 3, 3, 1, 2, 2, 2, 0, 1, 3, 3, 0])
    with torch.no_grad():
        request, _ = model.inputs.request_side(
            batch.user_ints[:4],
            batch.user_floats[:4],
            batch.context_ints[:4],
            batch.context_floats[:4],
            batch.domain[:4],
        )
        row, _ = model.inputs.row_side(batch.item_ints, batch.item_floats, batch.pairs)
        gathered = model.ranker(Sides(request, row, index, batch.domain[:4]))
        repeated = model.ranker(Sides(request[index], row, None, batch.domain[:4][index]))

    torch.testing.assert_close(gathered, repeated, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_row_does_not_see_its_neighbours(name: str):
    """A row scored alone equals the same row scored among others."""
    model = trained_model(name, SCHEMA)
    batch = random_batch(SCHEMA, 9, seed=3)
    alone = TensorBatch(**{field: value[4:5] for field, value in vars(batch).items()})

    with torch.no_grad():
        torch.testing.assert_close(model(alone).logits, model(batch).logits[4:5], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_tables_get_sparse_gradients_on_the_rows_of_the_batch_only(name: str):
    """Table gradients are sparse and every parameter is either in a table group or dense."""
    model = trained_model(name, SCHEMA).train()
    out = model(random_batch(SCHEMA, 8, seed=4))
    (out.logits.sum() + out.penalty).backward()

    tables = [p for group in model.tables() for p in group.parameters]
    assert all(p.grad is not None and p.grad.is_sparse for p in tables)
    assert len(tables) + len(model.dense_parameters()) == len(list(model.parameters()))


@pytest.mark.parametrize("name", MODELS)
def test_the_domain_matters_and_unknown_domains_score(name: str):
    """Changing only the domain changes the logit; index D is served by the fallback row."""
    model = trained_model(name, SCHEMA)
    batch = random_batch(SCHEMA, 1, seed=5)
    with torch.no_grad():
        logits = [model(replace(batch, domain=torch.tensor([d]))).logits.item() for d in range(4)]

    assert len({round(x, 6) for x in logits}) == 4


def test_two_sided_linear_is_one_linear_over_the_concatenation():
    """W_u u + W_i i + b equals [W_u W_i] [u; i] + b."""
    layer = TwoSidedLinear(3, 2, 4)
    request, row = torch.randn(5, 3), torch.randn(5, 2)
    weight = torch.cat([layer.request.weight, layer.row.weight], dim=1)

    expected = torch.cat([request, row], dim=1) @ weight.T + layer.request.bias

    torch.testing.assert_close(layer(Sides(request, row, None, torch.zeros(5, dtype=torch.int64))), expected)


def test_stacked_linear_is_the_same_in_training_and_inference():
    """The batched product and the expert-by-expert one agree."""
    layer = StackedLinear(3, 4, 2)
    x = torch.randn(6, 3, 4)

    torch.testing.assert_close(layer.train()(x), layer.eval()(x))


def test_l2_falls_on_touched_rows_only():
    """The penalty is l2 * sum of squares of the looked-up rows / batch size."""
    model = build_model(
        MmoeConfig(inputs=InputConfig(tables=(TableConfig(dim=2, l2=0.5),), domain_unknown_rate=0.0)), SCHEMA
    )
    with torch.no_grad():
        for group in model.tables():
            for p in group.parameters:
                p.fill_(1.0)
    batch = random_batch(SCHEMA, 4, seed=6)

    penalty = model.train()(batch).penalty.item()

    # ids per row: user 2 singles + 3 brands + 5 x 2 history, item 2 singles, context 1; width 2
    assert penalty == pytest.approx(0.5 * (2 + 3 + 10 + 2 + 1) * 2)


def test_unknown_names_in_the_config_are_refused():
    """Errors name what was asked for."""
    with pytest.raises(SchemaError, match=r"exclude names \['nope'\]"):
        build_model(MmoeConfig(inputs=InputConfig(exclude=("nope",))), SCHEMA)
    with pytest.raises(SchemaError, match=r"tables names encoders \['nope'\]"):
        build_model(MmoeConfig(inputs=InputConfig(tables=(TableConfig(encoders=("nope",)),))), SCHEMA)
    with pytest.raises(SchemaError, match=r"leaves encoders .* without a table"):
        build_model(MmoeConfig(inputs=InputConfig(tables=(TableConfig(encoders=("user_id",)),))), SCHEMA)


def test_excluded_features_do_not_move_the_score():
    """A model that excludes the dot pair ignores its column."""
    torch.manual_seed(0)
    model = build_model(
        MmoeConfig(inputs=INPUTS.model_copy(update={"exclude": ("taste_style",)})), SCHEMA
    ).eval()
    batch = random_batch(SCHEMA, 3, seed=7)
    moved = replace(batch, pairs=batch.pairs.clone().index_fill_(1, torch.tensor([4]), 99.0))

    with torch.no_grad():
        torch.testing.assert_close(model(moved).logits, model(batch).logits)
