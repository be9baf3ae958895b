"""The OpenAPI document: FastAPI's own routes tidied, and those that stand in front of it added.

Schemas come from the msgspec structs that decode and encode, statuses from the error classes. Invariant:
every route is in it, those of the admin port too, with every status that it answers with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from service.api.admin import METHODS
from service.api.body import DEADLINE_HEADER
from service.api.examples import Examples, feedback_examples, infer_examples, path_examples, score_examples
from service.api.feedback import FEEDBACK_PATH, FeedbackReply, FeedbackRequest
from service.api.schemas import Problem, ScoreReply, ScoreRequest
from service.api.score import PATH
from service.api.tensors import InferReply, InferRequest
from service.bundles.registry import LoadedBundle
from service.errors import (
    BodyTooLarge,
    DeadlineExceeded,
    FeedbackUnavailable,
    Forbidden,
    InternalError,
    InvalidRequest,
    MalformedBody,
    NoItems,
    NotFound,
    NotReady,
    Overloaded,
    ReloadRefused,
    ServiceError,
    TooLong,
    TooManyItems,
    Unauthorized,
    UnknownDomain,
    UnknownModel,
    UnsupportedMediaType,
    WorkerSilent,
)

REF_TEMPLATE: Final = "#/components/schemas/{name}"
INFER_PATHS: Final = {
    "/v2/models/{name}/infer": "infer",
    "/v2/models/{name}/versions/{number}/infer": "infer_version",
}
ANY_BODY: Final = (
    MalformedBody,
    Unauthorized,
    BodyTooLarge,
    UnsupportedMediaType,
    InvalidRequest,
    TooLong,
    Overloaded,
    InternalError,
    DeadlineExceeded,
)
"""What every route that reads a body may answer."""
SCORE_ERRORS: Final = (*ANY_BODY, Forbidden, UnknownDomain, NoItems, TooManyItems, NotReady)
FEEDBACK_ERRORS: Final = (*ANY_BODY, NotFound, NoItems, TooManyItems, FeedbackUnavailable)
INFER_ERRORS: Final = (*ANY_BODY, UnknownModel, NotReady)
GET_ERRORS: Final = {
    "/health/startup": (NotReady,),
    "/health/ready": (NotReady,),
    "/v2/health/ready": (NotReady,),
    "/v2/models/{name}": (UnknownModel, NotReady),
    "/v2/models/{name}/versions/{number}": (UnknownModel, NotReady),
    "/v2/models/{name}/ready": (UnknownModel, NotReady),
    "/v2/models/{name}/versions/{number}/ready": (UnknownModel, NotReady),
}
STRUCTS: Final = (
    ScoreRequest,
    ScoreReply,
    FeedbackRequest,
    FeedbackReply,
    InferRequest,
    InferReply,
    Problem,
)
REQUEST_ID: Final = {
    "name": "x-request-id",
    "in": "header",
    "required": False,
    "description": "Echoed where it is plain and the body names none; generated otherwise.",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:/+=@-]{1,128}$"},
}
DEADLINE: Final = {
    "name": DEADLINE_HEADER.decode(),
    "in": "header",
    "required": False,
    "description": "Milliseconds that the caller waits, where that is less than the service's own deadline.",
    "schema": {"type": "integer", "minimum": 1},
}
HEADER_LENGTH: Final = {
    "name": "inference-header-content-length",
    "in": "header",
    "required": False,
    "description": "Bytes of the JSON at the beginning of a body whose tensors follow as bytes.",
    "schema": {"type": "integer", "minimum": 0},
}
ADMIN_SERVER: Final = {"url": "http://127.0.0.1:8001", "description": "CTR_ADMIN_PORT, with its own tokens."}
BYTES: Final = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


def complete(document: dict[str, Any], loaded: LoadedBundle | None) -> dict[str, Any]:
    """Make FastAPI's document whole.

    Args:
        document: As FastAPI made it; changed in place and returned.
        loaded: Gives the examples; None gives generic ones.
    """
    schemas, components = msgspec.json.schema_components(STRUCTS, ref_template=REF_TEMPLATE)
    schema = dict(zip(STRUCTS, schemas, strict=True))
    paths = document.setdefault("paths", {})
    for path, operations in paths.items():
        if "get" in operations:
            _tidy(path, operations["get"], loaded)
    paths[PATH] = {
        "post": _post(
            "score",
            "Click probabilities of N candidates for one user in one domain",
            schema[ScoreRequest],
            score_examples(loaded),
            ("200", "Scores in the order of the items", schema[ScoreReply]),
            SCORE_ERRORS,
        )
    }
    paths[FEEDBACK_PATH] = {
        "post": _post(
            "feedback",
            "What came of scored items; may be sent in parts and more than once",
            schema[FeedbackRequest],
            feedback_examples(),
            ("202", "Everything sent is on disk", schema[FeedbackReply]),
            FEEDBACK_ERRORS,
        )
    }
    for path, name in INFER_PATHS.items():
        paths[path] = {"post": _infer(path, name, schema, loaded)}
    paths.update(_admin())
    found = document.setdefault("components", {})
    found["schemas"] = dict(sorted(components.items()))
    found["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "Needed where CTR_TOKENS_FILE is set."}
    }
    return document


def problems(errors: Sequence[type[ServiceError]]) -> dict[str, Any]:
    """Responses by status, with the codes that each stands for."""
    by_status: dict[str, list[str]] = {}
    for error in errors:
        by_status.setdefault(str(error.status), []).append(f"`{error.code}`: {error.title}")
    return {
        status: {
            "description": "; ".join(lines),
            "content": {
                "application/problem+json": {"schema": {"$ref": REF_TEMPLATE.format(name="Problem")}}
            },
            **({"headers": {"retry-after": {"schema": {"type": "integer"}}}} if status == "429" else {}),
        }
        for status, lines in sorted(by_status.items())
    }


def _post(
    name: str,
    summary: str,
    request: dict[str, Any],
    examples: Examples,
    reply: tuple[str, str, dict[str, Any]],
    errors: Sequence[type[ServiceError]],
) -> dict[str, Any]:
    status, description, schema = reply
    return {
        "tags": [name],
        "summary": summary,
        "operationId": name,
        "security": [{}, {"bearer": []}],
        "parameters": [REQUEST_ID, DEADLINE],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": request, "examples": examples}},
        },
        "responses": {
            status: {"description": description, "content": {"application/json": {"schema": schema}}},
            **problems(errors),
        },
    }


def _infer(path: str, name: str, schema: dict[Any, Any], loaded: LoadedBundle | None) -> dict[str, Any]:
    operation = _post(
        name,
        "Output of a graph for tensors that the caller encoded (Open Inference Protocol)",
        schema[InferRequest],
        infer_examples(loaded),
        ("200", "The graph's output, as JSON or as bytes after the JSON", schema[InferReply]),
        INFER_ERRORS,
    )
    operation["tags"] = ["model"]
    values = path_examples(loaded)
    names = [key for key in values if f"{{{key}}}" in path]
    operation["parameters"] = [_path_parameter(key, values[key]) for key in names]
    operation["parameters"] += [REQUEST_ID, DEADLINE, HEADER_LENGTH]
    for part in (operation["requestBody"], operation["responses"]["200"]):
        part["content"] = {**part["content"], **BYTES}
    return operation


def _admin() -> dict[str, Any]:
    """The admin API, which is on a port of its own."""
    workers = {"type": "array", "items": {"type": "object", "additionalProperties": True}}
    replies: dict[str, tuple[str, dict[str, Any], Sequence[type[ServiceError]]]] = {
        "/admin/state": ("What each worker serves, holds open and refused last", {"workers": workers}, ()),
        "/admin/reload": (
            "Every worker looks for another bundle and routing now",
            {"result": {"type": "string"}, "workers": workers},
            (ReloadRefused, WorkerSilent),
        ),
    }
    found = {}
    for path, (summary, properties, errors) in replies.items():
        schema = {"type": "object", "properties": properties, "required": list(properties)}
        operation = {
            "tags": ["admin"],
            "summary": summary,
            "operationId": path.strip("/").replace("/", "_"),
            "security": [{"bearer": []}],
            "responses": {
                "200": {
                    "description": "Answers of all workers",
                    "content": {"application/json": {"schema": schema}},
                },
                **problems((Unauthorized, *errors, InternalError)),
            },
        }
        found[path] = {"servers": [ADMIN_SERVER], METHODS[path].lower(): operation}
    return found


def _tidy(path: str, operation: dict[str, Any], loaded: LoadedBundle | None) -> None:
    """Say what a route of FastAPI's really answers; parameters are text, which is never invalid."""
    responses = operation["responses"]
    responses.pop("422", None)
    responses.update(problems((*GET_ERRORS.get(path, ()), InternalError)))
    values = path_examples(loaded)
    if "parameters" in operation:
        operation["parameters"] = [
            _path_parameter(p["name"], values[p["name"]]) for p in operation["parameters"]
        ]
    if path == "/metrics":
        responses["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}


def _path_parameter(name: str, example: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "schema": {"type": "string"},
        "description": "Of the model."
        if name == "name"
        else "Id of a bundle, or its first 6 characters or more.",
        "example": example,
    }


__all__ = ["complete", "problems"]
