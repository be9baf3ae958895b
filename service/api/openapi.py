"""The OpenAPI entries of `/score` and `/feedback`, made from the msgspec structs and the error tree.

With a bundle loaded, the examples name its own domains, users, items and features: they run as shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from service.api.feedback import FeedbackReply, FeedbackRequest
from service.api.schemas import Problem, ScoreReply, ScoreRequest
from service.bundles.registry import LoadedBundle
from service.contract.schema import Entity, FeatureSchema, NumericFeature
from service.errors import (
    ANSWERED,
    FeedbackUnavailable,
    NotFound,
    NotReady,
    ServiceError,
    UnknownDomain,
    UnknownModel,
)

REF_TEMPLATE = "#/components/schemas/{name}"
ELSEWHERE = (NotFound, UnknownModel)
FEEDBACK_ONLY = (FeedbackUnavailable,)
SCORE_ONLY = (UnknownDomain, NotReady)


def merge_score(document: dict[str, Any], loaded: LoadedBundle | None) -> dict[str, Any]:
    """Add `POST /score` and its schemas to FastAPI's document.

    Args:
        document: As FastAPI made it; changed in place and returned.
        loaded: Gives the examples; None gives generic ones.
    """
    schemas, components = msgspec.json.schema_components(
        (ScoreRequest, ScoreReply, Problem), ref_template=REF_TEMPLATE
    )
    request, reply, problem = schemas
    document.setdefault("components", {}).setdefault("schemas", {}).update(components)
    document.setdefault("paths", {})["/score"] = {
        "post": {
            "tags": ["score"],
            "summary": "Click probabilities of N candidates for one user in one domain",
            "operationId": "score",
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": request, "examples": examples(loaded)}},
            },
            "responses": {
                "200": {
                    "description": "Scores in the order of the items",
                    "content": {"application/json": {"schema": reply}},
                },
                **_problems(problem),
            },
        }
    }
    return document


def merge_feedback(document: dict[str, Any]) -> dict[str, Any]:
    """Add `POST /feedback` and its schemas to the document, in place."""
    (request, reply, problem), components = msgspec.json.schema_components(
        (FeedbackRequest, FeedbackReply, Problem), ref_template=REF_TEMPLATE
    )
    document.setdefault("components", {}).setdefault("schemas", {}).update(components)
    items = [{"id": "i7", "click": 1, "value": 12.5}, {"id": "i8", "click": 0}]
    example = {"request_id": "request-id-of-a-score-reply", "items": items}
    document.setdefault("paths", {})["/feedback"] = {
        "post": {
            "tags": ["feedback"],
            "summary": "What came of scored items; may be sent in parts and more than once",
            "operationId": "feedback",
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": request, "example": example}},
            },
            "responses": {
                "202": {
                    "description": "Everything sent is on disk",
                    "content": {"application/json": {"schema": reply}},
                },
                **_problems(problem, (*FEEDBACK_ONLY, NotFound), leave_out=SCORE_ONLY),
            },
        }
    }
    return document


def _problems(
    schema: dict[str, Any],
    also: Sequence[type[ServiceError]] = (),
    leave_out: Sequence[type[ServiceError]] = (),
) -> dict[str, Any]:
    by_status: dict[str, list[str]] = {}
    left_out = {*ELSEWHERE, *FEEDBACK_ONLY, *leave_out} - {*also}
    for error in ANSWERED:
        if error not in left_out:
            by_status.setdefault(str(error.status), []).append(f"`{error.code}`: {error.title}")
    return {
        status: {
            "description": "; ".join(lines),
            "content": {"application/problem+json": {"schema": schema}},
            **({"headers": {"retry-after": {"schema": {"type": "integer"}}}} if status == "429" else {}),
        }
        for status, lines in sorted(by_status.items())
    }


def examples(loaded: LoadedBundle | None) -> dict[str, Any]:
    """Request bodies by name."""
    if loaded is None:
        domain, users, items, feature = "tab_1", ["u42"], ["i7", "i8"], None
    else:
        domain = next(iter(loaded.routes))
        users = loaded.source.first_ids(Entity.USER, 1) or ["u42"]
        items = loaded.source.first_ids(Entity.ITEM, 2) or ["i7", "i8"]
        feature = _numeric_item_feature(loaded.bundle.schema)
    user = {"id": users[0]}
    rows = {"domain": domain, "user": user, "items": [{"id": item} for item in items]}
    shown: dict[str, Any] = {
        "ids as rows": {"value": rows},
        "ids by column": {"value": {**rows, "items": {"id": items}}},
    }
    if feature is not None:
        changed = [{"id": item, "features": {feature.name: _number(feature)}} for item in items]
        shown["stored feature overridden"] = {"value": {**rows, "items": changed, "request_id": "example-3"}}
    return shown


def _numeric_item_feature(schema: FeatureSchema) -> NumericFeature | None:
    numeric = (f for f in schema.of_entity(Entity.ITEM) if isinstance(f, NumericFeature))
    return next(numeric, None)


def _number(feature: NumericFeature) -> Any:
    return 1.5 if feature.width == 1 else [1.5] * feature.width


__all__ = ["examples", "merge_feedback", "merge_score"]
