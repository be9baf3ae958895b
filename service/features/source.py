"""What the scorer asks of a feature source: encoded rows by id, in one call per request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from service.contract.encode import EncodedBlock


@dataclass(frozen=True, slots=True)
class StoredRows:
    """Rows of one entity.

    Attributes:
        block: n encoded rows, the schema's default row where the id is not stored. The caller owns it.
        known: (n,) bool: whether the id is stored.
    """

    block: EncodedBlock
    known: NDArray[np.bool_]


class FeatureSource(Protocol):
    """Stored features of users and items.

    A call may wait on a network; a source that does not, never suspends.
    """

    async def fetch(self, user: str | None, items: Sequence[str]) -> tuple[StoredRows, StoredRows]:
        """Rows of one user (1 row; None is an anonymous one) and of N items, in order."""
        ...


__all__ = ["FeatureSource", "StoredRows"]
