"""Who makes and who reads each value of an ONNX graph.

Reads a protobuf and changes it in place. Invariant: the index describes the graph as it was when it was made,
plus what was added through it; make a new one after other changes.
"""

from __future__ import annotations

from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

Shape = tuple[int | str, ...]


class GraphIndex:
    """Lookups by name of value.

    Args:
        proto: The graph.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._graph = proto.graph
        self._constants = {tensor.name: tensor for tensor in self._graph.initializer}
        values = (*self._graph.input, *self._graph.value_info, *self._graph.output)
        self._values = {value.name: value for value in values}
        self._producers = {name: node for node in self._graph.node for name in node.output}
        self._readers: dict[str, list[NodeProto]] = {}
        for node in self._graph.node:
            for name in dict.fromkeys(node.input):
                self._readers.setdefault(name, []).append(node)

    def producer(self, name: str) -> NodeProto | None:
        """The node that makes a value; None for inputs and constants."""
        return self._producers.get(name)

    def readers(self, name: str) -> list[NodeProto]:
        """Nodes that read a value."""
        return self._readers.get(name, [])

    def is_constant(self, name: str) -> bool:
        """Whether a value is stored in the file."""
        return name in self._constants

    def constant(self, name: str) -> NDArray[Any]:
        """A stored value."""
        return numpy_helper.to_array(self._constants[name])

    def shape(self, name: str) -> Shape:
        """Sizes of a value, numbers or names of free sizes; () where they are not noted."""
        if name in self._constants:
            return tuple(self._constants[name].dims)
        if name not in self._values:
            return ()
        dims = self._values[name].type.tensor_type.shape.dim
        return tuple(d.dim_param or d.dim_value for d in dims)

    def dtype(self, name: str) -> int:
        """ONNX number of a value's type; 0 where it is not noted."""
        if name in self._constants:
            return int(self._constants[name].data_type)
        return int(self._values[name].type.tensor_type.elem_type) if name in self._values else 0

    def gathered_from(self, name: str, index: str) -> str | None:
        """The value whose rows an index spreads to this one; None where it is made otherwise."""
        node = self.producer(name)
        if node is None or node.op_type != "Gather" or node.input[1] != index:
            return None
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        return node.input[0] if axis == 0 else None

    def add_constant(self, name: str, value: NDArray[Any]) -> str:
        """Store a value; gives its name."""
        tensor = numpy_helper.from_array(value, name)
        self._graph.initializer.append(tensor)
        self._constants[name] = tensor
        return name

    def add_value(self, name: str, shape: Shape, dtype: int = onnx.TensorProto.FLOAT) -> str:
        """Note the shape of a new value; gives its name."""
        value = helper.make_tensor_value_info(name, dtype, shape)
        self._graph.value_info.append(value)
        self._values[name] = value
        return name

    def set_dtype(self, name: str, dtype: int) -> None:
        """Note another type of a value."""
        if name in self._values:
            self._values[name].type.tensor_type.elem_type = dtype

    def replace(self, old: str, new: str) -> None:
        """Let every reader of one value read another."""
        for node in self._graph.node:
            for position, name in enumerate(node.input):
                if name == old:
                    node.input[position] = new
