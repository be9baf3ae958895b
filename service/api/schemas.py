"""The wire format of `/score`: structs that decode requests, encode replies and make the OpenAPI entry.

Limits that are settings (items, string and history lengths) are checked in `translate`.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

Id = Annotated[str | int, Meta(description='Id as stored; 7 and "7" are the same.')]
Features = Annotated[
    dict[str, Any],
    Meta(description="By feature name, overriding stored values; null means missing."),
]


class Item(Struct, forbid_unknown_fields=True, frozen=True):
    """One candidate."""

    id: Id
    features: Features = {}


class ItemColumns(Struct, forbid_unknown_fields=True, frozen=True):
    """Candidates by column: every list has one value per candidate."""

    id: Annotated[list[str | int], Meta(description="Ids of the candidates.")]
    features: Annotated[
        dict[str, list[Any]], Meta(description="Columns that override stored values; null means missing.")
    ] = {}


class User(Struct, forbid_unknown_fields=True, frozen=True):
    """Whom the candidates are for. Without an id: an anonymous user."""

    id: Annotated[
        str | int | None, Meta(description="Unknown ids score through the schema's unknown row.")
    ] = None
    features: Features = {}
    history: Annotated[
        list[dict[str, Any]] | None,
        Meta(
            description="Events, oldest first; replaces the stored history. Fields are those of the schema."
        ),
    ] = None


class ScoreRequest(Struct, forbid_unknown_fields=True, frozen=True):
    """One domain, one user, N candidates."""

    domain: Annotated[str, Meta(description="Domain in which the candidates would be shown.")]
    items: Annotated[list[Item] | ItemColumns, Meta(description="Candidates, as rows or by column.")]
    user: User = User()
    context: Features = {}
    request_id: Annotated[str | None, Meta(description="Echoed; generated when absent.")] = None
    session_id: Annotated[
        str | None, Meta(description="Unit of experiments on sessions; without one the user is.")
    ] = None
    explain: Annotated[
        bool, Meta(description="Add how features were found and the arm was chosen; needs tokens to be on.")
    ] = False


class BlendInfo(Struct, frozen=True):
    """What was blended into the scores of a domain with few rows."""

    bundle: Annotated[str, Meta(description="Id of the bundle.")]
    alias: str
    weight: Annotated[float, Meta(description="Share of its logits in those of the scores.")]


class ModelInfo(Struct, frozen=True):
    """What scored the request."""

    bundle: Annotated[str, Meta(description="Id of the bundle: sha256 of its content.")]
    alias: str
    cluster: int | None
    graph: str
    blend: BlendInfo | UnsetType = UNSET


class StoredInfo(Struct, frozen=True):
    """How an entity's stored features were found."""

    status: Annotated[
        str,
        Meta(description="`fresh`, `stale`, `missing`, `invalid`, `failed`, or `anonymous` without an id."),
    ]
    age_s: Annotated[
        float | None, Meta(description="Since they were true; null where nothing, or no time, is stored.")
    ] = None


class AssignmentInfo(Struct, frozen=True):
    """How the unit came to its arm."""

    experiment: str
    arm: str
    unit: Annotated[str, Meta(description="Id that was hashed; empty without one.")]
    position: Annotated[float, Meta(description="Of the unit, in [0, 1); -1 without one.")]
    reason: Annotated[str, Meta(description="`hash`, `holdout`, `override` or `kill_switch`.")]


class Explain(Struct, frozen=True):
    """Why the scores are what they are; leaves out what was blended in."""

    user: StoredInfo
    items: Annotated[list[StoredInfo], Meta(description="In the order of the items.")]
    domain: Annotated[str, Meta(description="`known`, or `unknown` when the fallback row scored it.")]
    domain_row: Annotated[int, Meta(description="Row of the graph's domain tables that was used.")]
    graph: str
    cluster: int | None
    experts_kept: Annotated[
        list[str] | None, Meta(description="That the domain's mask keeps; null for models without masks.")
    ]
    assignment: Annotated[
        AssignmentInfo | None, Meta(description="Null where no experiment has a part in the request.")
    ] = None


class ScoreReply(Struct, frozen=True):
    """Calibrated click probabilities in the order of the items."""

    request_id: str
    domain: str
    scores: Annotated[list[float], Meta(description="Probabilities in [0, 1].")]
    model: ModelInfo
    experiment: Annotated[str | None, Meta(description="That decided who scored; null without one.")] = None
    arm: Annotated[str | None, Meta(description="Of the experiment, or `holdout`.")] = None
    degraded: Annotated[list[str], Meta(description="Parts that failed and were replaced by defaults.")] = []
    explain: Explain | UnsetType = UNSET


class Problem(Struct, frozen=True):
    """RFC 9457 problem document."""

    type: Annotated[str, Meta(description="URN ending in the code.")]
    title: str
    status: int
    code: Annotated[str, Meta(description="Stable; what programs should look at.")]
    detail: str
    request_id: str
    field: Annotated[str | UnsetType, Meta(description="JSON path of the offending value.")] = UNSET
    limit: Annotated[float | UnsetType, Meta(description="What was allowed.")] = UNSET
    value: Annotated[float | str | UnsetType, Meta(description="What was sent, shortened.")] = UNSET


decode_request = msgspec.json.Decoder(ScoreRequest).decode
encode_reply = msgspec.json.Encoder().encode

__all__ = [
    "AssignmentInfo",
    "BlendInfo",
    "Explain",
    "Item",
    "ItemColumns",
    "ModelInfo",
    "Problem",
    "ScoreReply",
    "ScoreRequest",
    "StoredInfo",
    "User",
    "decode_request",
    "encode_reply",
]
