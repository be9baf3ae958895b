"""Example requests of the OpenAPI document.

With a bundle they name its own domains, users, items, features and tensors, and run as shown; without one
they show the form only.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from service.api.tensors import DATATYPES
from service.bundles.registry import LoadedBundle
from service.contract.manifest import GraphInput
from service.contract.schema import Entity, FeatureSchema, NumericFeature

NUM_ITEMS = 2

Examples = dict[str, dict[str, Any]]


def score_examples(loaded: LoadedBundle | None) -> Examples:
    """Bodies of `/score` by name."""
    if loaded is None:
        domain, users, items, feature = "tab_1", ["u42"], ["i7", "i8"], None
    else:
        domain = next(iter(loaded.routes))
        users = loaded.source.first_ids(Entity.USER, 1) or ["u42"]
        items = loaded.source.first_ids(Entity.ITEM, NUM_ITEMS) or ["i7", "i8"]
        feature = _numeric_item_feature(loaded.bundle.schema)
    user = {"id": users[0]}
    rows = {"domain": domain, "user": user, "items": [{"id": item} for item in items]}
    shown: Examples = {
        "ids as rows": {"value": rows},
        "ids by column": {"value": {**rows, "items": {"id": items}}},
    }
    if feature is not None:
        changed = [{"id": item, "features": {feature.name: _number(feature)}} for item in items]
        shown["stored feature overridden"] = {"value": {**rows, "items": changed, "request_id": "example-3"}}
    return shown


def feedback_examples() -> Examples:
    """Bodies of `/feedback` by name."""
    items = [{"id": "i7", "click": 1, "value": 12.5}, {"id": "i8", "click": 0}]
    return {"a click and none": {"value": {"request_id": "request-id-of-a-score-reply", "items": items}}}


def infer_examples(loaded: LoadedBundle | None) -> Examples:
    """Bodies of `infer` by name."""
    if loaded is None:
        tensor = {"name": "domain", "shape": [1], "datatype": "INT64", "data": [0]}
        return {"one tensor of several": {"value": {"inputs": [tensor], "parameters": {"graph": "whole"}}}}
    domain = next(iter(loaded.routes))
    route = loaded.routes[domain]
    graph = loaded.bundle.manifest.graphs[route.graph]
    tensors = [_tensor(loaded, entry, int(route.index[0])) for entry in graph.inputs]
    whole = {"inputs": tensors, "parameters": {"graph": route.graph}}
    return {f"items that are not stored, in {domain}": {"value": whole}}


def path_examples(loaded: LoadedBundle | None) -> dict[str, str]:
    """Values of path parameters by name."""
    if loaded is None:
        return {"name": "my-model", "number": "0123456789ab"}
    return {"name": loaded.bundle.manifest.name, "number": loaded.version}


def _tensor(loaded: LoadedBundle, entry: GraphInput, domain: int) -> dict[str, Any]:
    """Default rows of one user and some items."""
    entity, _, part = entry.source.partition(".")
    values: np.ndarray[Any, Any]
    if entry.source == "domain":
        values = np.array([domain])
    elif entry.source == "request_index":
        values = np.zeros(NUM_ITEMS, dtype=np.int64)
    else:
        block = loaded.encoders[Entity(entity)].defaults(NUM_ITEMS if entity == Entity.ITEM.value else 1)
        values = block.ints if part == "ints" else block.floats
    return {
        "name": entry.name,
        "shape": list(values.shape),
        "datatype": DATATYPES[entry.dtype],
        "data": values.tolist(),
    }


def _numeric_item_feature(schema: FeatureSchema) -> NumericFeature | None:
    numeric = (f for f in schema.of_entity(Entity.ITEM) if isinstance(f, NumericFeature))
    return next(numeric, None)


def _number(feature: NumericFeature) -> Any:
    return 1.5 if feature.width == 1 else [1.5] * feature.width


__all__ = ["feedback_examples", "infer_examples", "path_examples", "score_examples"]
