"""What the scorer is asked: one request, freed of the form it was sent in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec


class ItemColumn(msgspec.Struct, frozen=True):
    """Values of one item feature that override stored ones.

    Attributes:
        values: One per row in `rows`.
        rows: Which candidates, rising; None for all.
    """

    values: Sequence[Any]
    rows: Sequence[int] | None = None


class Query(msgspec.Struct, frozen=True):
    """One request.

    Attributes:
        domain: As sent.
        user_id: Canonical id, None for an anonymous user.
        user_features: Overrides by name.
        history: Override of the user's sequence feature, oldest event first.
        context: Features of the context by name.
        item_ids: N canonical ids.
        item_features: Overrides by name.
        by_column: Whether items were sent by column; error paths follow the form that was sent.
    """

    domain: str
    user_id: str | None
    user_features: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]] | None
    context: Mapping[str, Any]
    item_ids: Sequence[str]
    item_features: Mapping[str, ItemColumn]
    by_column: bool

    @property
    def overrides(self) -> bool:
        """Whether the request brought features of its own."""
        return bool(self.user_features or self.history or self.context or self.item_features)

    def item_path(self, feature: str, row: int | None) -> str:
        """JSON path of one item feature value; without a row, of the feature."""
        if self.by_column:
            path = f"$.items.features.{feature}"
            return path if row is None else f"{path}[{row}]"
        return f"$.items[{row if row is not None else 0}].features.{feature}"


__all__ = ["ItemColumn", "Query"]
