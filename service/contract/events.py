"""Records of what was scored and of what came of it: the lines of exposure and feedback files.

Both sides use these structs: the service writes them, `ctr-train data join` reads them. One JSON object
a line. Invariant: fields are only ever added, with a default, so that old files stay readable.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

EXPOSURES = "exposures"
FEEDBACK = "feedback"


class ExposureRecord(Struct, frozen=True):
    """One scored request.

    Attributes:
        request_id: As in the reply; feedback names it.
        time_ms: When the reply was made, ms since 1970 UTC.
        domain: As sent.
        user: Id, None for an anonymous user.
        bundle: Id of the bundle that scored.
        graph: Which of its graphs.
        items: N ids of candidates.
        scores: N probabilities in the order of `items`.
        context: Features of the context as sent.
        features: Digest (16 hex digits) of the encoded user and item rows that were scored.
        experiment: None outside of experiments; then `arm`, `unit` and `reason` are None too.
        arm: The unit's arm.
        unit: Id that was hashed.
        reason: Why this arm; only `hash` counts in the analysis.
        degraded: Parts replaced by defaults.
    """

    request_id: str
    time_ms: int
    domain: str
    user: str | None
    bundle: str
    graph: str
    items: list[str]
    scores: list[float]
    context: dict[str, Any] = {}
    features: str = ""
    experiment: str | None = None
    arm: str | None = None
    unit: str | None = None
    reason: str | None = None
    degraded: list[str] = []


class Outcome(Struct, frozen=True, omit_defaults=True):
    """What came of one item.

    Attributes:
        id: Of the item.
        click: 1 or 0.
        value: Any number that goes with it, e.g. seconds watched.
        time_ms: When it happened, ms since 1970 UTC; None: when it was received.
    """

    id: str
    click: int
    value: float | None = None
    time_ms: int | None = None


class FeedbackRecord(Struct, frozen=True):
    """One accepted feedback request; `received_ms` is the service's time, ms since 1970 UTC."""

    request_id: str
    received_ms: int
    items: list[Outcome]


decode_exposure = msgspec.json.Decoder(ExposureRecord).decode
decode_feedback = msgspec.json.Decoder(FeedbackRecord).decode

__all__ = [
    "EXPOSURES",
    "FEEDBACK",
    "ExposureRecord",
    "FeedbackRecord",
    "Outcome",
    "decode_exposure",
    "decode_feedback",
]
