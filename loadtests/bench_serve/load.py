"""The requests of a case: 64 distinct bodies, and the graph inputs each of them comes down to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from loadtests.bench_serve.reference import (
    HOT_DOMAINS,
    NUM_ITEMS,
    NUM_USERS,
    default_context,
    make_rows,
    raw_features,
)
from service.contract.bundle import Bundle
from service.contract.encode import EncodedBlock
from service.contract.schema import Entity
from service.scoring.predictor import GraphRows, Predictor

NUM_BODIES = 64
Form = Literal["ids", "features"]


@dataclass(frozen=True)
class Ask:
    """One request: stored rows by number."""

    domain: str
    user: int
    items: tuple[int, ...]


def draw(num_items: int, *, seed: int = 0, count: int = NUM_BODIES) -> list[Ask]:
    """Distinct requests of N candidates, the domains in turn."""
    rng = np.random.default_rng([seed, num_items])
    return [
        Ask(
            domain=HOT_DOMAINS[number % len(HOT_DOMAINS)],
            user=int(rng.integers(NUM_USERS)),
            items=tuple(rng.choice(NUM_ITEMS, num_items, replace=False).tolist()),
        )
        for number in range(count)
    ]


def bodies(bundle: Bundle, asks: Sequence[Ask], form: Form) -> list[bytes]:
    """Bodies of `/score`: ids by column, or every feature of user and items by row."""
    if form == "ids":
        return [
            _encode(
                {
                    "domain": ask.domain,
                    "user": {"id": f"u{ask.user}"},
                    "items": {"id": [f"i{number}" for number in ask.items]},
                }
            )
            for ask in asks
        ]
    schema = bundle.schema
    rows = {entity: make_rows(schema, entity) for entity in (Entity.USER, Entity.ITEM)}

    def features(entity: Entity, number: int) -> dict[str, str | float]:
        return raw_features(schema, entity, _row(rows[entity], [number]))

    return [
        _encode(
            {
                "domain": ask.domain,
                "user": {"id": f"u{ask.user}", "features": features(Entity.USER, ask.user)},
                "items": [{"id": f"i{n}", "features": features(Entity.ITEM, n)} for n in ask.items],
            }
        )
        for ask in asks
    ]


def graph_inputs(bundle: Bundle, asks: Sequence[Ask]) -> list[tuple[str, dict[str, NDArray[Any]]]]:
    """Graph and its inputs, by name, for each request."""
    schema, manifest = bundle.schema, bundle.manifest
    users, items = make_rows(schema, Entity.USER), make_rows(schema, Entity.ITEM)
    recipes = {
        key: Predictor(bundle.file(graph.file), graph).inputs for key, graph in manifest.graphs.items()
    }
    made = []
    for ask in asks:
        entry = manifest.domains[ask.domain]
        rows = GraphRows(
            user=_row(users, [ask.user]),
            context=default_context(schema, 1),
            item=_row(items, ask.items),
            domain=np.array([entry.index], np.int64),
            request_index=np.zeros(len(ask.items), np.int64),
        )
        made.append((entry.graph, recipes[entry.graph](rows)))
    return made


def check_replies(
    bundle: Bundle, asks: Sequence[Ask], replies: Sequence[Sequence[float]], *, limit: float = 1e-5
) -> float:
    """Largest difference between replies and the bare graph's scores.

    Raises:
        SystemExit: It exceeds the limit: what is measured would not be the same work.
    """
    worst = 0.0
    predictors = {
        key: Predictor(bundle.file(graph.file), graph) for key, graph in bundle.manifest.graphs.items()
    }
    for (graph, inputs), scores in zip(graph_inputs(bundle, asks), replies, strict=True):
        expected = predictors[graph].run(inputs)
        worst = max(worst, float(np.abs(expected - np.asarray(scores, np.float32)).max()))
    if worst > limit:
        raise SystemExit(f"replies differ from the bare graph by {worst:.2e}, more than {limit:g}")
    return worst


def _row(block: EncodedBlock, rows: Sequence[int]) -> EncodedBlock:
    at = np.asarray(rows, np.intp)
    return EncodedBlock(block.ints[at], block.floats[at])


def _encode(body: dict[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


__all__ = ["NUM_BODIES", "Ask", "Form", "bodies", "check_replies", "draw", "graph_inputs"]
