"""Feature source inside the process: the bundle's snapshot, memory-mapped.

Reads the `SnapshotFiles` of a bundle: ids (one a line), `ints.npy` (n, I) int32 and `floats.npy`
(n, F) float32 in the same order. The arrays stay mapped, so workers share their pages; only the
id -> slot index is private. Invariant: every id in a snapshot that opened lies within its encoder.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract.bundle import Bundle
from service.contract.encode import EncodedBlock
from service.contract.errors import BundleError, ContractError
from service.contract.ids import read_ids
from service.contract.layout import EntityLayout, entity_layout
from service.contract.manifest import SnapshotFiles
from service.contract.schema import Entity, FeatureSchema
from service.features.ids import id_limits
from service.features.source import StoredRows

CHUNK_ROWS = 65_536
ALL_KNOWN = np.ones(4096, dtype=np.bool_)
ALL_KNOWN.flags.writeable = False


class EntityTable:
    """Encoded rows of one entity, gathered by id.

    Args:
        layout: Of the entity.
        ids: n distinct ids.
        ints: (n, int_width) int32.
        floats: (n, float_width) float32.
    """

    def __init__(
        self, layout: EntityLayout, ids: Sequence[str], ints: NDArray[np.int32], floats: NDArray[np.float32]
    ) -> None:
        self._slot_of = {value: slot for slot, value in enumerate(ids)}
        self._ints = ints
        self._floats = floats
        self._default = EncodedBlock(layout.default_ints[None, :], layout.default_floats[None, :])

    def __len__(self) -> int:
        return len(self._slot_of)

    def first_ids(self, count: int) -> list[str]:
        """Some stored ids, for examples that run."""
        return [value for value, _ in zip(self._slot_of, range(count), strict=False)]

    def batches(self, size: int, *, start: int = 0) -> Iterator[tuple[list[str], EncodedBlock]]:
        """Stored rows in order, `size` at a time, from row `start`."""
        ids = iter(islice(self._slot_of, start, None))
        while some := list(islice(ids, size)):
            rows = slice(start, start + len(some))
            yield some, EncodedBlock(self._ints[rows], self._floats[rows])
            start += len(some)

    def default_row(self) -> StoredRows:
        """One row of an entity without an id."""
        return StoredRows(
            EncodedBlock(self._default.ints.copy(), self._default.floats.copy()), np.zeros(1, dtype=np.bool_)
        )

    def one(self, value: str) -> StoredRows:
        """The row of one id; the same as `gather`, without arrays of places."""
        slot = self._slot_of.get(value)
        if slot is None:
            return self.default_row()
        row = slice(slot, slot + 1)
        return StoredRows(EncodedBlock(self._ints[row].copy(), self._floats[row].copy()), ALL_KNOWN[:1])

    def gather(self, ids: Sequence[str]) -> StoredRows:
        """Rows of ids, in order; one take per block, defaults where an id is not stored."""
        num_rows = len(ids)
        try:
            slots = np.fromiter(map(self._slot_of.__getitem__, ids), np.intp, num_rows)
        except KeyError:
            return self._gather_some(ids)
        known = ALL_KNOWN[:num_rows] if num_rows <= len(ALL_KNOWN) else np.ones(num_rows, np.bool_)
        return StoredRows(EncodedBlock(self._ints.take(slots, 0), self._floats.take(slots, 0)), known)

    def _gather_some(self, ids: Sequence[str]) -> StoredRows:
        """The same where some ids are not stored."""
        num_rows = len(ids)
        slots = np.fromiter(map(self._slot_of.get, ids, repeat(-1)), np.intp, num_rows)
        known = slots >= 0
        ints = np.repeat(self._default.ints, num_rows, axis=0)
        floats = np.repeat(self._default.floats, num_rows, axis=0)
        found = slots[known]
        ints[known] = self._ints[found]
        floats[known] = self._floats[found]
        return StoredRows(EncodedBlock(ints, floats), known)


class MemorySource:
    """Users and items of one bundle's snapshot; an entity without a snapshot is empty."""

    def __init__(self, users: EntityTable, items: EntityTable) -> None:
        self.users = users
        self.items = items

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> MemorySource:
        """Open the snapshot of a bundle.

        Raises:
            BundleError: A snapshot file does not fit the schema or its own row count.
        """
        return cls(_open_table(bundle, Entity.USER), _open_table(bundle, Entity.ITEM))

    async def fetch(
        self,
        user: str | None,
        items: Sequence[str],
        *,
        timeout_s: float = math.inf,  # noqa: ARG002 - of the protocol
    ) -> tuple[StoredRows, StoredRows]:
        """Rows of one user and of N items; never waits."""
        stored = self.users.default_row() if user is None else self.users.one(user)
        return stored, self.items.gather(items)

    def first_ids(self, entity: Entity, count: int) -> list[str]:
        """Some stored ids."""
        return (self.users if entity is Entity.USER else self.items).first_ids(count)

    def describe(self) -> str:
        """How much is stored."""
        return f"{len(self.users)} users, {len(self.items)} items embedded"


def _open_table(bundle: Bundle, entity: Entity) -> EntityTable:
    layout = entity_layout(bundle.schema, entity)
    files = bundle.manifest.features.get("user" if entity is Entity.USER else "item")
    if files is None:
        empty = np.zeros((0, layout.int_width), np.int32), np.zeros((0, layout.float_width), np.float32)
        return EntityTable(layout, (), *empty)
    ids = _read_ids(bundle.file(files.ids), files)
    ints = _open_array(bundle.file(files.ints), np.dtype(np.int32), (files.num_rows, layout.int_width))
    floats = _open_array(
        bundle.file(files.floats), np.dtype(np.float32), (files.num_rows, layout.float_width)
    )
    _check_content(bundle.schema, layout, bundle.file(files.ints), ints, bundle.file(files.floats), floats)
    return EntityTable(layout, ids, ints, floats)


def _read_ids(path: Path, files: SnapshotFiles) -> list[str]:
    try:
        ids = read_ids(path)
    except ContractError as error:
        raise BundleError(path, str(error)) from None
    if len(ids) != files.num_rows:
        raise BundleError(path, f"has {len(ids)} ids, the manifest says {files.num_rows}")
    distinct: set[str] = set()
    for start in range(0, len(ids), CHUNK_ROWS):  # a single call would stop a serving process for long
        distinct.update(ids[start : start + CHUNK_ROWS])
    if len(distinct) != len(ids):
        raise BundleError(path, "lists an id twice")
    return ids


def _open_array(path: Path, dtype: np.dtype[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """Map an array; one without elements cannot be mapped and is read."""
    try:
        array = np.load(path, mmap_mode="r" if shape[0] * shape[1] else None, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise BundleError(path, f"cannot be read as an array ({type(error).__name__})") from None
    if array.dtype != dtype or array.shape != shape:
        raise BundleError(path, f"is {array.shape} {array.dtype}, expected {shape} {dtype}")
    return np.asarray(array)


def _check_content(
    schema: FeatureSchema,
    layout: EntityLayout,
    ints_path: Path,
    ints: NDArray[np.int32],
    floats_path: Path,
    floats: NDArray[np.float32],
) -> None:
    """Every id in range, every number finite; reads the files once, in pieces."""
    limits = id_limits(schema, layout)
    for start in range(0, len(ints), CHUNK_ROWS):
        piece = ints[start : start + CHUNK_ROWS]
        bad = (piece < 0) | (piece >= limits)
        if bad.any():
            row, column = (int(x) for x in np.argwhere(bad)[0])
            raise BundleError(
                ints_path,
                f"row {start + row}, column {column}: id {int(piece[row, column])} "
                f"is not in [0, {int(limits[column])})",
            )
        numbers = floats[start : start + CHUNK_ROWS]
        if not np.isfinite(numbers).all():
            row = int(np.argwhere(~np.isfinite(numbers))[0][0])
            raise BundleError(floats_path, f"row {start + row} holds a number that is not finite")


__all__ = ["EntityTable", "MemorySource"]
