"""Bundles of a routing file: each loaded once, let go when nothing names it, refused by name."""

from dataclasses import replace

import pytest

from service.bundles.pool import BundlePool
from service.contract.store import ModelStore
from service.errors import GoldenError, RoutingError


@pytest.fixture
def pool(small, small_loaded_with_check):
    """A pool that counts what it loads; every id but the default's stands for a copy of the small bundle."""
    loads = []

    def load(bundle_id):
        loads.append(bundle_id)
        if bundle_id.startswith("bad"):
            raise GoldenError("golden row 2 differs")
        return replace(small_loaded_with_check, alias="loaded")

    made = BundlePool(ModelStore(small.store), load)
    return made, loads


def test_references_to_one_bundle_share_it(pool, small_loaded_with_check):
    made, loads = pool
    opened = made.open({"a": "x" * 64, "b": "x" * 64}, small_loaded_with_check)
    assert loads == ["x" * 64]
    assert [opened[name].alias for name in ("a", "b")] == ["a", "b"]
    assert opened["a"].predictors is opened["b"].predictors


def test_the_default_bundle_is_not_loaded_again(pool, small_loaded_with_check):
    made, loads = pool
    default = small_loaded_with_check
    opened = made.open({"same": default.bundle_id}, default)
    assert (loads, opened["same"].predictors) == ([], default.predictors)


def test_only_what_is_kept_needs_no_loading(pool, small_loaded_with_check):
    made, loads = pool
    both = {"a": "x" * 64, "b": "y" * 64}
    made.open(both, small_loaded_with_check)
    made.keep({"a": "x" * 64})
    made.open(both, small_loaded_with_check)
    assert loads == ["x" * 64, "y" * 64, "y" * 64]


def test_a_bundle_that_does_not_load_is_named(pool, small_loaded_with_check):
    made, _ = pool
    with pytest.raises(RoutingError, match=r"^bundle 'a' \(bad000000000\): golden row 2 differs$"):
        made.open({"a": "bad" + "0" * 61}, small_loaded_with_check)


def test_a_reference_that_leads_nowhere_is_named(pool, small):
    made, _ = pool
    assert made.resolve(["stable"]) == {"stable": small.bundle.bundle_id}
    with pytest.raises(RoutingError, match="has no bundle 'nowhere'"):
        made.resolve(["stable", "nowhere"])
