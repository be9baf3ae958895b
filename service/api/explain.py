"""What `explain` adds to a reply: how features were found, and why this arm, graph and cluster.

Reads what scoring left behind; nothing here runs unless a request asks for it.
"""

from __future__ import annotations

import time
from typing import Final

import numpy as np

from service.api.schemas import AssignmentInfo, Explain, StoredInfo
from service.features.source import FRESH, MISSING, StoredRows
from service.routing.assign import Assignment
from service.scoring.query import Query
from service.scoring.scorer import Scored, Scorer
from service.telemetry.metrics import STATUSES

ANONYMOUS: Final = StoredInfo("anonymous")


def explain(scorer: Scorer, query: Query, scored: Scored, assignment: Assignment | None) -> Explain:
    """Explain one scored request.

    Args:
        scorer: Who answered.
        query: What was asked.
        scored: What was answered.
        assignment: The routing's decision; None without an experiment.
    """
    manifest = scorer.loaded.bundle.manifest
    entry = manifest.domains.get(query.domain)
    kept = None if entry is None else entry.experts_kept
    now_ms = time.time() * 1000
    snapshot_ms = manifest.feature_time_ms
    return Explain(
        user=ANONYMOUS if query.user_id is None else _stored(scored.user, now_ms, snapshot_ms)[0],
        items=_stored(scored.items, now_ms, snapshot_ms),
        domain="known" if scored.route.listed else "unknown",
        domain_row=int(scored.route.index[0]),
        graph=scored.route.graph,
        cluster=scored.route.cluster,
        experts_kept=None if kept is None else list(kept),
        assignment=None
        if assignment is None
        else AssignmentInfo(
            assignment.experiment, assignment.arm, assignment.unit, assignment.position, assignment.reason
        ),
    )


def _stored(rows: StoredRows, now_ms: float, snapshot_ms: int | None) -> list[StoredInfo]:
    """Status and age of each row; rows without a time of their own are as old as the bundle's snapshot."""
    status = rows.status
    if status is None:
        status = np.where(rows.known, np.uint8(FRESH), np.uint8(MISSING))
    times = np.where(rows.known, snapshot_ms or 0, 0) if rows.event_ms is None else rows.event_ms
    return [
        StoredInfo(STATUSES[place], round((now_ms - event_ms) / 1000, 3) if event_ms else None)
        for place, event_ms in zip(status.tolist(), times.tolist(), strict=True)
    ]


__all__ = ["explain"]
