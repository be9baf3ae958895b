"""The OpenAPI entry of `/score`, made from the msgspec structs and the error tree.

With a bundle loaded, the examples name its own domains, users, items and features: they run as shown.
"""

from __future__ import annotations

from typing import Any

import msgspec

from service.api.schemas import Problem, ScoreReply, ScoreRequest
from service.bundles.registry import LoadedBundle
from service.contract.schema import Entity, FeatureSchema, NumericFeature
from service.errors import ANSWERED, NotFound, UnknownModel

REF_TEMPLATE = "#/components/schemas/{name}"
ELSEWHERE = (NotFound, UnknownModel)


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


def _problems(schema: dict[str, Any]) -> dict[str, Any]:
    by_status: dict[str, list[str]] = {}
    for error in ANSWERED:
        if error not in ELSEWHERE:
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
        "ids by column, explained": {"value": {**rows, "items": {"id": items}, "explain": True}},
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


__all__ = ["examples", "merge_score"]
