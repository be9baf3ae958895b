"""Rewrites of exported graphs: same outputs from fewer or cheaper nodes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.macs import count_macs
from export.passes import keep_lines, merge_requests, optimise, split_products, tidy
from service.scoring.runtime import onnxruntime

RNG = np.random.default_rng(0)
P, Q, H = 3, 2, 4


def constant(name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array(RNG.normal(size=shape).astype(np.float32), name)


def model(nodes, constants, inputs, values=(), *, out=("N", H)) -> onnx.ModelProto:
    """A graph whose output is `y`."""
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(out))],
        constants,
        value_info=[helper.make_tensor_value_info(n, TensorProto.FLOAT, list(s)) for n, s in values],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(proto: onnx.ModelProto, inputs) -> np.ndarray:
    onnx.checker.check_model(proto)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = {entry.name for entry in session.get_inputs()}
    scores: np.ndarray = session.run(["y"], {k: v for k, v in inputs.items() if k in names})[0]
    return scores


def kinds(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


REQUEST = [("u", TensorProto.FLOAT, ["R", P]), ("request_index", TensorProto.INT64, ["N"])]
ROW = [("i", TensorProto.FLOAT, ["N", Q])]
INPUTS = {
    "u": RNG.normal(size=(2, P)).astype(np.float32),
    "i": RNG.normal(size=(5, Q)).astype(np.float32),
    "request_index": np.int64([0, 1, 1, 0, 1]),
}
SPREAD = helper.make_node("Gather", ["u", "request_index"], ["s"], axis=0)
JOINED = helper.make_node("Concat", ["s", "i"], ["x"], axis=1)
VALUES = [("s", ("N", P)), ("x", ("N", P + Q))]


@pytest.mark.parametrize("kind", ["Gemm", "transposed", "MatMul"])
def test_the_request_half_of_a_product_runs_once_a_request(kind):
    """W [u; i] = W_u u gathered + W_i i: P H multiply-adds go from each row to each request."""
    shape = (H, P + Q) if kind == "transposed" else (P + Q, H)
    weights = [constant("w", *shape)] + ([] if kind == "MatMul" else [constant("b", H)])
    names = ["x", *(tensor.name for tensor in weights)]
    extra = {"transB": 1} if kind == "transposed" else {}
    product = helper.make_node("MatMul" if kind == "MatMul" else "Gemm", names, ["y"], **extra)
    proto = model([SPREAD, JOINED, product], weights, REQUEST + ROW, VALUES)
    before, whole = run(proto, INPUTS), count_macs(proto)

    split_products(proto)
    tidy(proto)

    np.testing.assert_allclose(run(proto, INPUTS), before, atol=1e-6)
    assert (whole.per_row, whole.per_request) == ((P + Q) * H, 0)
    assert count_macs(proto) == (Q * H, P * H)
    assert "Concat" not in kinds(proto)


def test_products_of_rows_alone_stay():
    """Nothing is gathered, so nothing is split."""
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    joined = helper.make_node("Concat", ["i", "i"], ["x"], axis=1)
    proto = model([joined, product], [constant("w", 2 * Q, H)], ROW, [("x", ("N", 2 * Q))])

    split_products(proto)

    assert kinds(proto) == ["Concat", "MatMul"]


def test_products_of_one_request_value_become_one():
    """Two of equal width are one and a split; one of another width stays."""
    nodes = [helper.make_node("Gemm", ["u", f"w{k}", f"b{k}"], [f"g{k}"], transB=1) for k in range(3)]
    nodes += [helper.make_node("Gather", [f"g{k}", "request_index"], [f"s{k}"], axis=0) for k in range(3)]
    nodes.append(helper.make_node("Concat", ["s0", "s1", "s2"], ["y"], axis=1))
    widths = (H, H, H + 1)
    constants = [constant(f"w{k}", width, P) for k, width in enumerate(widths)]
    constants += [constant(f"b{k}", width) for k, width in enumerate(widths)]
    values = [(f"g{k}", ("R", width)) for k, width in enumerate(widths)]
    proto = model(nodes, constants, REQUEST, values, out=("N", 3 * H + 1))
    before = run(proto, INPUTS)

    merge_requests(proto)
    tidy(proto)

    np.testing.assert_allclose(run(proto, INPUTS), before, atol=1e-6)
    assert kinds(proto).count("Gemm") == 2
    assert kinds(proto).count("Split") == 1


def test_ids_index_tables_as_they_are():
    """No selection of all columns, no cast to int64; offsets stay, in int32."""
    nodes = [
        helper.make_node("Gather", ["ids", "all"], ["chosen"], axis=1),
        helper.make_node("Cast", ["chosen"], ["wide"], to=TensorProto.INT64),
        helper.make_node("Add", ["wide", "offsets"], ["places"]),
        helper.make_node("Gather", ["table", "places"], ["rows"], axis=0),
        helper.make_node("Identity", ["rows"], ["same"]),
        helper.make_node("ReduceSum", ["same", "axis"], ["y"], keepdims=0),
    ]
    constants = [
        numpy_helper.from_array(np.int64([0, 1]), "all"),
        numpy_helper.from_array(np.int64([0, 3]), "offsets"),
        constant("table", 6, H),
        numpy_helper.from_array(np.int64([1]), "axis"),
    ]
    proto = model(nodes, constants, [("ids", TensorProto.INT32, ["N", 2])])
    for name, kind in (
        ("chosen", TensorProto.INT32),
        ("wide", TensorProto.INT64),
        ("places", TensorProto.INT64),
    ):
        proto.graph.value_info.append(helper.make_tensor_value_info(name, kind, ["N", 2]))
    ids = {"ids": np.int32([[0, 2], [2, 0]])}
    before = run(proto, ids)

    optimise(proto)

    np.testing.assert_array_equal(run(proto, ids), before)
    assert kinds(proto) == ["Add", "Gather", "ReduceSum"]


@pytest.mark.parametrize(("scale", "bias"), [(True, True), (True, False), (False, True), (False, False)])
def test_lines_are_constants_of_their_own_whatever_was_folded(scale, bias):
    """What the exporter left out comes back by name, and changes nothing until it is replaced."""
    nodes, last = [], "z"
    constants = []
    if scale:
        nodes.append(helper.make_node("Mul", [last, "scale"], ["m"]))
        constants.append(numpy_helper.from_array(np.float32([1.0]), "scale"))
        last = "m"
    if bias:
        nodes.append(helper.make_node("Add", [last, "bias"], ["a"]))
        constants.append(numpy_helper.from_array(np.float32([0.0]), "bias"))
        last = "a"
    nodes.append(helper.make_node("Sigmoid", [last], ["y"]))
    proto = model(nodes, constants, [("z", TensorProto.FLOAT, ["N"])], out=("N",))
    z = {"z": np.float32([-1, 0, 2])}

    keep_lines(proto, "y", ("scale", np.float32([1.0])), ("bias", np.float32([0.0])))

    np.testing.assert_allclose(run(proto, z), 1 / (1 + np.exp(-z["z"])), atol=1e-6)
    for tensor in proto.graph.initializer:
        value = np.float32([2.0] if tensor.name == "scale" else [0.5])
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    np.testing.assert_allclose(run(proto, z), 1 / (1 + np.exp(-2 * z["z"] - 0.5)), atol=1e-6)


def test_an_output_without_a_sigmoid_has_no_lines():
    """The message names it."""
    proto = model([helper.make_node("Neg", ["z"], ["y"])], [], [("z", TensorProto.FLOAT, ["N"])], out=("N",))
    line = ("scale", np.float32([1.0]))

    with pytest.raises(ValueError, match="output 'y' is not made by a Sigmoid"):
        keep_lines(proto, "y", line, ("bias", np.float32([0.0])))
