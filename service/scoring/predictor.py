"""One ONNX graph, ready to run.

Opens a session by file path (external weights are found beside it and memory-mapped) and fills its
inputs from encoded rows as the manifest's `GraphInput` list says. Invariant: what `run` returns is
(N,) float32 and finite, or it raises.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from service.contract.encode import EncodedBlock
from service.contract.manifest import Graph, GraphInput, InputSource
from service.errors import GraphError, GraphRunError, NotFiniteError, RuntimeMissingError
from service.scoring.clock import RunClock
from service.scoring.runtime import onnxruntime, unchecked_run

Device = Literal["cpu", "cuda"]
PROVIDERS: Final[dict[Device, str]] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
ORT_TYPES: Final = {"int32": "tensor(int32)", "int64": "tensor(int64)", "float32": "tensor(float)"}


ExpertSink = Callable[[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]], None]
"""Takes experts (N, k), domain indices (R,) and request_index (N,) of one run."""


class GraphRows(msgspec.Struct, frozen=True):
    """Encoded rows of one run: R requests, N candidates. An `InputSource` is the path of an attribute here.

    Attributes:
        user: R rows.
        context: R rows.
        item: N rows.
        domain: (R,) int64 domain indices.
        request_index: (N,) int64 in [0, R): whose candidate a row is.
    """

    user: EncodedBlock
    context: EncodedBlock
    item: EncodedBlock
    domain: NDArray[np.int64]
    request_index: NDArray[np.int64]


class Predictor:
    """A session and the recipe of its inputs.

    Args:
        path: The graph's file.
        graph: Its entry in the manifest.
        device: Where it runs; a device that is not there is refused, never replaced.
        id_limits: For debugging: exclusive upper bounds of ids by source, e.g. {"user.ints": (I,) int64};
            when given, every run checks its ids first.

    Raises:
        GraphError: The file cannot be opened, or its inputs and output differ from the manifest.
        RuntimeMissingError: The installed onnxruntime lacks the device.
    """

    def __init__(
        self,
        path: Path,
        graph: Graph,
        *,
        device: Device = "cpu",
        id_limits: Mapping[InputSource, NDArray[np.int64]] | None = None,
    ) -> None:
        self.graph = graph
        self.clock = RunClock()
        self._path = path
        self._session = _open_session(path, device)
        _check_signature(path, graph, self._session)
        self._run = unchecked_run(self._session)
        self._outputs = [graph.output]
        self._tell_experts: ExpertSink | None = None
        self._names = [entry.name for entry in graph.inputs]
        self._take: Callable[[GraphRows], Sequence[NDArray[Any]]] = _taker(graph.inputs)
        self._casts = [(e.name, np.dtype(e.dtype)) for e in graph.inputs if e.dtype != _encoded_as(e.source)]
        self._limits = {} if id_limits is None else {e.name: id_limits.get(e.source) for e in graph.inputs}
        # CUDA sessions are not safe to run from several threads at once.
        self._lock = threading.Lock() if device == "cuda" else None

    def inputs(self, rows: GraphRows) -> dict[str, NDArray[Any]]:
        """The graph's inputs by name, cast where the graph asks for another integer width."""
        inputs = dict(zip(self._names, self._take(rows), strict=True))
        for name, dtype in self._casts:
            inputs[name] = inputs[name].astype(dtype, copy=False)
        return inputs

    def tell_experts(self, sink: ExpertSink) -> None:
        """From now on hand the experts that rows chose to a sink, at every `score`.

        Raises:
            GraphError: The manifest names no such output of the graph.
        """
        if self.graph.experts is None:
            raise GraphError(f"{self._path}: the manifest names no output with chosen experts")
        self._tell_experts = sink
        self._outputs = [self.graph.output, self.graph.experts.output]

    def score(self, rows: GraphRows) -> NDArray[np.float32]:
        """Calibrated probabilities, (N,) float32.

        Raises:
            GraphRunError: As `run`.
        """
        if self._tell_experts is None:
            return self.run(self.inputs(rows))
        scores, experts = self._checked_run(self.inputs(rows))
        self._tell_experts(experts, rows.domain, rows.request_index)
        return scores

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Run the graph on inputs given by name.

        Returns:
            Probabilities, (N,) float32.

        Raises:
            GraphRunError: The graph failed, returned another shape, or a number that is not finite;
                with `id_limits`, an id was out of range.
        """
        return self._checked_run(inputs)[0]

    def _checked_run(self, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """All outputs that are asked for, the scores first and checked."""
        for name, limits in self._limits.items():
            if limits is not None:
                _check_ids(name, inputs[name], limits)
        try:
            if self._lock is None:
                found: list[NDArray[Any]] = self._run(self._outputs, inputs, None)
            else:
                with self._lock:
                    found = self._run(self._outputs, inputs, None)
        except Exception as error:
            raise GraphRunError(f"{self._path.name}: {type(error).__name__}: {error}") from error
        scores = found[0]
        if scores.ndim != 1:
            raise GraphRunError(f"{self._path.name}: output must be (N,), got {scores.shape}")
        if not math.isfinite(scores.sum(dtype=np.float64)):
            row = int(np.flatnonzero(~np.isfinite(scores))[0])
            raise NotFiniteError(f"{self._path.name}: row {row} has no finite score", row=row)
        return found


def _encoded_as(source: InputSource) -> str:
    """Name of the dtype in which rows hold what a source names."""
    if source.endswith(".floats"):
        return "float32"
    return "int32" if source.endswith(".ints") else "int64"


def _taker(inputs: Sequence[GraphInput]) -> Callable[[GraphRows], Sequence[NDArray[Any]]]:
    """Picks the arrays of all inputs, in order."""
    pick: Callable[[GraphRows], Any] = attrgetter(*(entry.source for entry in inputs))
    return pick if len(inputs) > 1 else lambda rows: (pick(rows),)


def _open_session(path: Path, device: Device) -> Any:
    """A sequential session: parallel runs come from processes, not from threads inside one run."""
    provider = PROVIDERS[device]
    if provider not in onnxruntime.get_available_providers():
        raise RuntimeMissingError(
            f"this onnxruntime has no {provider}; for device '{device}' install the extra "
            f"`{'gpu' if device == 'cuda' else 'cpu'}`"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.add_session_config_entry("session.disable_prepacking", "0")
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # noqa: BLE001 - the runtime raises its own unrelated classes
        raise GraphError(
            f"{path}: cannot be opened as an ONNX graph ({type(error).__name__}: {error})"
        ) from None
    if provider not in session.get_providers():
        raise GraphError(f"{path}: the runtime fell back to {session.get_providers()} instead of {provider}")
    return session


def _check_signature(path: Path, graph: Graph, session: Any) -> None:
    found = {entry.name: entry for entry in session.get_inputs()}
    if odd := set(found) ^ {entry.name for entry in graph.inputs}:
        raise GraphError(f"{path}: graph and manifest disagree on inputs {sorted(odd)}")
    for entry in graph.inputs:
        _check_input(path, entry, found[entry.name])
    outputs = {output.name: output for output in session.get_outputs()}
    if graph.output not in outputs:
        raise GraphError(f"{path}: has no output '{graph.output}'; outputs are {sorted(outputs)}")
    output = outputs[graph.output]
    if output.type != ORT_TYPES["float32"] or len(output.shape) != 1:
        raise GraphError(
            f"{path}: output '{graph.output}' must be (N,) float32, got {output.shape} {output.type}"
        )
    if graph.experts is not None:
        chosen = outputs.get(graph.experts.output)
        if chosen is None or chosen.type != ORT_TYPES["int64"] or len(chosen.shape) != 2:
            raise GraphError(
                f"{path}: output '{graph.experts.output}' must be (N, k) int64, got "
                f"{None if chosen is None else (chosen.shape, chosen.type)}"
            )


def _check_input(path: Path, entry: GraphInput, found: Any) -> None:
    if found.type != ORT_TYPES[entry.dtype]:
        raise GraphError(f"{path}: input '{entry.name}' is {found.type}, the manifest says {entry.dtype}")
    rank = 2 if entry.width else 1
    width = found.shape[1] if len(found.shape) == 2 else 0
    if len(found.shape) != rank or (isinstance(width, int) and width != entry.width):
        raise GraphError(
            f"{path}: input '{entry.name}' has shape {found.shape}, the manifest says width {entry.width}"
        )


def _check_ids(name: str, ids: NDArray[Any], limits: NDArray[np.int64]) -> None:
    bad = (ids < 0) | (ids >= limits)
    if bad.any():
        row, column = (int(x) for x in np.argwhere(bad)[0])
        raise GraphRunError(
            f"input '{name}', row {row}, column {column}: id {int(ids[row, column])} "
            f"is not in [0, {int(limits[column])})"
        )


__all__ = ["Device", "ExpertSink", "GraphRows", "Predictor"]
