"""Weights in the order in which the runtime's products read them, stored so that they are mapped, not made.

The runtime reorders constant matrices when it opens a graph, into memory of each session. It accepts such
ones from the file beside the graph: it reorders as ever, finds by digest that the file holds the same bytes,
and drops its own. So graphs and processes share one copy where processor and runtime are those of the export;
elsewhere digests differ and every session keeps its own. Invariant: what is stored never changes a score.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from service.scoring.runtime import onnxruntime

KEY_PREFIX = "prepacked_"
MIN_BYTES = 1024
MAX_TABLE_ROWS = 1024
"""Longer tables are cut before the runtime sees them: it does not reorder what is only looked up."""


@dataclass(frozen=True)
class Packed:
    """One reordering of a tensor.

    Attributes:
        key: What the runtime finds it by: operator and digest.
        blobs: Its parts.
        paddings: What the runtime notes of each part.
    """

    key: str
    blobs: tuple[bytes, ...]
    paddings: tuple[str, ...]


def packed_weights(proto: onnx.ModelProto) -> dict[str, tuple[Packed, ...]]:
    """What the runtime makes of a graph's constants on this machine, by name of tensor.

    Args:
        proto: Weights inside.
    """
    small = _without_tables(proto)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.optimized_model_filepath = str(folder / "packed.onnx")
        for key, value in (
            ("optimized_model_external_initializers_file_name", "packed.bin"),
            ("optimized_model_external_initializers_min_size_in_bytes", str(MIN_BYTES)),
            ("save_external_prepacked_constant_initializers", "1"),
        ):
            options.add_session_config_entry(f"session.{key}", value)
        onnxruntime.InferenceSession(small.SerializeToString(), options, providers=["CPUExecutionProvider"])
        saved = onnx.load(str(folder / "packed.onnx"), load_external_data=False)
        content = folder / "packed.bin"
        stored = content.read_bytes() if content.exists() else b""
    known = {tensor.name for tensor in proto.graph.initializer}
    found = {tensor.name: _packed(tensor, stored) for tensor in saved.graph.initializer}
    return {name: packed for name, packed in found.items() if packed and name in known}


def _packed(tensor: onnx.TensorProto, stored: bytes) -> tuple[Packed, ...]:
    made = []
    for entry in tensor.external_data:
        if entry.key.startswith(KEY_PREFIX):
            key, *parts = entry.value.split("|")
            places = [part.split(";") for part in parts]
            blobs = tuple(stored[int(start) : int(start) + int(size)] for start, size, _ in places)
            made.append(Packed(key, blobs, tuple(padding for _, _, padding in places)))
    return tuple(made)


def _without_tables(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with one row of every long table that is only looked up."""
    own = onnx.ModelProto()
    own.CopyFrom(proto)
    looked_up = {node.input[0] for node in proto.graph.node if node.op_type == "Gather"}
    read = [name for node in proto.graph.node for name in node.input if name in looked_up]
    for tensor in own.graph.initializer:
        only_there = read.count(tensor.name) == sum(
            node.input[0] == tensor.name for node in proto.graph.node if node.op_type == "Gather"
        )
        if tensor.name in looked_up and only_there and tensor.dims[0] > MAX_TABLE_ROWS:
            row = np.ascontiguousarray(numpy_helper.to_array(tensor)[:1])
            tensor.CopyFrom(numpy_helper.from_array(row, tensor.name))
    return own
