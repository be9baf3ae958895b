"""The near cache against a dictionary: never a wrong row, never past its time, never over its bound."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.contract.encode import EncodedBlock
from service.contract.layout import entity_layout
from service.contract.schema import Entity
from service.features.blob import DecodedRows
from service.features.near_cache import NearCache
from service.features.source import FAILED, FRESH, INVALID, MISSING
from tests.support.schemas import full_schema

LAYOUT = entity_layout(full_schema(), Entity.ITEM)


def cache_of(max_bytes=10**6, **changes):
    options = {"ttl_s": 10.0, "missing_ttl_s": 2.0, "jitter_ratio": 0.0, "seed": 0, **changes}
    return NearCache(LAYOUT, max_bytes=max_bytes, **options)


def rows_of(stamps, status=None):
    """Rows that carry a number each, so that they can be told apart."""
    stamps = np.asarray(stamps)
    ints = np.repeat(stamps[:, None], LAYOUT.int_width, axis=1).astype(np.int32)
    floats = np.repeat(stamps[:, None], LAYOUT.float_width, axis=1).astype(np.float32)
    status = np.full(len(stamps), FRESH) if status is None else status
    return DecodedRows(EncodedBlock(ints, floats), stamps.astype(np.int64), np.asarray(status, np.uint8))


def missed_of(cache, ids, now):
    found = cache.find(ids, now)
    return np.zeros(len(ids), bool) if found.missed is None else found.missed


def test_rows_are_found_in_order_until_their_time():
    cache = cache_of()
    cache.insert(["a", "b"], rows_of([7, 8]), now_s=100.0)
    found = cache.find(["b", "x", "a", "b"], now_s=109.9)
    assert found.missed.tolist() == [False, True, False, False]
    assert found.rows.event_ms.tolist() == [8, 0, 7, 8]
    np.testing.assert_array_equal(found.rows.block.ints[1], LAYOUT.default_ints)
    assert cache.find(["a"], now_s=110.0).missed.tolist() == [True]
    assert cache.find(["a"], 110.0).rows is None
    late = cache.find(["a", "b", "x"], 110.0)
    assert late.missed.tolist() == [True] * 3
    cache.insert(["x"], rows_of([9]), now_s=105.0)
    mixed = cache.find(["a", "x"], 110.0)  # a row past its time does not show through
    assert mixed.missed.tolist() == [True, False]
    np.testing.assert_array_equal(mixed.rows.block.ints[0], LAYOUT.default_ints)
    assert mixed.rows.event_ms.tolist() == [0, 9]


def test_absent_and_invalid_rows_are_remembered_shortly_and_failed_ones_not():
    cache = cache_of()
    cache.insert(["a", "b", "c"], rows_of([1, 2, 3], [MISSING, INVALID, FAILED]), now_s=0.0)
    found = cache.find(["a", "b", "c"], now_s=1.9)
    assert found.missed.tolist() == [False, False, True]
    assert found.rows.status[:2].tolist() == [MISSING, INVALID]
    assert cache.find(["a", "b", "c"], now_s=2.0).missed.all()


def test_an_outage_evicts_nothing():
    cache = cache_of(3000)
    cache.insert(["a", "b"], rows_of([1, 2]), now_s=0.0)
    unread = [f"i{n}" for n in range(100)]
    cache.insert(unread, rows_of(range(100), [FAILED] * 100), now_s=0.0)
    assert len(cache) == 2
    assert cache.find(["a", "b"], 1.0).missed is None


def test_lives_are_spread_by_the_jitter():
    cache = cache_of(jitter_ratio=0.5)
    ids = [f"i{n}" for n in range(1000)]
    cache.insert(ids, rows_of(range(1000)), now_s=0.0)
    alive = [1 - missed_of(cache, ids, t).mean() for t in (4.99, 6.25, 7.5, 8.75, 10.0)]
    np.testing.assert_allclose(alive, [1.0, 0.75, 0.5, 0.25, 0.0], atol=0.06)


def test_the_caller_owns_what_it_finds():
    cache = cache_of()
    cache.insert(["a"], rows_of([7]), now_s=0.0)
    first = cache.find(["a"], 1.0)
    first.rows.block.ints[:] = -1
    first.rows.status[:] = FAILED
    assert cache.find(["a"], 1.0).rows.block.ints[0, 0] == 7


def test_without_room_for_one_row_nothing_is_kept():
    for max_bytes in (0, 100):
        cache = cache_of(max_bytes)
        cache.insert(["a"], rows_of([1]), now_s=0.0)
        assert len(cache) == 0
        assert cache.find(["a"], 0.0).missed.tolist() == [True]


def test_rows_in_use_outlive_a_scan():
    cache = cache_of(200 * 1000)
    hot = [f"hot{n}" for n in range(50)]
    cache.insert(hot, rows_of(range(50)), now_s=0.0)
    for n in range(100):
        assert cache.find(hot, now_s=0.1).missed is None
        scan = [f"scan{n}-{k}" for k in range(50)]
        cache.insert(scan, rows_of(range(50)), now_s=0.1)
    assert cache.num_evicted > 1000


ids = st.lists(st.text("ab\u00e9\u4e2d", max_size=3), min_size=1, max_size=12, unique=True)
steps = st.lists(st.tuples(st.sampled_from(["insert", "find"]), ids, st.floats(0, 4)), max_size=40)


@settings(max_examples=150, deadline=None)
@given(steps=steps, max_bytes=st.integers(0, 8000), jitter=st.sampled_from([0.0, 0.3]))
def test_it_never_lies(steps, max_bytes, jitter):
    cache, truth, now, stamp = cache_of(max_bytes, jitter_ratio=jitter), {}, 0.0, 0
    for kind, some, wait in steps:
        now += wait
        if kind == "insert":
            status = [FRESH if (stamp + n) % 3 else MISSING for n in range(len(some))]
            cache.insert(some, rows_of(range(stamp, stamp + len(some)), status), now)
            truth.update({v: (stamp + n, status[n], now) for n, v in enumerate(some)})
            stamp += len(some)
        else:
            found, missed = cache.find(some, now), missed_of(cache, some, now)
            for n, value in enumerate(some):
                if missed[n]:
                    if found.rows is not None:
                        np.testing.assert_array_equal(found.rows.block.ints[n], LAYOUT.default_ints)
                    continue
                expected, status, since = truth[value]
                assert (found.rows.event_ms[n], found.rows.status[n]) == (expected, status)
                assert found.rows.block.ints[n, 0] == expected
                assert now - since < (10.0 if status == FRESH else 2.0)
        assert cache.num_bytes <= max_bytes
        assert len(cache) <= cache.max_entries


@pytest.mark.parametrize("count", [1, 7, 300])
def test_one_insert_larger_than_the_cache_keeps_what_fits(count):
    cache = cache_of(3000)
    some = [f"i{n}" for n in range(count)]
    cache.insert(some, rows_of(range(count)), now_s=0.0)
    assert 0 < len(cache) <= cache.max_entries
    found, missed = cache.find(some, 0.0), missed_of(cache, some, 0.0)
    assert found.rows.event_ms[~missed].tolist() == np.arange(count)[~missed].tolist()
