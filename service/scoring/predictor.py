"""One ONNX graph, ready to run.

Opens a session where the graph may run and fills its inputs from encoded rows as the manifest's `GraphInput`
list says. Invariant: what `run` returns is (N,) float32 and finite, or it raises.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from service.contract.encode import EncodedBlock
from service.contract.manifest import Graph, GraphInput, InputSource
from service.errors import GraphError, GraphRunError, NotFiniteError
from service.scoring.binding import BoundRun
from service.scoring.clock import RunClock
from service.scoring.placement import Device, Placement
from service.scoring.runtime import unchecked_run
from service.scoring.session import open_session

WARM_UP_ROWS = (1, 10, 100)
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
        device: Where it runs; one that is named is had or refused, `auto` takes the best there is.
        id_limits: For debugging: exclusive upper bounds of ids by source, e.g. {"user.ints": (I,) int64};
            when given, every run checks its ids first.

    Attributes:
        graph: As given.
        placement: Where it runs.
        clock: What runs take.

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
        self._session, self.placement = open_session(path, device, graph.gpu)
        _check_signature(path, graph, self._session)
        self._run = _runner(self._session, graph, self.placement)
        self._outputs = [graph.output]
        self._tell_experts: ExpertSink | None = None
        self._names = [entry.name for entry in graph.inputs]
        self._take: Callable[[GraphRows], Sequence[NDArray[Any]]] = _taker(graph.inputs)
        self._casts = [(e.name, np.dtype(e.dtype)) for e in graph.inputs if e.dtype != _encoded_as(e.source)]
        self._limits = {} if id_limits is None else {e.name: id_limits.get(e.source) for e in graph.inputs}
        # CUDA sessions are not safe to run from several threads at once, nor are buffers that runs share.
        self._lock = threading.Lock() if self.placement.on_gpu else None

    def inputs(self, rows: GraphRows) -> dict[str, NDArray[Any]]:
        """The graph's inputs by name, cast where the graph asks for another integer width."""
        inputs = dict(zip(self._names, self._take(rows), strict=True))
        for name, dtype in self._casts:
            inputs[name] = inputs[name].astype(dtype, copy=False)
        return inputs

    @property
    def warm_up_rows(self) -> tuple[int, ...]:
        """Sizes N to run once before traffic: on a GPU every padded one, the largest first.

        A provider that compiles for the range of sizes it has seen then does so before the first request.
        """
        sizes = self.placement.rows
        return (sizes[-1], *sizes[:-1]) if sizes else WARM_UP_ROWS

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
        except GraphRunError:
            raise
        except Exception as error:
            raise GraphRunError(f"{self._path.name}: {type(error).__name__}: {error}") from error
        scores = found[0]
        if scores.ndim != 1:
            raise GraphRunError(f"{self._path.name}: output must be (N,), got {scores.shape}")
        if not math.isfinite(scores.sum(dtype=np.float64)):
            row = int(np.flatnonzero(~np.isfinite(scores))[0])
            raise NotFiniteError(f"{self._path.name}: row {row} has no finite score", row=row)
        return found


def _runner(session: Any, graph: Graph, placement: Placement) -> Callable[[list[str], Any, None], list[Any]]:
    """What runs a session: natively, or bound to the device in the sizes of its plan."""
    if not placement.rows:
        return unchecked_run(session)
    return BoundRun(
        session,
        graph,
        rows=placement.rows,
        requests=placement.requests,
        device="cuda",
        captures=placement.captures,
    )


def _encoded_as(source: InputSource) -> str:
    """Name of the dtype in which rows hold what a source names."""
    if source.endswith(".floats"):
        return "float32"
    return "int32" if source.endswith(".ints") else "int64"


def _taker(inputs: Sequence[GraphInput]) -> Callable[[GraphRows], Sequence[NDArray[Any]]]:
    """Picks the arrays of all inputs, in order."""
    pick: Callable[[GraphRows], Any] = attrgetter(*(entry.source for entry in inputs))
    return pick if len(inputs) > 1 else lambda rows: (pick(rows),)


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


__all__ = ["ExpertSink", "GraphRows", "Predictor"]
