"""Weights of a bundle's graphs, in files beside them that the runtime maps into memory.

Each graph has a file of its own for what is new in it; a tensor that an earlier graph already stored, byte
for byte, is read from there. Invariant: no large tensor of a bundle is stored twice.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx.external_data_helper import set_external_data

MIN_BYTES = 1024
"""Smaller tensors stay inside the graph, where the optimiser can fold them."""


@dataclass(frozen=True)
class _Place:
    """Where a tensor's bytes are."""

    file: str
    offset: int
    num_bytes: int


class WeightFiles:
    """The weight files of one bundle.

    Args:
        folder: Where graphs and weight files lie; must exist when weights are written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._places: dict[bytes, _Place] = {}

    def move_out(self, proto: onnx.ModelProto, file: str) -> tuple[str, ...]:
        """Take large initialisers out of a graph; it then refers to their files.

        Args:
            proto: Changed in place.
            file: Name of the graph's own weight file; not written when nothing in it is new.

        Returns:
            Names of the files it needs.
        """
        used: dict[str, None] = {}
        new: list[bytes] = []
        end = 0
        for tensor in proto.graph.initializer:
            content = tensor.raw_data
            if len(content) < MIN_BYTES:
                continue
            digest = hashlib.sha256(content).digest()
            place = self._places.get(digest)
            if place is None:
                place = self._places[digest] = _Place(file, end, len(content))
                new.append(content)
                end += len(content)
            set_external_data(tensor, place.file, place.offset, place.num_bytes)
            tensor.ClearField("raw_data")
            used[place.file] = None
        if new:
            (self._folder / file).write_bytes(b"".join(new))
        return tuple(used)
