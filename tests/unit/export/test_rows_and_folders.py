"""Draws for parity and golden rows hold what breaks; unfinished runs are refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export.card import render_card
from export.errors import RunError
from export.run_folder import RunFolder
from service.contract.bundle import Bundle
from service.contract.layout import entity_layout
from service.contract.schema import UNKNOWN_ID, Entity
from tests.support.bundles import build_bundle
from tests.support.models import row_sampler
from tests.support.schemas import full_schema

SCHEMA = full_schema()


def history_lengths(user_ints: np.ndarray) -> np.ndarray:
    """Present events of each user."""
    slot = entity_layout(SCHEMA, Entity.USER).slot("history", "item")
    return (user_ints[:, slot.columns] != 0).sum(axis=1)


def test_golden_rows_hold_every_domain_unknown_ids_and_extreme_histories():
    """One call covers each domain given, an unknown user, unknown items, an empty and a full history."""
    rows = row_sampler(SCHEMA).golden([0, 1, 2, 3])

    layout = entity_layout(SCHEMA, Entity.USER)
    users = rows["user_ints"][:, layout.slot("user_id").start]
    items = rows["item_ints"][:, entity_layout(SCHEMA, Entity.ITEM).slot("item_id").start]
    assert set(rows["domain"].tolist()) == {0, 1, 2, 3}
    assert UNKNOWN_ID in users
    assert UNKNOWN_ID in items
    assert history_lengths(rows["user_ints"]).min() == 0
    assert history_lengths(rows["user_ints"]).max() == 5
    assert set(rows["request_index"].tolist()) == set(range(7))


def test_golden_rows_of_one_cluster_hold_its_domains_only():
    """A graph that serves two domains is checked on these."""
    rows = row_sampler(SCHEMA).golden([1, 2])

    assert set(rows["domain"].tolist()) == {1, 2}


def test_draws_are_the_same_for_the_same_seed_and_empty_for_no_rows():
    """Golden rows of one run are reproducible; a batch of 0 keeps its shapes and types."""
    first, second = (row_sampler(SCHEMA, seed=4).draw(domain=1, num_rows=9) for _ in range(2))
    empty = row_sampler(SCHEMA).draw(domain=1, num_rows=0)

    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert empty["item_ints"].shape == (0, first["item_ints"].shape[1])
    assert {name: a.dtype for name, a in empty.items()} == {name: a.dtype for name, a in first.items()}


@pytest.mark.parametrize("present", [[], ["config.yaml"], ["config.yaml", "metrics.json"]])
def test_an_unfinished_run_is_refused(tmp_path: Path, present: list[str]):
    """The message names the first file that is missing."""
    for name in present:
        (tmp_path / name).write_text("{}")
    missing = ["config.yaml", "metrics.json", "prepared"][len(present)]

    with pytest.raises(RunError, match=rf"{missing} is missing; is '.*' a finished `ctr-train run`\?"):
        RunFolder.open(tmp_path)


def test_the_card_shows_domains_graphs_and_provenance(tmp_path: Path):
    """Every domain has a line, every graph its form, and the data digest is there."""
    bundle: Bundle = build_bundle(tmp_path).bundle
    card = render_card(bundle.manifest)

    assert all(f"| {name} |" in card for name in bundle.manifest.domains)
    assert all(f"| {name} | {g.form} |" in card for name, g in bundle.manifest.graphs.items())
    assert bundle.manifest.provenance.data_digest in card
