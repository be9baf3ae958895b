"""Weights are stored once: a later graph reads what an earlier one stored, and still computes the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.weights import MIN_BYTES, WeightFiles
from service.scoring.runtime import onnxruntime

WIDTH = MIN_BYTES // 4
TABLE = np.arange(WIDTH, dtype=np.float32)
OWN = -TABLE
SMALL = np.float32([2.0])


def graph(**tensors: np.ndarray) -> onnx.ModelProto:
    """Sum of the input and all tensors."""
    nodes, last = [], "x"
    for name in tensors:
        nodes.append(helper.make_node("Add", [last, name], [f"{last}+{name}"]))
        last = nodes[-1].output[0]
    value = [TensorProto.FLOAT, [WIDTH]]
    made = helper.make_graph(
        nodes,
        "sum",
        [helper.make_tensor_value_info("x", *value)],
        [helper.make_tensor_value_info(last, *value)],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def saved(folder: Path, name: str, weights: WeightFiles, **tensors: np.ndarray) -> tuple[str, ...]:
    """Files that a graph needs."""
    proto = graph(**tensors)
    needed = weights.move_out(proto, f"{name}.bin")
    (folder / f"{name}.onnx").write_bytes(proto.SerializeToString())
    return needed


def scored(folder: Path, name: str) -> np.ndarray:
    """The graph's output for zeros."""
    session = onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.zeros(WIDTH, np.float32)})[0]


def test_what_is_equal_is_stored_once(tmp_path: Path):
    """The second graph's file holds its own table only; small tensors stay inside."""
    weights = WeightFiles(tmp_path)

    assert saved(tmp_path, "first", weights, table=TABLE, small=SMALL) == ("first.bin",)
    assert saved(tmp_path, "second", weights, other=3 * TABLE, again=TABLE) == ("second.bin", "first.bin")
    assert saved(tmp_path, "third", weights, again=TABLE, twice=TABLE) == ("first.bin",)
    assert saved(tmp_path, "fourth", weights, small=SMALL) == ()
    sizes = {path.name: path.stat().st_size for path in tmp_path.glob("*.bin")}
    assert sizes == {"first.bin": MIN_BYTES, "second.bin": MIN_BYTES}


def test_graphs_compute_what_they_did(tmp_path: Path):
    """The runtime finds each tensor at its place, after another one in the file too."""
    weights = WeightFiles(tmp_path)
    saved(tmp_path, "first", weights, own=OWN, table=5 * TABLE)
    saved(tmp_path, "second", weights, table=5 * TABLE, small=SMALL)

    np.testing.assert_array_equal(scored(tmp_path, "first"), 4 * TABLE)
    np.testing.assert_array_equal(scored(tmp_path, "second"), 5 * TABLE + 2)
