"""From a scored request to its exposure record.

Runs after the reply is sent, on the event loop: it copies ids and scores, and hashes the encoded rows.
"""

from __future__ import annotations

import time

import numpy as np
from xxhash import xxh3_64

from service.contract.events import ExposureRecord
from service.routing.table import Choice
from service.scoring.query import Query
from service.scoring.scorer import Scored, Scorer


def exposure_of(
    request_id: str, query: Query, scored: Scored, scorer: Scorer, choice: Choice | None
) -> ExposureRecord:
    """The record of one request.

    Args:
        request_id: As in the reply.
        query: What was asked.
        scored: What was answered.
        scorer: Who answered.
        choice: The routing's decision; None without routing.
    """
    assignment = None if choice is None else choice.assignment
    return ExposureRecord(
        request_id=request_id,
        time_ms=time.time_ns() // 1_000_000,
        domain=query.domain,
        user=query.user_id,
        bundle=scorer.loaded.bundle_id,
        graph=scored.route.graph,
        items=list(query.item_ids),
        scores=scored.scores.tolist(),
        context=dict(query.context),
        features=rows_digest(scored),
        experiment=None if assignment is None else assignment.experiment,
        arm=None if assignment is None else assignment.arm,
        unit=None if assignment is None else assignment.unit,
        reason=None if assignment is None else assignment.reason,
        degraded=list(scored.degraded),
    )


def rows_digest(scored: Scored) -> str:
    """16 hex digits over the encoded rows of the user and of all items: equal rows, equal digest."""
    digest = xxh3_64()
    for block in (scored.user.block, scored.items.block):
        for part in (block.ints, block.floats):
            digest.update(np.ascontiguousarray(part).data)
    return str(digest.hexdigest())


__all__ = ["exposure_of", "rows_digest"]
