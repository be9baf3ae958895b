"""Rewrites of an exported graph that the exporter does not do.

    split_products   W [u; i] with u gathered from requests becomes W_u u, run once a request, plus W_i i
    merge_requests   products of equal width over one request value become one, split after it
    plain_lookups    ids index tables as they are: no column selection that selects all, no cast to int64
    keep_lines       calibrators stay constants of their own, whatever their values
    tidy             no node and no weight that nothing reads, no Identity or Dropout

Each changes a protobuf in place and keeps shapes noted for every value. Invariant: outputs stay what they
were, up to rounding in `split_products`; inputs and outputs keep their names.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from export.graph_index import GraphIndex

REQUEST_INDEX = "request_index"
Constant = tuple[str, NDArray[np.float32]]


def optimise(proto: onnx.ModelProto) -> None:
    """All rewrites, in order."""
    plain_indices(proto)
    split_products(proto)
    merge_requests(proto)
    plain_lookups(proto)
    tidy(proto)


def plain_indices(proto: onnx.ModelProto) -> None:
    """Vectors of indices are used as they come: the exporter reshapes each to one dimension first."""
    index = GraphIndex(proto)
    for node in list(proto.graph.node):
        if node.op_type == "Reshape" and _keeps_vector(index, node):
            index.replace(node.output[0], node.input[0])
            proto.graph.node.remove(node)


def _keeps_vector(index: GraphIndex, node: NodeProto) -> bool:
    is_vector = len(index.shape(node.input[0])) == 1 and index.is_constant(node.input[1])
    return is_vector and index.constant(node.input[1]).tolist() == [-1]


def split_products(proto: onnx.ModelProto) -> None:
    """Run the request half of products over joined inputs once a request.

    A product `Gemm` or `MatMul` with constant weights, over a `Concat` of columns some of which are gathered
    by the request index, becomes one over the requests' columns, gathered, plus one over the others.
    """
    index = GraphIndex(proto)
    for number, node in reversed(list(enumerate(proto.graph.node))):
        halves = _halves(index, node)
        if halves is None:
            continue
        new = _split(index, node, *halves, name=f"split_{number}")
        proto.graph.node.remove(node)
        for offset, made in enumerate(new):
            proto.graph.node.insert(number + offset, made)
        index = GraphIndex(proto)


def _halves(index: GraphIndex, node: NodeProto) -> tuple[list[str], list[str], NDArray[np.bool_]] | None:
    """Request values before their gathering, row values, and which columns are of the request."""
    if node.op_type not in ("Gemm", "MatMul") or not index.is_constant(node.input[1]):
        return None
    if node.op_type == "Gemm" and not is_plain_gemm(index, node):
        return None
    joined = index.producer(node.input[0])
    if joined is None or joined.op_type != "Concat" or len(index.shape(node.input[0])) != 2:
        return None
    request: list[str] = []
    row: list[str] = []
    of_request: list[bool] = []
    for name in joined.input:
        width = index.shape(name)[-1]
        before = index.gathered_from(name, REQUEST_INDEX)
        if not isinstance(width, int):
            return None
        (row if before is None else request).append(before or name)
        of_request += [before is not None] * width
    return (request, row, np.array(of_request)) if request and row else None


def is_plain_gemm(index: GraphIndex, node: NodeProto, *, constant_bias: bool = True) -> bool:
    """Unscaled, and its bias the same for all rows if that is asked for."""
    told = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    plain = told.get("alpha", 1.0) == told.get("beta", 1.0) == 1.0 and not told.get("transA", 0)
    return plain and (not constant_bias or len(node.input) < 3 or index.is_constant(node.input[2]))


def _split(
    index: GraphIndex,
    node: NodeProto,
    request: list[str],
    row: list[str],
    of_request: NDArray[np.bool_],
    *,
    name: str,
) -> list[NodeProto]:
    weight = index.constant(node.input[1])
    if any(a.name == "transB" and a.i for a in node.attribute):
        weight = weight.T
    width = weight.shape[1]
    bias = index.constant(node.input[2]) if len(node.input) > 2 else np.zeros(width, weight.dtype)
    halves = {"request_weight": weight[of_request], "row_weight": weight[~of_request]}
    for key, value in (*halves.items(), ("bias", bias.reshape(-1))):
        index.add_constant(f"{name}_{key}", np.ascontiguousarray(value))
    nodes: list[NodeProto] = []
    sides = []
    for side, names, at in (("request", request, "R"), ("row", row, "N")):
        joined = names[0]
        if len(names) > 1:
            joined = index.add_value(
                f"{name}_{side}_inputs", (at, int((of_request == (side == "request")).sum()))
            )
            nodes.append(helper.make_node("Concat", names, [joined], axis=1))
        sides.append(joined)
    once = index.add_value(f"{name}_once", ("R", width))
    spread = index.add_value(f"{name}_spread", ("N", width))
    nodes += [
        helper.make_node("Gemm", [sides[0], f"{name}_request_weight", f"{name}_bias"], [once]),
        helper.make_node("Gather", [once, REQUEST_INDEX], [spread], axis=0),
        helper.make_node("Gemm", [sides[1], f"{name}_row_weight", spread], list(node.output)),
    ]
    return nodes


def merge_requests(proto: onnx.ModelProto) -> None:
    """One product for those over one request value that have the same width, as experts' first layers do."""
    index = GraphIndex(proto)
    alike: dict[tuple[str, tuple[int | str, ...]], list[NodeProto]] = {}
    for node in proto.graph.node:
        if node.op_type == "Gemm" and _is_mergeable(index, node):
            alike.setdefault((node.input[0], index.shape(node.output[0])), []).append(node)
    for number, nodes in enumerate(group for group in alike.values() if len(group) > 1):
        _merge(proto, index, nodes, name=f"merged_{number}")


def _is_mergeable(index: GraphIndex, node: NodeProto) -> bool:
    shape = index.shape(node.output[0])
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return (
        transposed
        and len(node.input) == 3
        and all(index.is_constant(name) for name in node.input[1:])
        and is_plain_gemm(index, node)
        and len(shape) == 2
        and shape[0] == "R"
    )


def _merge(proto: onnx.ModelProto, index: GraphIndex, nodes: list[NodeProto], *, name: str) -> None:
    weight = np.concatenate([index.constant(node.input[1]) for node in nodes])
    bias = np.concatenate([index.constant(node.input[2]).reshape(-1) for node in nodes])
    inputs = [index.add_constant(f"{name}_weight", weight), index.add_constant(f"{name}_bias", bias)]
    whole = index.add_value(name, ("R", len(weight)))
    widths = [int(index.shape(node.output[0])[1]) for node in nodes]
    sizes = index.add_constant(f"{name}_sizes", np.array(widths, np.int64))
    made = [
        helper.make_node("Gemm", [nodes[0].input[0], *inputs], [whole], transB=1),
        helper.make_node("Split", [whole, sizes], [node.output[0] for node in nodes], axis=1),
    ]
    place = list(proto.graph.node).index(nodes[0])
    for node in nodes:
        proto.graph.node.remove(node)
    for offset, node in enumerate(made):
        proto.graph.node.insert(place + offset, node)


def plain_lookups(proto: onnx.ModelProto) -> None:
    """Ids as they come index tables: drops selections of all columns, casts to int64, and offsets of 0."""
    index = GraphIndex(proto)
    for node in list(proto.graph.node):
        if node.op_type == "Gather" and _selects_all(index, node):
            index.replace(node.output[0], node.input[0])
            proto.graph.node.remove(node)
    index = GraphIndex(proto)
    for node in list(proto.graph.node):
        if node.op_type == "Cast" and node.attribute[0].i == TensorProto.INT64:
            _narrow(proto, index, node)


def _selects_all(index: GraphIndex, node: NodeProto) -> bool:
    """A gather of all columns in their order."""
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    if axis != 1 or not index.is_constant(node.input[1]):
        return False
    columns, shape = index.constant(node.input[1]), index.shape(node.input[0])
    width = shape[1] if len(shape) == 2 and isinstance(shape[1], int) else 0
    return width > 0 and columns.ndim == 1 and columns.tolist() == list(range(width))


def _narrow(proto: onnx.ModelProto, index: GraphIndex, cast: NodeProto) -> None:
    """int32 -> int64 -> + offsets -> lookup without the cast, where all rows have int32 numbers."""
    readers = index.readers(cast.output[0])
    if index.dtype(cast.input[0]) != TensorProto.INT32 or len(readers) != 1:
        return
    (add,) = readers
    offsets = next((name for name in add.input if index.is_constant(name)), None)
    lookups = index.readers(add.output[0])
    if add.op_type != "Add" or offsets is None or any(node.op_type != "Gather" for node in lookups):
        return
    tables = [index.shape(node.input[0])[0] for node in lookups if node.input[1] == add.output[0]]
    if len(tables) < len(lookups) or not all(isinstance(size, int) and size < 2**31 for size in tables):
        return
    values = index.constant(offsets)
    if values.any():
        name = index.add_constant(f"{offsets}_int32", values.astype(np.int32))
        for position, old in enumerate(add.input):
            add.input[position] = name if old == offsets else cast.input[0]
        index.set_dtype(add.output[0], TensorProto.INT32)
    else:
        index.replace(add.output[0], cast.input[0])
        proto.graph.node.remove(add)
    proto.graph.node.remove(cast)


def keep_lines(proto: onnx.ModelProto, output: str, scale: Constant, bias: Constant) -> None:
    """Put back calibrator constants that the exporter folded away, a scale of 1 or a bias of 0.

    Args:
        proto: Its output is a sigmoid of scale * logit + bias.
        output: Name of the output.
        scale: Name and value.
        bias: Name and value.
    """
    index = GraphIndex(proto)
    sigmoid = index.producer(output)
    if sigmoid is None or sigmoid.op_type != "Sigmoid":
        raise ValueError(f"output '{output}' is not made by a Sigmoid")
    made: list[NodeProto] = []
    reader, logit = sigmoid, sigmoid.input[0]
    if not index.is_constant(bias[0]):
        index.add_constant(*bias)
        reader = helper.make_node(
            "Add", [logit, bias[0]], [index.add_value("calibrated", index.shape(logit))]
        )
        sigmoid.input[0] = reader.output[0]
        made.append(reader)
    elif not index.is_constant(scale[0]):
        reader = index.producer(logit) or sigmoid
        logit = next(name for name in reader.input if name != bias[0])
    if not index.is_constant(scale[0]):
        index.add_constant(*scale)
        scaled = helper.make_node("Mul", [logit, scale[0]], [index.add_value("scaled", index.shape(logit))])
        position = list(reader.input).index(logit)
        reader.input[position] = scaled.output[0]
        made.insert(0, scaled)
    place = list(proto.graph.node).index(reader if reader not in made else sigmoid)
    for offset, node in enumerate(made):
        proto.graph.node.insert(place + offset, node)


def tidy(proto: onnx.ModelProto) -> None:
    """Remove what has no effect on the outputs."""
    graph = proto.graph
    for node in list(graph.node):
        if node.op_type in ("Identity", "Dropout") and node.output[0] not in {o.name for o in graph.output}:
            GraphIndex(proto).replace(node.output[0], node.input[0])
            graph.node.remove(node)
    wanted = {output.name for output in graph.output}
    for node in reversed(list(graph.node)):
        if wanted.isdisjoint(node.output):
            graph.node.remove(node)
        else:
            wanted.update(node.input)
    for part in (graph.initializer, graph.value_info):
        for entry in [entry for entry in part if entry.name not in wanted]:
            part.remove(entry)
