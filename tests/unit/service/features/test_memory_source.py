"""The snapshot source: rows by id, defaults for the rest, damaged snapshots refused."""

import asyncio
import dataclasses

import numpy as np
import pytest

from service.contract.bundle import Bundle
from service.contract.encode import EntityEncoder
from service.contract.errors import BundleError
from service.contract.schema import Entity
from service.features.memory_source import MemorySource


def test_rows_come_in_the_order_asked_with_defaults_for_the_unknown(small):
    source = MemorySource.from_bundle(small.bundle)
    user, items = asyncio.run(source.fetch("u4", ["i9", "nothing", "i0", "i9"]))
    default = EntityEncoder(small.schema, Entity.ITEM).defaults(1)
    assert user.known.tolist() == [True]
    np.testing.assert_array_equal(user.block.ints[0], small.users.ints[4])
    assert items.known.tolist() == [True, False, True, True]
    np.testing.assert_array_equal(items.block.ints[[0, 2, 3]], small.items.ints[[9, 0, 9]])
    np.testing.assert_array_equal(items.block.floats[[0, 2, 3]], small.items.floats[[9, 0, 9]])
    np.testing.assert_array_equal(items.block.ints[1], default.ints[0])


def test_the_caller_owns_what_it_gets(small):
    source = MemorySource.from_bundle(small.bundle)
    for user in ("u4", "nobody", None):
        first, items = asyncio.run(source.fetch(user, ["i1", "i2"]))
        before = first.block.ints.copy()
        first.block.ints[:] = -1
        items.block.ints[:] = -1
        again, _ = asyncio.run(source.fetch(user, ["i1"]))
        np.testing.assert_array_equal(again.block.ints, before)


def test_a_bundle_without_snapshot_knows_nobody(small):
    manifest = small.bundle.manifest.model_copy(update={"features": {}})
    source = MemorySource.from_bundle(Bundle(small.bundle.path, manifest, small.schema))
    user, items = asyncio.run(source.fetch("u1", ["i1"]))
    assert not user.known.any()
    assert not items.known.any()


@pytest.fixture
def changed(small, tmp_path):
    """A bundle whose user files are replaced."""

    def make(num_rows=20, **files):
        snapshot = small.bundle.manifest.features["user"]
        for source in (snapshot.ids, snapshot.ints, snapshot.floats):
            target = tmp_path / source
            target.parent.mkdir(exist_ok=True)
            target.write_bytes((small.bundle.path / source).read_bytes())
        if "ids" in files:
            (tmp_path / snapshot.ids).write_bytes(files["ids"])
        for name in ("ints", "floats"):
            if name in files:
                np.save(tmp_path / getattr(snapshot, name), files[name])
        manifest = small.bundle.manifest.model_copy(
            update={"features": {"user": snapshot.model_copy(update={"num_rows": num_rows})}}
        )
        return dataclasses.replace(small.bundle, path=tmp_path, manifest=manifest)

    return make


def test_snapshots_that_do_not_fit_are_refused(small, changed):
    ints, floats = small.users.ints.copy(), small.users.floats.copy()
    ints[7, 1] = 6
    floats[3, 0] = np.nan
    cases = [
        ({"num_rows": 19}, "has 20 ids, the manifest says 19"),
        ({"ids": b"a\n" * 20}, "lists an id twice"),
        ({"ids": b"\xff"}, "is not UTF-8 text"),
        ({"ints": small.users.ints.astype(np.int64)}, "int64, expected"),
        ({"ints": small.users.ints[:, :-1]}, r"is \(20, 12\) int32, expected"),
        ({"ints": ints}, r"row 7, column 1: id 6 is not in \[0, 6\)"),
        ({"floats": floats}, "row 3 holds a number that is not finite"),
    ]
    for files, message in cases:
        with pytest.raises(BundleError, match=message):
            MemorySource.from_bundle(changed(**files))


def test_an_empty_snapshot_opens(small, changed):
    empty = {"ids": b"", "ints": small.users.ints[:0], "floats": small.users.floats[:0], "num_rows": 0}
    assert len(MemorySource.from_bundle(changed(**empty)).users) == 0
