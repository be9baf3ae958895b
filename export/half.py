"""Embedding tables in 16 bits: half the memory, the same arithmetic.

A table is stored as float16 and each looked-up row is widened to float32. Processors without 16-bit products
would widen all other weights once and for all, so only tables change. Invariant: a row's score does not
depend on its neighbours, as nothing but stored numbers is rounded.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from export.graph_index import GraphIndex

MIN_ROWS = 1024
"""Rows of the smallest table that is worth it."""


def halve_tables(proto: onnx.ModelProto) -> onnx.ModelProto | None:
    """A copy of a graph with its large tables in float16; None where it has none.

    Args:
        proto: Weights inside.
    """
    index = GraphIndex(proto)
    tables = {node.input[0] for node in proto.graph.node if node.op_type == "Gather"}
    tables = {name for name in tables if _is_table(index, name)}
    if not tables:
        return None
    own = onnx.ModelProto()
    own.CopyFrom(proto)
    index = GraphIndex(own)
    for tensor in [tensor for tensor in own.graph.initializer if tensor.name in tables]:
        values = index.constant(tensor.name).astype(np.float16)
        own.graph.initializer.remove(tensor)
        index.add_constant(tensor.name, values)
    nodes = list(own.graph.node)
    del own.graph.node[:]
    for node in nodes:
        own.graph.node.append(node)
        if node.op_type == "Gather" and node.input[0] in tables:
            wide = node.output[0]
            half = index.add_value(f"{wide}_half", index.shape(wide), TensorProto.FLOAT16)
            own.graph.node[-1].output[0] = half
            own.graph.node.append(helper.make_node("Cast", [half], [wide], to=TensorProto.FLOAT))
    return own


def _is_table(index: GraphIndex, name: str) -> bool:
    shape = index.shape(name)
    rows = shape[0] if index.is_constant(name) and len(shape) == 2 else 0
    return isinstance(rows, int) and rows >= MIN_ROWS and index.dtype(name) == TensorProto.FLOAT
