"""The linear model of the small bundle: its weights, its formula in numpy, and its ONNX graph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from service.contract.encode import EncodedBlock
from service.contract.layout import entity_layout
from service.contract.manifest import GraphInput
from service.contract.schema import Entity, FeatureSchema
from service.features.ids import id_limits


@dataclass(frozen=True)
class Weights:
    """Of one graph: id weights (total table rows,), number weights (F,), per-domain rows (D+1,)."""

    ids: dict[Entity, NDArray[np.float32]]
    offsets: dict[Entity, NDArray[np.int32]]
    floats: dict[Entity, NDArray[np.float32]]
    domain: NDArray[np.float32]
    scale: NDArray[np.float32]
    bias: NDArray[np.float32]


def make_weights(schema: FeatureSchema, seed: int) -> Weights:
    """Random weights; the same seed gives the same."""
    rng = np.random.default_rng(seed)
    ids, offsets, floats = {}, {}, {}
    for entity in Entity:
        layout = entity_layout(schema, entity)
        limits = id_limits(schema, layout)
        offsets[entity] = np.concatenate([[0], np.cumsum(limits)[:-1]]).astype(np.int32)
        ids[entity] = rng.normal(0, 0.4, int(limits.sum())).astype(np.float32)
        floats[entity] = rng.normal(0, 0.4, layout.float_width).astype(np.float32)
    rows = schema.num_domains + 1
    return Weights(
        ids,
        offsets,
        floats,
        rng.normal(0, 1, rows).astype(np.float32),
        rng.uniform(0.5, 1.5, rows).astype(np.float32),
        rng.normal(-1, 0.5, rows).astype(np.float32),
    )


def reference(
    weights: Weights,
    blocks: dict[Entity, EncodedBlock],
    domain: NDArray[Any],
    request_index: NDArray[Any],
) -> NDArray[np.float64]:
    """The formula of `tests.support.bundles`, row by row in float64: (N,) probabilities."""

    def side(entity: Entity, row: int) -> float:
        block = blocks[entity]
        total = sum(
            float(weights.ids[entity][int(value) + int(offset)])
            for value, offset in zip(block.ints[row], weights.offsets[entity], strict=True)
        )
        return total + float(block.floats[row].astype(float) @ weights.floats[entity].astype(float))

    scores = []
    for n, r in enumerate(request_index):
        d = int(domain[r])
        logit = side(Entity.USER, int(r)) + side(Entity.CONTEXT, int(r)) + side(Entity.ITEM, n)
        logit += float(weights.domain[d])
        scores.append(1 / (1 + np.exp(-(float(weights.scale[d]) * logit + float(weights.bias[d])))))
    return np.array(scores)


def graph_inputs(schema: FeatureSchema) -> tuple[GraphInput, ...]:
    """The manifest's inputs; the context has no numbers and so no such input."""
    inputs = []
    for entity in (Entity.USER, Entity.CONTEXT, Entity.ITEM):
        layout = entity_layout(schema, entity)
        if layout.int_width:
            inputs.append(
                GraphInput(
                    name=f"{entity}_ints", source=f"{entity}.ints", dtype="int32", width=layout.int_width
                )
            )
        if layout.float_width:
            inputs.append(
                GraphInput(
                    name=f"{entity}_floats",
                    source=f"{entity}.floats",
                    dtype="float32",
                    width=layout.float_width,
                )
            )
    inputs.append(GraphInput(name="domain", source="domain", dtype="int64", width=0))
    inputs.append(GraphInput(name="request_index", source="request_index", dtype="int64", width=0))
    return tuple(inputs)


BALLAST_WIDTH = 512


def write_graph(
    path: Path, schema: FeatureSchema, weights: Weights, *, external: str, ballast: int = 0
) -> None:
    """The formula as an ONNX graph with its weights in a file beside it.

    Args:
        path: Of the graph.
        schema: Of the rows.
        weights: Of the formula.
        external: Name of the file of weights.
        ballast: Products with a matrix of 512 x 512 at every row that change no score: they take time.
    """
    nodes, constants = [], []

    def constant(name: str, values: NDArray[Any]) -> str:
        constants.append(numpy_helper.from_array(values, name))
        return name

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    axis = constant("axis", np.array([1], np.int64))
    flat = constant("flat", np.array([-1], np.int64))

    def side(entity: Entity) -> str:
        moved = node(
            "Add", [f"{entity}_ints", constant(f"{entity}_off", weights.offsets[entity])], f"{entity}_at"
        )
        found = node("Gather", [constant(f"{entity}_w", weights.ids[entity]), moved], f"{entity}_found")
        total = node("ReduceSum", [found, axis], f"{entity}_sum", keepdims=0)
        if not len(weights.floats[entity]):
            return total
        column = constant(f"{entity}_f", weights.floats[entity][:, None])
        product = node("MatMul", [f"{entity}_floats", column], f"{entity}_mm")
        return node("Add", [total, node("Reshape", [product, flat], f"{entity}_mv")], f"{entity}_logit")

    once = node("Add", [side(Entity.USER), side(Entity.CONTEXT)], "once")
    once = node("Add", [once, node("Gather", [constant("t", weights.domain), "domain"], "t_d")], "once_d")
    rows = node("Add", [node("Gather", [once, "request_index"], "once_n"), side(Entity.ITEM)], "logit")
    if ballast:
        wide = node("Reshape", [rows, constant("wide", np.array([-1, 1], np.int64))], "ballast_in")
        ones = constant("ones", np.ones((1, BALLAST_WIDTH), np.float32))
        wide = node("MatMul", [wide, ones], "ballast_0")
        same = constant("same", np.eye(BALLAST_WIDTH, dtype=np.float32))
        for layer in range(ballast):
            wide = node("MatMul", [wide, same], f"ballast_{layer + 1}")
        nothing = node("ReduceSum", [wide, axis], "ballast_sum", keepdims=0)
        nothing = node("Mul", [nothing, constant("zero", np.zeros(1, np.float32))], "nothing")
        rows = node("Add", [rows, nothing], "with_ballast")
    for name, values, kind in (("scale", weights.scale, "Mul"), ("bias", weights.bias, "Add")):
        per_request = node("Gather", [constant(name, values), "domain"], f"{name}_d")
        rows = node(
            kind, [rows, node("Gather", [per_request, "request_index"], f"{name}_n")], f"after_{name}"
        )
    node("Sigmoid", [rows], "probability")
    kinds = {"int32": TensorProto.INT32, "int64": TensorProto.INT64, "float32": TensorProto.FLOAT}
    size = {"user": "R", "context": "R", "domain": "R", "item": "N", "request": "N"}
    inputs = []
    for i in graph_inputs(schema):
        letter = size[i.name.split("_")[0]]
        shape = [letter, i.width] if i.width else [letter]
        inputs.append(helper.make_tensor_value_info(i.name, kinds[i.dtype], shape))
    output = helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["N"])
    graph = helper.make_graph(nodes, "small", inputs, [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path, save_as_external_data=True, location=external, size_threshold=256)
