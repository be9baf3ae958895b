"""The wire format of Open Inference Protocol v2 `infer`: JSON tensors, and the binary tensor extension.

With a header `Inference-Header-Content-Length: n`, the first n bytes of a body are its JSON and the rest the
data of those tensors that have a `binary_data_size`, in order. Invariant: a tensor that is read has the name,
datatype and shape that it was declared with, and numbers that are finite in the graph's own precision.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Annotated, Any, Final

import msgspec
import numpy as np
from msgspec import UNSET, Meta, Struct, UnsetType
from numpy.typing import NDArray

from service.contract.manifest import GraphInput
from service.errors import InvalidRequest, MalformedBody

DATATYPES: Final = {"int32": "INT32", "int64": "INT64", "float32": "FP32"}
BINARY_SIZE: Final = "binary_data_size"
LENGTH_HEADER: Final = b"inference-header-content-length"
FLOAT32_MAX: Final = float(np.finfo(np.float32).max)

Tensor = NDArray[Any]


class InferInput(Struct, frozen=True):
    """One input tensor of a graph."""

    name: str
    shape: list[int]
    datatype: Annotated[str, Meta(description="`INT32`, `INT64` or `FP32`, as the model's metadata says.")]
    parameters: dict[str, Any] = {}
    data: Annotated[
        list[Any] | UnsetType, Meta(description="Row by row, flat or nested; absent when sent as bytes.")
    ] = UNSET


class InferOutput(Struct, frozen=True):
    """An output that is asked for."""

    name: str
    parameters: Annotated[
        dict[str, Any], Meta(description="`binary_data`: whether it is to come as bytes.")
    ] = {}


class InferRequest(Struct, frozen=True):
    """Tensors for one run of one graph."""

    inputs: list[InferInput]
    id: Annotated[str, Meta(description="Echoed.")] = ""
    parameters: Annotated[
        dict[str, Any],
        Meta(
            description="`graph`: which graph of the bundle, where it has several; "
            "`binary_data_output`: whether outputs are to come as bytes."
        ),
    ] = {}
    outputs: list[InferOutput] = []


class ReplyOutput(Struct, frozen=True, omit_defaults=True):
    """An output tensor."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] = {}
    data: list[float] | UnsetType = UNSET


class InferReply(Struct, frozen=True, omit_defaults=True):
    """What a graph made of the inputs."""

    model_name: str
    model_version: Annotated[str, Meta(description="Id of the bundle.")]
    outputs: list[ReplyOutput]
    id: str = ""
    parameters: Annotated[dict[str, Any], Meta(description="`graph` that ran.")] = {}


decode_infer = msgspec.json.Decoder(InferRequest).decode
encode_infer = msgspec.json.Encoder().encode


def split_body(headers: Iterable[tuple[bytes, bytes]], body: bytes) -> tuple[bytes, memoryview | None]:
    """JSON and binary part of a body; None where the header does not announce one.

    Raises:
        MalformedBody: The header is no length within the body.
    """
    length = next((value for name, value in headers if name == LENGTH_HEADER), None)
    if length is None:
        return body, None
    size = int(length) if length.isdigit() and len(length) < 20 else -1
    if not 0 <= size <= len(body):
        raise MalformedBody(
            f"inference-header-content-length must be a length within the body of {len(body)} bytes, "
            f"got {length.decode('latin-1')[:40]!r}",
            field=LENGTH_HEADER.decode(),
            limit=len(body),
        )
    return body[:size], memoryview(body)[size:]


def read_tensors(
    inputs: Iterable[InferInput],
    binary: memoryview | None,
    wanted: Mapping[str, GraphInput],
    *,
    max_rows: int,
) -> dict[str, Tensor]:
    """The arrays of a graph's inputs by name: ids as (n, width) or (n,) int64, numbers as float32.

    Args:
        inputs: As sent.
        binary: Bytes of those that have no `data`.
        wanted: Inputs of the graph by name.
        max_rows: Most rows of one tensor.

    Raises:
        InvalidRequest: One is unknown, missing, sent twice, or not what it is declared to be.
    """
    found: dict[str, Tensor] = {}
    start = 0
    for place, entry in enumerate(inputs):
        path = f"$.inputs[{place}]"
        spec = wanted.get(entry.name)
        if spec is None:
            raise InvalidRequest(
                f"the graph has no input {entry.name[:60]!r}; it has {', '.join(wanted)}",
                field=f"{path}.name",
                value=entry.name[:60],
            )
        if entry.name in found:
            raise InvalidRequest(f"input '{entry.name}' is sent twice", field=f"{path}.name")
        _check_declared(entry, spec, path, max_rows)
        if entry.data is UNSET:
            start, raw = _take(entry, binary, start, path)
            found[entry.name] = _from_bytes(entry, spec, raw, path)
        else:
            found[entry.name] = _from_json(entry, spec, entry.data, path)
    left = (0 if binary is None else len(binary)) - start
    if left:
        raise InvalidRequest(f"the body has {left} bytes that belong to no input", field="$.inputs")
    if missing := [name for name in wanted if name not in found]:
        raise InvalidRequest(f"input '{missing[0]}' is missing", field="$.inputs", value=missing[0])
    return found


def shown(value: Any) -> str:
    """A caller's value in an error, shortened; lists are not looked into, however deep they are."""
    if isinstance(value, list | dict):
        return "an array" if isinstance(value, list) else "an object"
    return str(value)[:60]


def _check_declared(entry: InferInput, spec: GraphInput, path: str, max_rows: int) -> None:
    """Datatype and shape."""
    datatype = DATATYPES[spec.dtype]
    if entry.datatype != datatype:
        raise InvalidRequest(
            f"input '{spec.name}' is {datatype}, got {entry.datatype[:20]!r}",
            field=f"{path}.datatype",
            value=entry.datatype[:20],
        )
    shape = [-1, spec.width] if spec.width else [-1]
    if len(entry.shape) != len(shape) or entry.shape[1:] != shape[1:] or entry.shape[0] < 1:
        raise InvalidRequest(
            f"input '{spec.name}' has shape {shape} with at least 1 row, got {str(entry.shape)[:60]}",
            field=f"{path}.shape",
            value=str(entry.shape)[:60],
        )
    if entry.shape[0] > max_rows:
        raise InvalidRequest(
            f"input '{spec.name}' has {entry.shape[0]} rows, at most {max_rows} are taken",
            field=f"{path}.shape",
            limit=max_rows,
            value=entry.shape[0],
        )


def _take(entry: InferInput, binary: memoryview | None, start: int, path: str) -> tuple[int, memoryview]:
    """The bytes of one input, and where the next one's begin."""
    size = entry.parameters.get(BINARY_SIZE)
    if binary is None or size is None:
        raise InvalidRequest(
            f"input '{entry.name}' has neither `data` nor a {BINARY_SIZE} with bytes after the JSON",
            field=f"{path}.data",
        )
    left = len(binary) - start
    if type(size) is not int or not 0 <= size <= left:
        raise InvalidRequest(
            f"input '{entry.name}': {BINARY_SIZE} must be between 0 and the {left} bytes that are left, "
            f"got {shown(size)}",
            field=f"{path}.parameters.{BINARY_SIZE}",
            limit=left,
            value=shown(size),
        )
    return start + size, binary[start : start + size]


def _from_bytes(entry: InferInput, spec: GraphInput, raw: memoryview, path: str) -> Tensor:
    dtype = np.dtype(spec.dtype).newbyteorder("<")
    needed = int(np.prod(entry.shape)) * dtype.itemsize
    if len(raw) != needed:
        raise InvalidRequest(
            f"input '{spec.name}' of shape {entry.shape} has {needed} bytes, got {len(raw)}",
            field=f"{path}.parameters.{BINARY_SIZE}",
            limit=needed,
            value=len(raw),
        )
    values = np.frombuffer(raw, dtype=dtype).reshape(entry.shape)
    if spec.dtype == "float32":
        return _finite(spec, values.astype(np.float32), path)
    return values.astype(np.int64)


def _from_json(entry: InferInput, spec: GraphInput, data: list[Any], path: str) -> Tensor:
    flat = _flat(entry, data, path)
    number = spec.dtype == "float32"
    if not set(map(type, flat)) <= ({int, float} if number else {int}):
        row = next(i for i, v in enumerate(flat) if type(v) is not int and not (number and type(v) is float))
        raise InvalidRequest(
            f"input '{spec.name}': value {row} must be {'a number' if number else 'an integer'}, "
            f"got {shown(flat[row])!r}",
            field=f"{path}.data",
            value=shown(flat[row]),
        )
    try:
        values = np.array(flat, dtype=np.float64 if number else np.int64).reshape(entry.shape)
    except OverflowError:
        raise InvalidRequest(
            f"input '{spec.name}' holds an integer beyond 64 bits", field=f"{path}.data"
        ) from None
    return _finite(spec, values, path) if number else values


def _flat(entry: InferInput, data: list[Any], path: str) -> list[Any]:
    """Values row by row, as many as the shape says, whether they were sent flat or nested."""
    flat = data
    if len(entry.shape) == 2 and data and all(type(row) is list for row in data):
        rows, width = entry.shape
        if len(data) != rows or any(len(row) != width for row in data):
            raise InvalidRequest(
                f"input '{entry.name}': nested data does not have the shape {entry.shape}",
                field=f"{path}.data",
            )
        flat = list(chain.from_iterable(data))
    needed = int(np.prod(entry.shape))
    if len(flat) != needed:
        raise InvalidRequest(
            f"input '{entry.name}' of shape {entry.shape} has {needed} values, got {len(flat)}",
            field=f"{path}.data",
            limit=needed,
            value=len(flat),
        )
    return flat


def _finite(spec: GraphInput, values: Tensor, path: str) -> NDArray[np.float32]:
    bad = ~(np.abs(values) <= FLOAT32_MAX)  # also true for NaN
    if bad.any():
        row = int(np.argwhere(bad)[0][0])
        raise InvalidRequest(
            f"input '{spec.name}', row {row}: a number is not finite as FP32", field=f"{path}.data"
        )
    return values.astype(np.float32)


__all__ = [
    "DATATYPES",
    "LENGTH_HEADER",
    "InferInput",
    "InferOutput",
    "InferReply",
    "InferRequest",
    "ReplyOutput",
    "Tensor",
    "decode_infer",
    "encode_infer",
    "read_tensors",
    "shown",
    "split_body",
]
