"""The smallest graph a predictor opens: the quotient of two numbers of each candidate."""

from pathlib import Path

from onnx import TensorProto, helper, save

from service.contract.manifest import GraphInput

FLOATS = GraphInput(name="x", source="item.floats", dtype="float32", width=2)


def write(path: Path, *, output_rank: int = 1) -> Path:
    """Y = x[:, 0] / x[:, 1], which divides by zero when told to."""
    nodes = [
        helper.make_node("Split", ["x"], ["a", "b"], axis=1, num_outputs=2),
        helper.make_node("Div", ["a", "b"], ["q"]),
        helper.make_node("Squeeze", ["q", "one"], ["y"])
        if output_rank == 1
        else helper.make_node("Neg", ["q"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"] if output_rank == 1 else ["N", 1])
    one = helper.make_tensor("one", TensorProto.INT64, [1], [1])
    graph = helper.make_graph(nodes, "g", [x], [y], [one])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path
