"""Write a scoring graph as ONNX, weights in external files beside it.

Inputs that the model never reads (a block of width 0, say) are removed from the graph, so the
manifest lists exactly what the service must fill.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any, Literal

import onnx
import torch

from export.gpu_plan import gpu_plan
from export.graph import (
    CALIBRATOR_BIAS,
    CALIBRATOR_SCALE,
    EXPERTS,
    OUTPUT,
    ScoringGraph,
    example_inputs,
    graph_inputs,
)
from export.macs import count_macs
from export.passes import keep_lines, optimise
from export.prepack import packed_weights
from export.weights import WeightFiles
from service.contract.manifest import Graph, GraphInput
from service.contract.schema import FeatureSchema

OPSET = 20
Form = Literal["whole", "cluster", "domain"]
# Traced with at least two requests and rows, or the exporter bakes a size of one into the graph.
EXAMPLE_REQUESTS = 3
EXAMPLE_ROWS = 5


def export_graph(
    graph: ScoringGraph,
    schema: FeatureSchema,
    folder: Path,
    *,
    name: str = "whole",
    form: Form = "whole",
    weights: WeightFiles | None = None,
) -> Graph:
    """Export to `folder/graphs/<name>.onnx`, weights to `<name>.bin` beside it unless stored there already.

    Args:
        graph: In evaluation mode.
        schema: Its schema.
        folder: Root of the bundle that is being written.
        name: Key of the graph.
        form: What the graph is specialised for.
        weights: Of the graphs that were exported to the folder before; None for the first.

    Returns:
        The manifest's entry, without the parity figure.
    """
    weights = WeightFiles(folder / "graphs") if weights is None else weights
    entry = write_graph(trace_graph(graph, schema), schema, folder, name=name, form=form, weights=weights)
    return entry.model_copy(update={"experts": graph.experts})


def trace_graph(graph: ScoringGraph, schema: FeatureSchema) -> onnx.ModelProto:
    """The graph with its weights inside, rewritten, without inputs that nothing reads.

    Args:
        graph: In evaluation mode.
        schema: Its schema.
    """
    proto = _trace(graph, schema)
    optimise(proto)
    if isinstance(graph, ScoringGraph):
        scale, bias = graph.lines
        keep_lines(proto, OUTPUT, (CALIBRATOR_SCALE, scale), (CALIBRATOR_BIAS, bias))
    _drop_unused_inputs(proto)
    _strip_traces(proto)
    onnx.checker.check_model(proto)
    return proto


def write_graph(
    proto: onnx.ModelProto,
    schema: FeatureSchema,
    folder: Path,
    *,
    name: str,
    form: Form,
    weights: WeightFiles,
    precision: str = "fp32",
) -> Graph:
    """Write `graphs/<name>.onnx`, with what is new of its weights beside it.

    Args:
        proto: As traced, or a variant of it; its large weights are moved out.
        schema: Its schema.
        folder: Root of the bundle that is being written.
        name: Key of the graph.
        form: What the graph is specialised for.
        weights: Of the graphs that were exported to the folder before.
        precision: Of the weights.

    Returns:
        The manifest's entry, without the parity figure.
    """
    macs = count_macs(proto)
    graphs = folder / "graphs"
    graphs.mkdir(parents=True, exist_ok=True)
    external = weights.move_out(proto, f"{name}.bin", packed_weights(proto))
    # The runtime infers shapes itself and would keep these as well: 0.1 MiB a session of a large graph.
    del proto.graph.value_info[:]
    (graphs / f"{name}.onnx").write_bytes(proto.SerializeToString(deterministic=True))
    return Graph(
        file=f"graphs/{name}.onnx",
        external_files=tuple(f"graphs/{file}" for file in external),
        inputs=used_inputs(schema, {value.name for value in proto.graph.input}),
        output=OUTPUT,
        form=form,
        precision=precision,
        options={
            "opset": OPSET,
            "num_nodes": len(proto.graph.node),
            "macs_per_row": macs.per_row,
            "macs_per_request": macs.per_request,
        },
        gpu=gpu_plan(proto, precision),
    )


def used_inputs(schema: FeatureSchema, used: set[str]) -> tuple[GraphInput, ...]:
    """Inputs by name, in the order of the graph."""
    return tuple(spec for spec in graph_inputs(schema) if spec.name in used)


def _trace(graph: ScoringGraph, schema: FeatureSchema) -> onnx.ModelProto:
    """The model as a protobuf with free sizes R and N."""
    requests, rows = torch.export.Dim("R", min=1), torch.export.Dim("N", min=0)
    example = example_inputs(schema, num_requests=EXAMPLE_REQUESTS, num_rows=EXAMPLE_ROWS)
    at_row = ("item_ints", "item_floats", "request_index")
    shapes: dict[str, Any] = {name: {0: rows if name in at_row else requests} for name in example}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecation notes are not ours to fix
        program = torch.onnx.export(
            graph,
            args=tuple(example.values()),
            input_names=list(example),
            output_names=[OUTPUT] if graph.experts is None else [OUTPUT, EXPERTS],
            dynamic_shapes=tuple(shapes.values()),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    return program.model_proto


def _drop_unused_inputs(proto: onnx.ModelProto) -> None:
    """Remove graph inputs without a reader."""
    read = {name for node in proto.graph.node for name in node.input}
    for value in [value for value in proto.graph.input if value.name not in read]:
        proto.graph.input.remove(value)


def _strip_traces(proto: onnx.ModelProto) -> None:
    """Remove the exporter's stack traces: they hold source paths of the machine that exported."""
    proto.doc_string = ""
    proto.graph.doc_string = ""
    del proto.metadata_props[:]
    del proto.graph.metadata_props[:]
    for part in (*proto.graph.node, *proto.graph.value_info, *proto.graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    for value in (*proto.graph.input, *proto.graph.output):
        del value.metadata_props[:]
        value.doc_string = ""
