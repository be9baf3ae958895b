"""`POST /v2/models/{name}/infer`: raw tensors of a graph in, its output out (Open Inference Protocol v2).

For callers that encode rows themselves. Stands in a frame like `/score`, whose admission it shares; it sees
no features, routing or exposures. Invariant: nothing reaches a graph that could read outside of its tables:
every id, domain and request index is checked against the schema first.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.api.frame import Call
from service.api.respond import JSON, send_reply
from service.api.served import find_bundle
from service.api.tensors import (
    BINARY_SIZE,
    LENGTH_HEADER,
    InferReply,
    InferRequest,
    ReplyOutput,
    Tensor,
    decode_infer,
    encode_infer,
    read_tensors,
    shown,
    split_body,
)
from service.api.translate import Limits, decode_as
from service.bundles.registry import LoadedBundle
from service.contract.encode import EncodedBlock
from service.contract.manifest import Graph, GraphInput, InputSource
from service.contract.schema import Entity
from service.errors import (
    InvalidRequest,
    NotFiniteError,
    NotFound,
    ServiceError,
    TooLong,
)
from service.features.ids import id_limits
from service.scoring.predictor import GraphRows
from service.scoring.runner import Runner
from service.serving import Serving
from service.telemetry.log import get_logger
from service.telemetry.metrics import NO_ARM, NO_VERSION

PREFIX: Final = "/v2/models/"
SUFFIX: Final = "/infer"
_PATH = re.compile(r"^/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?/infer$")
PER_ITEM: Final = ("item.ints", "item.floats", "request_index")
OCTETS: Final = b"application/octet-stream"

log = get_logger(__name__)


class InferHandler:
    """Answers infer within a frame.

    Args:
        serving: What this process can do.
        runner: Where graphs run.
        limits: Of one request; `max_items` bounds rows.
        max_body_bytes: Largest body.
    """

    def __init__(self, serving: Serving, runner: Runner, *, limits: Limits, max_body_bytes: int) -> None:
        self._serving = serving
        self._runner = runner
        self._limits = limits
        self._max_body_bytes = max_body_bytes

    def check(self, call: Call) -> None:
        """Any head will do."""

    async def answer(self, call: Call) -> None:
        """Run one graph on tensors."""
        match = _PATH.match(call.path)
        if match is None:
            raise NotFound("infer is at /v2/models/NAME/infer and /v2/models/NAME/versions/VERSION/infer")
        find_bundle(self._serving, match["name"], match["version"])
        declared = call.check_head(json_only=False)
        body = await call.body(declared, max_bytes=self._max_body_bytes)
        loaded = find_bundle(self._serving, match["name"], match["version"])  # may have changed meanwhile
        text, binary = split_body(call.headers, body)
        request = decode_as(decode_infer, text)
        if len(request.id) > self._limits.max_string_length:
            raise TooLong(
                f"an id of {len(request.id)} characters was sent, at most "
                f"{self._limits.max_string_length} are taken",
                field="$.id",
                limit=self._limits.max_string_length,
                value=len(request.id),
            )
        key = chosen_graph(loaded, request)
        graph = loaded.bundle.manifest.graphs[key]
        binary_output = wanted_output(request, graph)
        wanted = {entry.name: entry for entry in graph.inputs}
        tensors = read_tensors(request.inputs, binary, wanted, max_rows=self._limits.max_items)
        rows = make_rows(loaded, key, tensors)
        try:
            with loaded.leases:
                scores = await self._runner.run(loaded.predictors[key], rows, call.deadline)
        except NotFiniteError as error:
            raise InvalidRequest(
                f"graph '{key}' gives no finite number for row {error.row} of these inputs", field="$.inputs"
            ) from None
        head, tail = encode_reply(loaded, key, request.id, scores, binary=binary_output)
        extra = [(LENGTH_HEADER, b"%d" % len(head))] if binary_output else []
        await send_reply(
            call.send,
            200,
            head + tail,
            call.request_id,
            media_type=OCTETS if binary_output else JSON,
            close=self._serving.draining,
            extra=extra,
        )
        self._serving.metrics.infer.answered(loaded.version, time.perf_counter() - call.deadline.started_s)

    def refused(self, call: Call, error: ServiceError) -> None:
        """Count and log a problem document."""
        self._serving.metrics.infer.refused(self._version, error.status)
        log.debug(
            "infer_refused",
            request_id=call.request_id,
            version=self._version,
            arm=NO_ARM,
            code=error.code,
            detail=error.detail,
        )

    def crashed(self, call: Call, error: Exception) -> None:
        """Log an error that nobody foresaw."""
        log.error(
            "infer_failed", request_id=call.request_id, version=self._version, arm=NO_ARM, exc_info=error
        )

    def left(self) -> None:
        """Count a caller that left."""
        self._serving.metrics.infer.disconnected(self._version)

    @property
    def _version(self) -> str:
        return self._serving.version or NO_VERSION


def is_infer(path: str) -> bool:
    """Whether a path is one of this endpoint's."""
    return path.endswith(SUFFIX) and path.startswith(PREFIX)


def chosen_graph(loaded: LoadedBundle, request: InferRequest) -> str:
    """Key of the graph that is asked for.

    Raises:
        InvalidRequest: None is named though there are several, or one that the bundle does not have.
    """
    graphs = loaded.bundle.manifest.graphs
    key = request.parameters.get("graph")
    if key is None and len(graphs) == 1:
        return next(iter(graphs))
    if not isinstance(key, str) or key not in graphs:
        asked = "name one" if key is None else f"there is no {shown(key)!r}"
        raise InvalidRequest(
            f"parameters.graph: {asked}; this model has {', '.join(graphs)}",
            field="$.parameters.graph",
            value=None if key is None else shown(key),
        )
    return key


def wanted_output(request: InferRequest, graph: Graph) -> bool:
    """Whether the output is to come as bytes.

    Raises:
        InvalidRequest: Another output is asked for, or in another form.
    """
    binary = request.parameters.get("binary_data_output", False)
    for place, output in enumerate(request.outputs):
        if output.name != graph.output:
            raise InvalidRequest(
                f"the graph has no output {output.name[:60]!r}; it has {graph.output}",
                field=f"$.outputs[{place}].name",
                value=output.name[:60],
            )
        if "classification" in output.parameters:
            raise InvalidRequest(
                "classification of outputs is not offered", field=f"$.outputs[{place}].parameters"
            )
        binary = output.parameters.get("binary_data", binary)
    if not isinstance(binary, bool):
        raise InvalidRequest(
            f"whether outputs come as bytes is true or false, got {shown(binary)!r}", field="$.parameters"
        )
    return binary


def make_rows(loaded: LoadedBundle, key: str, tensors: Mapping[str, Tensor]) -> GraphRows:
    """Rows of one run from checked tensors.

    Args:
        loaded: The bundle.
        key: Of its graph.
        tensors: Every input of the graph by name.

    Raises:
        InvalidRequest: Tensors differ in rows, or an id, domain or request index is out of range.
    """
    graph = loaded.bundle.manifest.graphs[key]
    num_requests = _common_rows([e for e in graph.inputs if e.source not in PER_ITEM], tensors)
    num_items = _common_rows([e for e in graph.inputs if e.source in PER_ITEM], tensors)
    by_source: dict[InputSource, Tensor] = {}
    for entry in graph.inputs:
        values = tensors[entry.name]
        if entry.source == "domain":
            _check_domain(loaded, key, entry, values)
        elif entry.source == "request_index":
            _check_range(entry, values[:, None], np.array([num_requests], dtype=np.int64))
        elif entry.dtype != "float32":
            entity = Entity(entry.source.partition(".")[0])
            _check_range(entry, values, id_limits(loaded.bundle.schema, loaded.encoders[entity].layout))
        by_source[entry.source] = values

    def block(entity: str, count: int) -> EncodedBlock:
        ints = by_source.get(f"{entity}.ints")  # type: ignore[call-overload]
        floats = by_source.get(f"{entity}.floats")  # type: ignore[call-overload]
        return EncodedBlock(
            np.zeros((count, 0), np.int32) if ints is None else ints.astype(np.int32),
            np.zeros((count, 0), np.float32) if floats is None else floats,
        )

    return GraphRows(
        user=block("user", num_requests),
        context=block("context", num_requests),
        item=block("item", num_items),
        domain=by_source.get("domain", np.zeros(num_requests, np.int64)),
        request_index=by_source.get("request_index", np.zeros(num_items, np.int64)),
    )


def _common_rows(entries: list[GraphInput], tensors: Mapping[str, Tensor]) -> int:
    """Rows that tensors of one side have in common; 1 where a graph has none."""
    for entry in entries[1:]:
        first = entries[0]
        if len(tensors[entry.name]) != len(tensors[first.name]):
            raise InvalidRequest(
                f"input '{entry.name}' has {len(tensors[entry.name])} rows, but '{first.name}' has "
                f"{len(tensors[first.name])}",
                field="$.inputs",
                limit=len(tensors[first.name]),
                value=len(tensors[entry.name]),
            )
    return len(tensors[entries[0].name]) if entries else 1


def _check_range(entry: GraphInput, ids: NDArray[np.int64], limits: NDArray[np.int64]) -> None:
    """Ids, (n, width), lie in [0, limit) of their column."""
    bad = (ids < 0) | (ids >= limits)
    if bad.any():
        row, column = (int(place) for place in np.argwhere(bad)[0])
        where = f"row {row}" if entry.width == 0 else f"row {row}, column {column}"
        raise InvalidRequest(
            f"input '{entry.name}', {where}: {int(ids[row, column])} is not in [0, {int(limits[column])})",
            field="$.inputs",
            limit=int(limits[column]) - 1,
            value=int(ids[row, column]),
        )


def _check_domain(loaded: LoadedBundle, key: str, entry: GraphInput, domains: NDArray[np.int64]) -> None:
    """Domain indices, (R,), are of domains that the graph serves; one made for some knows no others."""
    manifest = loaded.bundle.manifest
    whole = manifest.graphs[key].form == "whole"
    served = {d.index for d in manifest.domains.values() if whole or d.graph == key}
    if loaded.unknown is not None and (whole or loaded.unknown.graph == key):
        served.add(loaded.bundle.schema.num_domains)
    odd = np.flatnonzero(~np.isin(domains, list(served)))
    if len(odd):
        row = int(odd[0])
        raise InvalidRequest(
            f"input '{entry.name}', row {row}: graph '{key}' serves no domain {int(domains[row])}; it serves "
            f"{_shown(sorted(served))}",
            field="$.inputs",
            value=int(domains[row]),
        )


def encode_reply(
    loaded: LoadedBundle, key: str, request_id: str, scores: NDArray[np.float32], *, binary: bool
) -> tuple[bytes, bytes]:
    """JSON and bytes of a reply.

    Args:
        loaded: The bundle.
        key: Of the graph that ran.
        request_id: As sent.
        scores: (N,) float32.
        binary: Whether scores are to follow as bytes.
    """
    manifest = loaded.bundle.manifest
    tail = scores.astype("<f4", copy=False).tobytes() if binary else b""
    name, shape = manifest.graphs[key].output, [len(scores)]
    output = (
        ReplyOutput(name, "FP32", shape, {BINARY_SIZE: len(tail)})
        if binary
        else ReplyOutput(name, "FP32", shape, data=scores.tolist())
    )
    reply = InferReply(manifest.name, loaded.bundle_id, [output], request_id, {"graph": key})
    return encode_infer(reply), tail


def _shown(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:10])) + (", ..." if len(numbers) > 10 else "")


__all__ = ["InferHandler", "chosen_graph", "encode_reply", "is_infer", "make_rows", "wanted_output"]
