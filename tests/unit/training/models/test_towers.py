"""Towers: which one serves a domain, moving domains between them, all of them at once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from service.contract.errors import SchemaError
from tests.support.models import MODELS, fresh_model, random_batch, trained_model
from tests.support.schemas import full_schema
from training.models.base import CtrModel, TensorBatch
from training.models.build import build_model
from training.models.config import DeepFmConfig, MmoeConfig
from training.models.towers import TowerRanker

SCHEMA = full_schema()
NUM_DOMAINS = 3
TOWER_MODELS = [name for name, config in MODELS.items() if hasattr(config, "towers")]
CLUSTERED = [name for name in TOWER_MODELS if name.endswith("clusters")]


def towers_of(model: CtrModel) -> TowerRanker:
    """The ranker, known to have towers."""
    assert isinstance(model.ranker, TowerRanker)
    return model.ranker


def all_logits(model: CtrModel, batch: TensorBatch) -> torch.Tensor:
    """(B, K) in evaluation mode."""
    with torch.no_grad():
        return towers_of(model).forward_all(model.sides(batch)[0])


def test_every_method_with_towers_has_clusters_under_test():
    """MMoE, PLE, STAR and PEPNet."""
    assert {MODELS[name].type for name in CLUSTERED} == {"mmoe", "ple", "star", "pepnet"}


@pytest.mark.parametrize("name", TOWER_MODELS)
@pytest.mark.parametrize("num_rows", [0, 1, 13])
def test_forward_is_the_own_tower_out_of_all(name: str, num_rows: int):
    """Row i of forward equals entry (i, tower of its domain) of forward_all."""
    model = trained_model(name, SCHEMA)
    batch = random_batch(SCHEMA, num_rows, seed=1)
    every = all_logits(model, batch)
    table = towers_of(model).tower_of_domain.tolist()

    logits = model(batch).logits

    assert every.shape == (num_rows, max(table) + 1)
    expected = [every[i, table[d]].item() for i, d in enumerate(batch.domain.tolist())]
    assert logits.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", CLUSTERED)
def test_a_moved_domain_gets_the_output_of_its_new_tower(name: str):
    """set_towers changes which column is gathered and nothing else."""
    model = trained_model(name, SCHEMA)
    batch = replace(random_batch(SCHEMA, 7, seed=2), domain=torch.full((7,), 2))
    before = all_logits(model, batch)
    with torch.no_grad():
        served_by_0 = model(batch).logits
    towers_of(model).set_towers([0, 1, 1, 0])
    with torch.no_grad():
        served_by_1 = model(batch).logits

    assert torch.equal(served_by_0, before[:, 0])
    assert torch.equal(served_by_1, before[:, 1])
    assert torch.equal(all_logits(model, batch), before)
    assert not torch.allclose(served_by_0, served_by_1)


@pytest.mark.parametrize("name", CLUSTERED)
def test_only_the_own_tower_learns_from_a_row(name: str):
    """Rows of tower 0 leave every parameter that is stacked by tower without gradient in tower 1."""
    model = trained_model(name, SCHEMA).train()
    ranker = towers_of(model)
    batch = replace(random_batch(SCHEMA, 8, seed=3), domain=torch.tensor([0, 2] * 4))
    model.inputs.domain_unknown_rate = 0.0
    model(batch).logits.sum().backward()
    prefixes = ("towers.", "out.", "layers.0.tower_", "layers.1.tower_", "tower_gates.0.out.")
    stacked = {n: p for n, p in ranker.named_parameters() if n.startswith(prefixes)}

    assert stacked
    for parameter in stacked.values():
        assert parameter.grad[0].abs().sum() > 0
        assert parameter.grad[1].abs().sum() == 0


@pytest.mark.parametrize("name", CLUSTERED)
def test_all_towers_learn_from_a_row_in_warm_up(name: str):
    """The mean of the towers' probabilities sends gradients to each tower."""
    model = trained_model(name, SCHEMA).train()
    ranker = towers_of(model)
    sides, _ = model.sides(random_batch(SCHEMA, 8, seed=3))
    torch.sigmoid(ranker.forward_all(sides)).mean(dim=1).sum().backward()
    prefixes = ("out.", "layers.0.tower_")

    stacked = [p for n, p in ranker.named_parameters() if n.startswith(prefixes)]
    assert stacked
    assert all(p.grad[k].abs().sum() > 0 for p in stacked for k in range(2))


def test_the_table_is_stored_with_the_weights():
    """A model loaded from another's state serves the domains as that one did, after a move too."""
    model = trained_model("ple_clusters", SCHEMA)
    towers_of(model).set_towers([1, 1, 0, 1])
    other = fresh_model("ple_clusters", SCHEMA).eval()
    other.load_state_dict(model.state_dict())
    batch = random_batch(SCHEMA, 6, seed=4)

    assert towers_of(other).tower_of_domain.tolist() == [1, 1, 0, 1]
    assert torch.equal(other(batch).logits, model(batch).logits)


def test_a_hidden_domain_is_served_by_the_tower_of_unknown_domains():
    """With every domain hidden in training, only the last tower of `per_domain` learns."""
    model = trained_model("mmoe_per_domain", SCHEMA).train()
    model.inputs.domain_unknown_rate = 0.999999
    model(random_batch(SCHEMA, 16, seed=5)).logits.sum().backward()
    learnt = towers_of(model).out.weight.grad.abs().sum(dim=(1, 2))

    assert (learnt > 0).tolist() == [False, False, False, True]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (None, "needs a tower_of_domain"),
        ([0, 1, 0], r"has 3 entries; 3 domains and the unknown one need 4"),
        ([0, 1, -1, 0], r"names towers \[-1\]; allowed are 0 to 1"),
        ([-2, -1, -1, -2], r"names towers \[-2, -1\]; allowed are 0 to 0"),
        ([1, 3, 1, 1], r"gives towers \[0, 2\] no domain"),
    ],
)
def test_a_bad_table_is_refused(table: list[int] | None, message: str):
    """Missing, too short, out of range, with gaps."""
    with pytest.raises(SchemaError, match=message):
        build_model(MmoeConfig(towers="clusters"), SCHEMA, table)


def test_a_table_that_nobody_reads_is_refused():
    """Towers fixed by the config, or no towers at all."""
    with pytest.raises(SchemaError, match=r"model.towers is per_domain: .* clusters only"):
        build_model(MmoeConfig(towers="per_domain"), SCHEMA, [0, 0, 0, 0])
    with pytest.raises(SchemaError, match="model deepfm has no towers"):
        build_model(DeepFmConfig(), SCHEMA, [0, 0, 0, 0])


def test_domains_move_between_existing_towers_only():
    """K is fixed; a tower may be left empty."""
    ranker = towers_of(fresh_model("star_clusters", SCHEMA))
    with pytest.raises(SchemaError, match=r"names towers \[2\]; allowed are 0 to 1"):
        ranker.set_towers([0, 1, 2, 0])
    with pytest.raises(SchemaError, match="has 5 entries"):
        ranker.set_towers([0, 1, 0, 0, 0])

    ranker.set_towers([1, 1, 1, 1])

    assert ranker.tower_of_domain.tolist() == [1, 1, 1, 1]
