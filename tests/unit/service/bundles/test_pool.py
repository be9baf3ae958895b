"""Open bundles: each loaded once, held by name, closed when free, bounded, refused by name."""

from dataclasses import replace

import pytest

from service.bundles.leases import Leases
from service.bundles.pool import BundlePool
from service.contract.store import ModelStore
from service.errors import BundleRefused, GoldenError, RoutingError

X, Y = "x" * 64, "y" * 64


@pytest.fixture
def pool(small, small_loaded_with_check):
    """A pool that counts what it loads and closes; every id stands for a copy of the small bundle."""
    loads, closed = [], []

    def load(bundle_id):
        loads.append(bundle_id)
        if bundle_id.startswith("bad"):
            raise GoldenError("golden row 2 differs")
        return replace(small_loaded_with_check, alias=bundle_id, leases=Leases())

    made = BundlePool(ModelStore(small.store), load, on_closed=lambda loaded: closed.append(loaded.alias))
    return made, loads, closed


def shown(made):
    return {bundle.bundle_id: (bundle.holders, bundle.leases) for bundle in made.shown()}


def test_references_to_one_bundle_share_it(pool):
    made, loads, _ = pool
    opened = made.open({"a": X, "b": X})
    assert loads == [X]
    assert [opened[name].alias for name in ("a", "b")] == ["a", "b"]
    assert opened["a"].predictors is opened["b"].predictors
    assert opened["a"].leases is opened["b"].leases


def test_a_bundle_that_is_there_is_not_loaded_again(pool, small_loaded_with_check):
    made, loads, _ = pool
    made.add(small_loaded_with_check)
    opened = made.open({"same": small_loaded_with_check.bundle_id})
    assert (loads, opened["same"].predictors) == ([], small_loaded_with_check.predictors)


def test_a_bundle_stays_while_anybody_holds_it(pool):
    made, loads, closed = pool
    made.open({"a": X, "b": Y})
    made.keep({"default": [X], "routing": [X, Y]})
    assert shown(made) == {X: (("default", "routing"), 0), Y: (("routing",), 0)}
    made.keep({"default": [Y]})
    assert closed == []
    made.keep({"routing": []})
    assert (closed, shown(made)) == ([X], {Y: (("default",), 0)})
    made.open({"a": X})
    assert loads == [X, Y, X]


def test_leases_keep_a_bundle_open_until_the_last_is_given_back(pool):
    made, _, closed = pool
    leases = made.open({"a": X})["a"].leases
    made.keep({"default": [X]})
    with leases:
        with leases:
            made.keep({"default": []})
            assert shown(made) == {X: ((), 2)}
        assert closed == []
    assert (closed, shown(made)) == ([X], {})


def test_a_bundle_that_is_wanted_again_while_it_drains_stays(pool):
    made, loads, closed = pool
    with made.open({"a": X})["a"].leases:
        made.settle()
        made.open({"a": X})
    assert closed == []
    made.keep({"default": [X]})
    assert (loads, closed, list(shown(made))) == ([X], [], [X])


def test_what_was_opened_in_vain_is_closed(pool):
    made, _, closed = pool
    with pytest.raises(BundleRefused, match=r"^bundle 'b' \(bad000000000\): golden row 2 differs$"):
        made.open({"a": X, "b": "bad" + "0" * 61})
    assert shown(made) == {}
    made.open({"a": X})
    made.settle()
    assert (closed, shown(made)) == ([X], {})


def test_a_reference_that_leads_nowhere_is_named(pool, small):
    made, _, _ = pool
    assert made.resolve(["stable"]) == {"stable": small.bundle.bundle_id}
    with pytest.raises(RoutingError, match="has no bundle 'nowhere'"):
        made.resolve(["stable", "nowhere"])


def test_a_bundle_above_the_bound_is_refused_with_value_and_limit(small, small_loaded_with_check):
    bundle_id = small.bundle.bundle_id
    folders = (small.bundle.path / "graphs", small.bundle.path / "features")
    size = sum(file.stat().st_size for folder in folders for file in folder.iterdir())

    def pool(max_bytes):
        return BundlePool(ModelStore(small.store), lambda _: small_loaded_with_check, max_bytes=max_bytes)

    made = pool(size)
    assert made.open({"stable": bundle_id})
    assert made.num_bytes == size
    with pytest.raises(BundleRefused, match=f"needs about {size} bytes; with the 0 of 0 open .*{size - 1}"):
        pool(size - 1).open({"stable": bundle_id})
    beside = pool(2 * size - 1)
    beside._by_id[X] = small_loaded_with_check
    message = f"with the {size} of 1 open bundles that is {2 * size}, above max_bundles_bytes"
    with pytest.raises(BundleRefused, match=message):
        beside.open({"stable": bundle_id})
