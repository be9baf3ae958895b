"""The lookahead on real models: equal to the literal scheme, to the worked example, and without a trace."""

from __future__ import annotations

import copy
import hashlib
import random

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.lookahead import PLAN, ROWS, labelled, losses, make_model
from training.clustering.affinity import (
    LookaheadGram,
    LookaheadLosses,
    affinities,
)
from training.clustering.errors import MatrixError
from training.clustering.lookahead import LookaheadRows, measure
from training.clustering.lookahead_cost import LookaheadMode
from training.clustering.lookahead_first_order import table_gram
from training.clustering.lookahead_model import LabelledRows, Serving
from training.clustering.lookahead_step import TableRows, adaptive_preconditioner, frozen_rows
from training.engine.optim import RowwiseAdagrad
from training.models.base import CtrModel, TensorBatch

CLUSTER_MODELS = ("mmoe_clusters", "ple_clusters", "star_clusters", "pepnet_clusters", "mmoe_domain_gate")
TABLES = ("after_single", "after_companions", "after_others", "after_treatments")


def assert_same_losses(one: LookaheadLosses, other: LookaheadLosses, tolerance: float) -> None:
    for name in ("base", *TABLES):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=tolerance, err_msg=name)


@pytest.mark.parametrize("serving", ["own", "mean"])
@pytest.mark.parametrize("name", CLUSTER_MODELS)
def test_exact_equals_a_model_copy_per_set(name: str, serving: Serving):
    """Gradient reuse, shifted inputs and vmap give what copying, stepping and evaluating each set gives."""
    model = make_model(name)
    exact, literal = losses(model, "exact", serving), losses(model, "literal", serving)

    assert_same_losses(exact, literal, 1e-9)
    assert np.abs(exact.after_single / exact.base - 1).max() > 1e-2  # the steps do move the losses


def test_exact_equals_literal_in_single_precision():
    """float32, as in training: 1e-5 relative."""
    model = make_model().float()
    rows = LookaheadRows(*(single_precision(r) for r in (ROWS.train, ROWS.evaluation)))
    one, other = (
        measure(model, rows, PLAN, serving="own", step_size=0.3, interval_rows=1, mode=mode).delivered
        for mode in ("exact", "literal")
    )
    assert isinstance(one, LookaheadLosses)
    assert isinstance(other, LookaheadLosses)
    assert_same_losses(one, other, 1e-5)


def single_precision(rows: LabelledRows) -> LabelledRows:
    values = {k: v.float() if v.is_floating_point() else v for k, v in vars(rows.inputs).items()}
    return LabelledRows(TensorBatch(**values), rows.labels.float(), rows.sizes)


@pytest.mark.parametrize("chunk_models", [1, 3, 100])
def test_chunks_do_not_change_the_result(chunk_models: int):
    """Any number of models side by side gives the same losses."""
    model = make_model()
    assert_same_losses(losses(model, "exact", chunk_models=chunk_models), losses(model, "exact"), 1e-12)


def test_small_blocks_of_rows_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch):
    """One domain per block, and few rows per call, give the same losses."""
    from training.clustering import lookahead

    whole = losses(make_model(), "exact")
    inner = lookahead.exact_losses
    monkeypatch.setattr(
        lookahead, "exact_losses", lambda *a, **k: inner(*a, **k, chunk_rows=2, max_numbers=1)
    )

    assert_same_losses(losses(make_model(), "exact"), whole, 1e-12)


def trained_optimisers(model: CtrModel, *, tables: str) -> list[torch.optim.Optimizer]:
    """Optimisers with state, after two steps."""
    table_parameters = [p for group in model.tables() for p in group.parameters]
    kind = {"sparse_adam": torch.optim.SparseAdam, "rowwise_adagrad": RowwiseAdagrad}[tables]
    made = [torch.optim.AdamW(model.dense_parameters(), lr=1e-3), kind(table_parameters, lr=1e-3)]
    for seed in range(2):
        for optimiser in made:
            optimiser.zero_grad()
        labelled_rows = labelled((4, 4, 4, 4, 4), seed=seed)
        out = model(labelled_rows.inputs)
        torch.nn.functional.binary_cross_entropy_with_logits(out.logits, labelled_rows.labels).backward()
        for optimiser in made:
            optimiser.step()
    return made


@pytest.mark.parametrize("tables", ["sparse_adam", "rowwise_adagrad"])
def test_exact_equals_literal_with_a_frozen_preconditioner(tables: str):
    """P read from the optimisers' second moments, the same in both modes, and not 1."""
    model = make_model()
    P = adaptive_preconditioner(model, trained_optimisers(model, tables=tables))
    exact = losses(model, "exact", step_size=1e-3, preconditioner=P)

    assert_same_losses(exact, losses(model, "literal", step_size=1e-3, preconditioner=P), 1e-9)
    assert np.abs(exact.after_single - losses(model, "exact", step_size=1e-3).after_single).max() > 1e-4


def test_the_preconditioner_is_adams():
    """P = 1 / (sqrt(v / (1 - beta2^step)) + eps) by hand; 0 where training has seen no gradient."""
    model = make_model()
    dense, sparse = trained_optimisers(model, tables="sparse_adam")
    P = adaptive_preconditioner(model, [dense, sparse])
    name = "ranker.experts.first.row.weight"
    parameter = dict(model.named_parameters())[name]
    expected = 1 / ((dense.state[parameter]["exp_avg_sq"] / (1 - 0.999**2)).sqrt() + 1e-8)
    table_name, table = next((n, p) for n, p in model.named_parameters() if n.endswith("table.weight"))
    unseen = int((sparse.state[table]["exp_avg_sq"].sum(dim=1) == 0).nonzero()[0])
    untouched = P.apply_table(
        table_name, TableRows(torch.tensor([unseen]), table.detach()[unseen : unseen + 1])
    )

    torch.testing.assert_close(P.dense_factor(name, parameter), expected)
    assert not untouched.values.any()


def test_an_optimiser_without_second_moments_is_refused():
    """Momentum SGD has state, but no second moment."""
    model = make_model()
    optimiser = torch.optim.SGD(model.dense_parameters(), lr=0.1, momentum=0.9)
    model(labelled((4, 4, 4, 4, 4), seed=0).inputs).logits.sum().backward()
    optimiser.step()
    with pytest.raises(MatrixError, match="SGD keeps no second moment"):
        adaptive_preconditioner(model, [optimiser])


def test_frozen_encoders_are_not_perturbed():
    """Freezing encoders above a size equals the literal scheme with the same rows left alone."""
    model = make_model()
    exact = losses(model, "exact", frozen_above=20)
    rows = [b - a for spans in frozen_rows(model, 20).ranges.values() for a, b in spans]

    assert rows
    assert min(rows) > 20
    assert_same_losses(exact, losses(model, "literal", frozen_above=20), 1e-9)
    assert np.abs(exact.after_single - losses(model, "exact").after_single).max() > 1e-4


@pytest.mark.parametrize("name", CLUSTER_MODELS)
def test_first_order_is_the_derivative_of_exact(name: str):
    """Step size times g_u . g'_v is the fall of L_v at small eta, tables included."""
    model, eta = make_model(name), 1e-5
    exact = losses(model, "exact", step_size=eta)
    gram = gram_of(model, eta)

    np.testing.assert_allclose(gram.base, exact.base, rtol=1e-12)
    np.testing.assert_allclose(eta * gram.gram, exact.base - exact.after_single, rtol=1e-2, atol=1e-8)


def gram_of(model: CtrModel, step_size: float, **options) -> LookaheadGram:
    out = measure(
        model, ROWS, PLAN, serving="own", step_size=step_size, interval_rows=1, mode="first_order", **options
    ).delivered
    assert isinstance(out, LookaheadGram)
    return out


def test_first_order_follows_exact_gains_at_a_real_step():
    """Correlation of MI and MT at least 0.95."""
    model, eta = make_model(), 0.02
    one = affinities(losses(model, "exact", step_size=eta), PLAN)
    other = affinities(gram_of(model, eta), PLAN)

    assert np.corrcoef(one.mi.ravel(), other.mi.ravel())[0, 1] > 0.95
    assert np.corrcoef(one.mt.ravel(), other.mt.ravel())[0, 1] > 0.95


def test_first_order_uses_the_preconditioner_and_frozen_rows():
    """The derivative statement holds for P and with frozen encoders too."""
    model, eta = make_model(), 1e-7
    P = adaptive_preconditioner(model, trained_optimisers(model, tables="sparse_adam"))
    exact = losses(model, "exact", step_size=eta, preconditioner=P, frozen_above=20)
    gram = gram_of(model, eta, preconditioner=P, frozen_above=20)

    np.testing.assert_allclose(eta * gram.gram, exact.base - exact.after_single, rtol=1e-2, atol=1e-9)


def test_first_order_in_blocks_gives_the_same(monkeypatch: pytest.MonkeyPatch):
    """Two domains' gradients held at a time, and few table rows."""
    from training.clustering import lookahead, lookahead_first_order

    whole = gram_of(make_model(), 1.0)
    room = 2 * sum(p.numel() for p in make_model().dense_parameters())
    inner = lookahead.first_order_gram
    monkeypatch.setattr(lookahead_first_order, "EVAL_GROUP", 2)
    monkeypatch.setattr(lookahead, "first_order_gram", lambda *a, **k: inner(*a, **k, max_numbers=room))

    np.testing.assert_allclose(gram_of(make_model(), 1.0).gram, whole.gram, rtol=1e-10, atol=1e-14)


def test_table_products_equal_dense_ones():
    """Sparse rows against the same rows made dense; None and domains without common rows give 0."""
    generator = np.random.default_rng(0)

    def rows(ids: list[int]) -> TableRows:
        return TableRows(torch.tensor(ids), torch.from_numpy(generator.normal(size=(len(ids), 3))))

    left = [rows([0, 2, 7]), None, rows([1, 2, 3, 9]), rows([4])]
    right = [rows([2, 9]), rows([5, 6]), rows([0, 1, 7]), None, rows([2])]

    def dense(part: TableRows | None) -> Tensor:
        full = torch.zeros(10, 3, dtype=torch.float64)
        if part is not None:
            full[part.rows] = part.values
        return full.flatten()

    expected = torch.stack([dense(p) for p in left]) @ torch.stack([dense(p) for p in right]).T
    for max_numbers in (1, 1 << 20):
        np.testing.assert_allclose(
            table_gram(left, right, max_numbers=max_numbers), expected.numpy(), atol=1e-14
        )
    assert not table_gram([None], right, max_numbers=10).any()
    assert not table_gram([rows([1])], [rows([2])], max_numbers=10).any()


def digest(model: CtrModel, optimisers: list[torch.optim.Optimizer]) -> str:
    """Everything that must not change, as one hash."""
    made = hashlib.sha256()

    def take(value) -> None:
        if isinstance(value, Tensor):
            value = value.coalesce() if value.is_sparse else value
            parts = (value.indices(), value.values()) if value.is_sparse else (value,)
            for part in parts:
                made.update(part.detach().numpy().tobytes())
        elif isinstance(value, dict):
            for key, inner in value.items():
                made.update(str(key).encode())
                take(inner)
        elif isinstance(value, list | tuple):
            for inner in value:
                take(inner)
        else:
            made.update(repr(value).encode())

    take(dict(model.named_parameters()))
    take(dict(model.named_buffers()))
    take([p.grad for p in model.parameters()])
    take([m.training for m in model.modules()])
    take([p.requires_grad for p in model.parameters()])
    take([o.state_dict() for o in optimisers])
    take(torch.get_rng_state())
    take(np.random.get_state(legacy=True)[1].tolist())
    take(random.getstate())
    return made.hexdigest()


@pytest.mark.parametrize("gradients", ["none", "kept"])
@pytest.mark.parametrize("serving", ["own", "mean"])
@pytest.mark.parametrize("mode", ["exact", "first_order", "literal"])
@pytest.mark.parametrize("name", ["mmoe_clusters", "star_clusters"])
def test_a_lookahead_leaves_no_trace(name: str, mode: LookaheadMode, serving: Serving, gradients: str):
    """Parameters, buffers, gradients, modes, optimiser and random states keep their bits."""
    model = make_model(name).train()
    model.inputs.item.eval()  # modes that differ between modules stay different
    optimisers = trained_optimisers(model, tables="sparse_adam")
    if gradients == "none":
        model.zero_grad(set_to_none=True)
    before = digest(model, optimisers)
    P = adaptive_preconditioner(model, optimisers)
    measure(model, ROWS, PLAN, serving=serving, step_size=1e-3, interval_rows=1, mode=mode, preconditioner=P)

    assert digest(model, optimisers) == before
    assert all((p.grad is None) == (gradients == "none") for p in model.dense_parameters())


@pytest.mark.parametrize("mode", ["exact", "first_order"])
def test_a_failed_lookahead_leaves_no_trace(mode: LookaheadMode):
    """An id out of range in the evaluation rows raises, and still everything is put back."""
    model = make_model().train()
    broken = copy.deepcopy(ROWS.evaluation)
    broken.inputs.item_ints[-1] = 10**6
    before = digest(model, [])
    with pytest.raises(IndexError):
        measure(
            model,
            LookaheadRows(ROWS.train, broken),
            PLAN,
            serving="own",
            step_size=0.1,
            interval_rows=1,
            mode=mode,
        )

    assert digest(model, []) == before


def test_a_parameter_that_does_not_train_stays_out():
    """Frozen parameters get no step, in either mode."""
    model = make_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("ranker.towers") or name.endswith("table.weight"))

    assert_same_losses(losses(model, "exact"), losses(model, "literal"), 1e-9)
