"""Weights of a bundle's graphs, in files beside them that the runtime maps into memory.

Each graph has a file of its own for what is new in it; a tensor that an earlier graph already stored, byte
for byte and with the same reorderings, is read from there. Invariants: no large tensor of a bundle is stored
twice; everything starts at a multiple of `ALIGNMENT`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx.external_data_helper import set_external_data

from export.prepack import KEY_PREFIX, Packed

MIN_BYTES = 1024
"""Smaller tensors stay inside the graph, where the optimiser can fold them."""
ALIGNMENT = 64


@dataclass(frozen=True)
class _Place:
    """Where a tensor's bytes are.

    Attributes:
        file: Name of the file.
        offset, num_bytes: Of the tensor as it is.
        packed: Entries for its reorderings: key, and where their parts are.
    """

    file: str
    offset: int
    num_bytes: int
    packed: tuple[str, ...]


class WeightFiles:
    """The weight files of one bundle.

    Args:
        folder: Where graphs and weight files lie; must exist when weights are written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._places: dict[bytes, _Place] = {}

    def move_out(
        self,
        proto: onnx.ModelProto,
        file: str,
        packed: Mapping[str, Sequence[Packed]] | None = None,
    ) -> tuple[str, ...]:
        """Take large initialisers out of a graph; it then refers to their files.

        Args:
            proto: Changed in place.
            file: Name of the graph's own weight file; not written when nothing in it is new.
            packed: Reorderings to store beside tensors, by name.

        Returns:
            Names of the files it needs.
        """
        used: dict[str, None] = {}
        new = _NewFile(file)
        for tensor in proto.graph.initializer:
            content = tensor.raw_data
            if len(content) < MIN_BYTES:
                continue
            forms = tuple((packed or {}).get(tensor.name, ()))
            digest = _digest(content, forms)
            place = self._places.get(digest)
            if place is None:
                place = self._places[digest] = new.add(content, forms)
            set_external_data(tensor, place.file, place.offset, place.num_bytes)
            for number, value in enumerate(place.packed):
                tensor.external_data.add(key=f"{KEY_PREFIX}{number}", value=value)
            tensor.ClearField("raw_data")
            used[place.file] = None
        if new.parts:
            (self._folder / file).write_bytes(b"".join(new.parts))
        return tuple(used)


class _NewFile:
    """What goes into a graph's own file."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.parts: list[bytes] = []
        self._end = 0

    def add(self, content: bytes, forms: Sequence[Packed]) -> _Place:
        """A tensor with its reorderings."""
        offset = self._append(content)
        packed = []
        for form in forms:
            places = [(self._append(blob), len(blob)) for blob in form.blobs]
            told = (f"{at};{size};{pad}" for (at, size), pad in zip(places, form.paddings, strict=True))
            packed.append("|".join((form.key, *told)))
        return _Place(self.name, offset, len(content), tuple(packed))

    def _append(self, content: bytes) -> int:
        gap = -self._end % ALIGNMENT
        start = self._end + gap
        self.parts += [bytes(gap), content]
        self._end = start + len(content)
        return start


def _digest(content: bytes, forms: Sequence[Packed]) -> bytes:
    digest = hashlib.sha256(content)
    for form in forms:
        digest.update(form.key.encode())
        for blob in form.blobs:
            digest.update(blob)
    return digest.digest()
