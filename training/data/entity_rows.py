"""Encoded rows of all known users or items: the snapshot that training gathers from and the service serves.

`entities/{user,item}/` holds `ids.txt` (one canonical id per line, JSON-escaped), `ints.npy` and
`floats.npy`, row = slot. Invariant: a slot of -1 reads as the contract's row of an entity that is not stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.contract.encode import EncodedBlock
from service.contract.ids import read_ids, write_ids
from service.contract.layout import EntityLayout, entity_layout
from service.contract.schema import Entity, FeatureSchema
from training.data.errors import PreparedError

IDS_FILE = "ids.txt"


@dataclass(frozen=True)
class EntityRows:
    """All known rows of one entity.

    Attributes:
        ints: (n, int_width) int32; floats: (n, float_width) float32. Memory-mapped when read from disk.
    """

    layout: EntityLayout
    ints: NDArray[np.int32]
    floats: NDArray[np.float32]

    def __len__(self) -> int:
        return int(self.ints.shape[0])

    def take(self, slots: NDArray[np.int32] | NDArray[np.int64]) -> EncodedBlock:
        """(B, ...) rows of the slots, a fresh copy."""
        unknown = slots < 0
        if not len(self):
            return EncodedBlock(
                np.tile(self.layout.default_ints, (len(slots), 1)),
                np.tile(self.layout.default_floats, (len(slots), 1)),
            )
        safe = np.where(unknown, 0, slots) if unknown.any() else slots
        ints, floats = np.take(self.ints, safe, axis=0), np.take(self.floats, safe, axis=0)
        if safe is not slots:
            ints[unknown], floats[unknown] = self.layout.default_ints, self.layout.default_floats
        return EncodedBlock(ints, floats)


def write_entities(folder: Path, rows: EntityRows, ids: list[str]) -> None:
    """Write the three files of one entity."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "ints.npy", rows.ints)
    np.save(folder / "floats.npy", rows.floats)
    write_ids(folder / IDS_FILE, ids)


def read_entities(folder: Path, schema: FeatureSchema, entity: Entity) -> EntityRows:
    """Map one entity's rows.

    Raises:
        PreparedError: A file is missing or of another width than the schema's.
    """
    layout = entity_layout(schema, entity)
    arrays = []
    for name, width in (("ints.npy", layout.int_width), ("floats.npy", layout.float_width)):
        path = folder / name
        if not path.is_file():
            raise PreparedError(f"{path}: missing")
        array = np.load(path, mmap_mode="r" if path.stat().st_size > 1 << 28 else None)
        if array.ndim != 2 or array.shape[1] != width:
            raise PreparedError(f"{path}: shape {array.shape}; the schema's rows are {width} wide")
        arrays.append(array)
    if len(arrays[0]) != len(arrays[1]):
        raise PreparedError(f"{folder}: {len(arrays[0])} rows of ids, {len(arrays[1])} of numbers")
    return EntityRows(layout, arrays[0], arrays[1])


def read_entity_ids(folder: Path) -> list[str]:
    """Canonical id of each slot."""
    return read_ids(folder / IDS_FILE)
