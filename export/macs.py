"""Multiply-adds of an exported graph's matrix products, by what they are run for.

Reads the file's nodes and the shapes that the exporter noted; element-wise work is not counted. Invariant: a
product runs once a candidate, once a request, once a call, or once a candidate that chose it, whichever free
sizes its result has. Products that some candidates choose are of experts alike, each with its own free size.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import onnx

ROWS, REQUESTS = "N", "R"
CHOICES = "experts"
"""Output (N, k) of the experts that each row chose."""


class Macs(NamedTuple):
    """Multiply-adds of one run.

    Attributes:
        per_row: Of each candidate.
        per_request: Of each request, whatever its candidates.
    """

    per_row: int
    per_request: int


def count_macs(proto: onnx.ModelProto) -> Macs:
    """Count the products (MatMul, Gemm, QGemm) of a graph whose free sizes are N rows and R requests."""
    shapes = _shapes(proto)
    per_row = per_request = 0
    chosen: dict[str, int] = {}
    for node in proto.graph.node:
        if node.op_type not in ("MatMul", "Gemm", "QGemm"):
            continue
        out, inner = shapes[node.output[0]], shapes[node.input[0]][-1]
        if node.op_type == "Gemm" and any(a.name == "transA" and a.i for a in node.attribute):
            inner = shapes[node.input[0]][0]
        cost = prod(size for size in (*out, inner) if isinstance(size, int))
        if ROWS in out:
            per_row += cost
        elif REQUESTS in out:
            per_request += cost
        elif groups := [size for size in out if isinstance(size, str)]:
            chosen[groups[0]] = chosen.get(groups[0], 0) + cost
    if chosen:
        (k,) = (size for size in shapes[CHOICES] if isinstance(size, int))
        per_row += k * sum(chosen.values()) // len(chosen)
    return Macs(per_row, per_request)


def _shapes(proto: onnx.ModelProto) -> dict[str, tuple[int | str, ...]]:
    """Sizes of every value: a number, or the name of a free size."""
    graph = proto.graph
    shapes: dict[str, tuple[int | str, ...]] = {t.name: tuple(t.dims) for t in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        shapes[value.name] = tuple(d.dim_param or d.dim_value for d in dims)
    return shapes
