"""Static int8: large products of a graph on 8-bit integers, with scales fixed at export.

    x (..., K) ~ s_k (q_k - z)      unsigned, a scale per column, z 128 for signed columns, 0 after ReLU
    W' = diag(s) W ~ w_n Q_kn       signed, a scale per output n; column scales live in the weights

A product reads q and Q and adds in int32. Where its ReLU is read by other such products alone, it writes 8
bits again: adding z = 0 and cutting at 0 is the ReLU. Weights keep to 7 bits, so that pairs of products never
overflow 16 bits: processors without int8 dot products then give the same bits as those with them. Scales
depend on nothing but the calibration rows, so a row's score does not depend on its neighbours.

Source: integer-only products as in Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", CVPR 2018. We differ in a scale per activation column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from export.graph_index import GraphIndex
from export.passes import REQUEST_INDEX, is_plain_gemm, tidy

MIN_ENTRIES = 8192
"""Entries of the smallest weight that is worth quantising; below, the steps around a product cost more."""
WEIGHT_MAX = 63
ACTIVATION_MAX = 255
ZERO_OF_SIGNED = 128
MIN_SCALE_RATIO = 0.01
"""Least scale of a column, as a share of the largest: one that never fired must not be cut at once."""
MICROSOFT = "com.microsoft"

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Range:
    """What a value was over the calibration rows.

    Attributes:
        low, high: (K,) float32 by column.
    """

    low: Floats
    high: Floats


@dataclass(frozen=True)
class _Scale:
    """How a value is written in 8 bits.

    Attributes:
        name: Of the uint8 value.
        step: (K,) float32, s_k.
        zero: z.
    """

    name: str
    step: Floats
    zero: int


def measured_values(proto: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the values whose ranges `quantise` needs; none where no product is large enough."""
    index = GraphIndex(proto)
    names: dict[str, None] = {}
    for node in _products(index, proto):
        names[node.input[0]] = None
        activation = _activation(index, node)
        if activation is not None:
            names[activation.output[0]] = None
    return tuple(names)


def quantise(proto: onnx.ModelProto, ranges: Mapping[str, Range]) -> onnx.ModelProto:
    """A copy of an fp32 graph with its large products in int8.

    Args:
        proto: Weights inside.
        ranges: Of every value that `measured_values` names.
    """
    own = onnx.ModelProto()
    own.CopyFrom(proto)
    own.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    _Quantiser(own, ranges).run()
    tidy(own)
    return own


def _products(index: GraphIndex, proto: onnx.ModelProto) -> list[NodeProto]:
    return [node for node in proto.graph.node if _is_large(index, node)]


def _is_large(index: GraphIndex, node: NodeProto) -> bool:
    if node.op_type != "Gemm" or not is_plain_gemm(index, node, constant_bias=False):
        return False
    if not index.is_constant(node.input[1]) or index.dtype(node.input[1]) != TensorProto.FLOAT:
        return False
    has_bias = len(node.input) > 2 and not index.is_constant(node.input[2])
    if has_bias and index.gathered_from(node.input[2], REQUEST_INDEX) is None:
        return False
    return int(np.prod(index.constant(node.input[1]).shape)) >= MIN_ENTRIES


def _activation(index: GraphIndex, node: NodeProto) -> NodeProto | None:
    """The ReLU that alone reads a product; None where there is none."""
    readers = index.readers(node.output[0])
    return readers[0] if len(readers) == 1 and readers[0].op_type == "Relu" else None


class _Quantiser:
    """Rewrites one graph.

    Args:
        proto: Changed in place.
        ranges: By value.
    """

    def __init__(self, proto: onnx.ModelProto, ranges: Mapping[str, Range]) -> None:
        self.proto, self.ranges = proto, ranges
        self.index = GraphIndex(proto)
        self.products = {node.output[0]: node for node in _products(self.index, proto)}
        self.scales: dict[str, _Scale] = {}

    def run(self) -> None:
        """Every large product; nodes stay in an order in which values are made before they are read."""
        done: list[NodeProto] = []
        for node in list(self.proto.graph.node):
            done += self._product(node) if node.output[0] in self.products else [node]
        del self.proto.graph.node[:]
        self.proto.graph.node.extend(done)

    def _product(self, node: NodeProto) -> list[NodeProto]:
        read, before = self._read(node.input[0])
        weight = self.index.constant(node.input[1])
        if any(a.name == "transB" and a.i for a in node.attribute):
            weight = weight.T
        steps, integers = _weights(weight * read.step[:, None])
        name = node.output[0]
        bias, made = self._bias(node, steps)
        activation = _activation(self.index, node)
        small = activation is not None and self._all_products(activation.output[0])
        if activation is not None and small:
            value = activation.output[0]
            step = _positive_steps(self.ranges[value].high)
            inputs = self._inputs(name, read, integers, steps / step, bias)
            out = self.index.add_value(f"{value}_int8", self.index.shape(value), TensorProto.UINT8)
            one, zero = self._scalar(1.0, np.float32), self._scalar(0, np.uint8)
            product = helper.make_node("QGemm", [*inputs, one, zero], [out], domain=MICROSOFT)
            self.scales[value] = _Scale(out, step, 0)
        else:
            inputs = self._inputs(name, read, integers, steps, bias)
            product = helper.make_node("QGemm", inputs, [name], domain=MICROSOFT)
        return [*before, *made, product]

    def _inputs(
        self, name: str, read: _Scale, integers: NDArray[np.int8], steps: Floats, bias: str
    ) -> list[str]:
        return [
            read.name,
            self._scalar(1.0, np.float32),
            self._scalar(read.zero, np.uint8),
            self.index.add_constant(f"{name}_weight_int8", integers),
            self.index.add_constant(f"{name}_steps", steps.astype(np.float32)),
            self.index.add_constant(f"{name}_zeros", np.zeros(len(steps), np.int8)),
            bias,
        ]

    def _read(self, value: str) -> tuple[_Scale, list[NodeProto]]:
        """The 8-bit form of a value, with the nodes that make it."""
        if value in self.scales:
            return self.scales[value], []
        seen = self.ranges[value]
        signed = bool((seen.low < 0).any())
        if signed:
            step = _positive_steps(np.maximum(-seen.low, seen.high)) * (ACTIVATION_MAX / (ZERO_OF_SIGNED - 1))
        else:
            step = _positive_steps(seen.high)
        shape = self.index.shape(value)
        factors = self.index.add_constant(f"{value}_factors", (1.0 / step).astype(np.float32))
        scaled = self.index.add_value(f"{value}_scaled", shape)
        out = self.index.add_value(f"{value}_int8", shape, TensorProto.UINT8)
        zero = ZERO_OF_SIGNED if signed else 0
        nodes = [
            helper.make_node("Mul", [value, factors], [scaled]),
            helper.make_node(
                "QuantizeLinear",
                [scaled, self._scalar(1.0, np.float32), self._scalar(zero, np.uint8)],
                [out],
            ),
        ]
        self.scales[value] = _Scale(out, step.astype(np.float32), zero)
        return self.scales[value], nodes

    def _bias(self, node: NodeProto, steps: Floats) -> tuple[str, list[NodeProto]]:
        """The int32 bias of a product: a constant, or request values gathered to its rows."""
        name = node.output[0]
        if len(node.input) < 3:
            return self.index.add_constant(f"{name}_bias_int32", np.zeros(len(steps), np.int32)), []
        if self.index.is_constant(node.input[2]):
            values = np.rint(self.index.constant(node.input[2]).reshape(-1) / steps)
            return self.index.add_constant(f"{name}_bias_int32", values.astype(np.int32)), []
        gather = self.index.producer(node.input[2])
        once = node.input[2] if gather is None else gather.input[0]
        shape = self.index.shape(once)
        factors = self.index.add_constant(f"{name}_bias_factors", (1.0 / steps).astype(np.float32))
        scaled = self.index.add_value(f"{name}_bias_scaled", shape)
        rounded = self.index.add_value(f"{name}_bias_rounded", shape)
        integers = self.index.add_value(f"{name}_bias_once", shape, TensorProto.INT32)
        spread = self.index.add_value(f"{name}_bias_int32", self.index.shape(name), TensorProto.INT32)
        return spread, [
            helper.make_node("Mul", [once, factors], [scaled]),
            helper.make_node("Round", [scaled], [rounded]),
            helper.make_node("Cast", [rounded], [integers], to=TensorProto.INT32),
            helper.make_node("Gather", [integers, REQUEST_INDEX], [spread], axis=0),
        ]

    def _all_products(self, value: str) -> bool:
        readers = self.index.readers(value)
        return bool(readers) and all(
            node.output[0] in self.products and node.input[0] == value for node in readers
        )

    def _scalar(self, value: float, dtype: type[np.generic]) -> str:
        name = f"constant_{np.dtype(dtype).name}_{value:g}"
        if not self.index.is_constant(name):
            self.index.add_constant(name, np.array(value, dtype))
        return name


def _weights(weight: Floats) -> tuple[Floats, NDArray[np.int8]]:
    """Steps (N,) and integers (K, N) of a weight."""
    largest = np.abs(weight).max(axis=0)
    steps = np.where(largest > 0, largest / WEIGHT_MAX, 1.0).astype(np.float32)
    return steps, np.rint(weight / steps).astype(np.int8)


def _positive_steps(high: Floats) -> Floats:
    """Steps (K,) that write 0..high in 8 bits."""
    tiny = float(np.finfo(np.float32).tiny) * ACTIVATION_MAX
    largest = max(float(high.max(initial=0.0)), tiny)
    steps: Floats = (np.maximum(high, MIN_SCALE_RATIO * largest) / ACTIVATION_MAX).astype(np.float32)
    return steps


def merge_ranges(parts: Sequence[Mapping[str, Range]]) -> dict[str, Range]:
    """Ranges over all of some batches."""
    return {
        name: Range(
            np.min([part[name].low for part in parts], axis=0),
            np.max([part[name].high for part in parts], axis=0),
        )
        for name in parts[0]
    }
