"""Runs of a graph with inputs and outputs bound to a device, in a few sizes.

R requests and N candidates are padded to the next sizes of a plan. Each pair of sizes has buffers on the
device whose addresses never change, so that a CUDA graph recorded once is replayed. Added candidates are rows
of zeros of the first request, added requests repeat the first one; what they score is dropped. Invariant:
what comes back is what the plain run returns, since a row's score does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from service.contract.manifest import Graph
from service.errors import GraphRunError
from service.scoring.runtime import onnxruntime, unchecked_run

GRAPH_ID: Final = "gpu_graph_id"
NO_CAPTURE: Final = "-1"
DTYPES: Final = {"tensor(float)": np.float32, "tensor(int64)": np.int64}

Size = tuple[int, int]
"""Padded R and N."""


@dataclass(frozen=True)
class _Bound:
    """Buffers of one size.

    Attributes:
        staged: Padded inputs on the host, by name.
        inputs: The same on the device.
        outputs: On the device, (N, ...), by name.
        binding: Of all of them.
        options: Of the run: which CUDA graph it is, or none.
    """

    staged: dict[str, NDArray[Any]]
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    binding: Any
    options: Any


class BoundRun:
    """Runs a session as `unchecked_run` does, on bound and padded arrays.

    One call at a time: buffers are shared by all runs of a size.

    Args:
        session: Open; what it cannot pad it runs as it is.
        graph: Its entry in the manifest.
        rows: Sizes to which N is padded, ascending.
        requests: Sizes to which R is padded, ascending.
        device: Where buffers are, in the runtime's words.
        captures: Whether runs of one request are recorded as CUDA graphs.
    """

    def __init__(
        self,
        session: Any,
        graph: Graph,
        *,
        rows: Sequence[int],
        requests: Sequence[int],
        device: str,
        captures: bool = False,
    ) -> None:
        self._session = session
        self._plain = unchecked_run(session)
        self._rows, self._requests = tuple(rows), tuple(requests)
        self._device = device
        self._captures = captures
        self._by_row = {e.name for e in graph.inputs if e.source.startswith("item.")} | {
            e.name for e in graph.inputs if e.source == "request_index"
        }
        self._specs = {e.name: (np.dtype(e.dtype), (e.width,) if e.width else ()) for e in graph.inputs}
        self._widths = {o.name: (DTYPES.get(o.type), o.shape[1:]) for o in session.get_outputs()}
        self._bound: dict[Size, _Bound] = {}
        self._uncaptured = onnxruntime.RunOptions()
        if captures:
            self._uncaptured.add_run_config_entry(GRAPH_ID, NO_CAPTURE)

    def __call__(
        self, outputs: Sequence[str], inputs: Mapping[str, NDArray[Any]], _: None = None
    ) -> list[NDArray[Any]]:
        """Outputs by name, each (N, ...), of R requests and N candidates.

        Raises:
            GraphRunError: Inputs do not have the graph's types and widths, or disagree on R or N.
        """
        num_requests, num_rows = self._count(inputs)
        size = self.padded(num_requests, num_rows)
        if size is None or not all(self._fixed(name) for name in outputs):
            found: list[NDArray[Any]] = self._plain(list(outputs), inputs, self._uncaptured)
            return found
        bound = self._bound.get(size)
        if bound is None:
            bound = self._bound[size] = self._bind(size)
        for name, values in inputs.items():
            staged, count = bound.staged[name], len(values)
            staged[:count] = values
            staged[count:] = values[0] if count and name not in self._by_row else 0
            bound.inputs[name].update_inplace(staged)
        self._session.run_with_iobinding(bound.binding, bound.options)
        return [np.array(bound.outputs[name].numpy()[:num_rows]) for name in outputs]

    def padded(self, num_requests: int, num_rows: int) -> Size | None:
        """R and N as they are run; None where they are larger than every size."""
        if not self._by_row or num_requests > self._requests[-1] or num_rows > self._rows[-1]:
            return None
        at_least = [
            next(size for size in sizes if size >= count)
            for sizes, count in ((self._requests, num_requests), (self._rows, num_rows))
        ]
        return at_least[0], at_least[1]

    def _count(self, inputs: Mapping[str, NDArray[Any]]) -> Size:
        """R and N, which all inputs agree on."""
        if odd := set(inputs) ^ set(self._specs):
            raise GraphRunError(f"inputs given and inputs of the graph differ in {sorted(odd)}")
        counts: dict[bool, int] = {}
        for name, (dtype, width) in self._specs.items():
            values = inputs[name]
            count = counts.setdefault(name in self._by_row, len(values))
            if values.dtype != dtype or values.shape != (count, *width):
                raise GraphRunError(
                    f"input '{name}' must be {(count, *width)} {dtype}, got {values.shape} {values.dtype}"
                )
        return counts.get(False, 1), counts.get(True, 0)

    def _fixed(self, name: str) -> bool:
        """Whether an output is as wide in every run, so that a buffer can wait for it."""
        dtype, width = self._widths[name]
        return dtype is not None and all(isinstance(size, int) for size in width)

    def _bind(self, size: Size) -> _Bound:
        requests, rows = size
        make = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        binding = self._session.io_binding()
        staged, inputs, outputs = {}, {}, {}
        for name, (dtype, width) in self._specs.items():
            shape = (rows if name in self._by_row else requests, *width)
            staged[name] = np.zeros(shape, dtype)
            inputs[name] = make(shape, dtype.type, self._device, 0)
            binding.bind_ortvalue_input(name, inputs[name])
        for name, (kind, width) in self._widths.items():
            if self._fixed(name):
                outputs[name] = make((rows, *width), kind, self._device, 0)
                binding.bind_ortvalue_output(name, outputs[name])
        return _Bound(staged, inputs, outputs, binding, self._options(size))

    def _options(self, size: Size) -> Any:
        """A CUDA graph has a number of its own; only sizes of one request have graphs."""
        if not self._captures or size[0] != 1:
            return self._uncaptured
        options = onnxruntime.RunOptions()
        options.add_run_config_entry(GRAPH_ID, str(self._rows.index(size[1]) + 1))
        return options


__all__ = ["BoundRun"]
