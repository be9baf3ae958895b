"""What the scorer asks of a feature source: encoded rows by id, in one call per request."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from service.contract.encode import EncodedBlock
from service.contract.schema import Entity
from service.telemetry.metrics import STATUSES

FRESH: Final = 0
STALE: Final = 1  # stored, but older than its group's maximum age
MISSING: Final = 2  # not stored
INVALID: Final = 3  # stored, but damaged or of another entity
FAILED: Final = 4  # could not be read
"""How an entity was found. Plain numbers: they fill arrays, and name places in `STATUSES`."""


class StoredRows(msgspec.Struct, frozen=True):
    """Rows of one entity.

    Attributes:
        block: n encoded rows, the schema's default row where nothing stored is used. The caller owns it.
        known: (n,) bool: whether the stored row is used.
        status: (n,) uint8 of places in `STATUSES`; None where known says it all: fresh or missing.
        event_ms: (n,) int64, when rows were true, ms since 1970 UTC, 0 where nothing is stored; None where
            rows have no time of their own.
    """

    block: EncodedBlock
    known: NDArray[np.bool_]
    status: NDArray[np.uint8] | None = None
    event_ms: NDArray[np.int64] | None = None

    def counts(self) -> tuple[int, ...]:
        """Rows by status, in the order of `STATUSES`."""
        if self.status is None:
            known = int(np.count_nonzero(self.known))
            return (known, 0, len(self.known) - known, 0, 0)
        return tuple(np.bincount(self.status, minlength=len(STATUSES)).tolist())

    @property
    def failed(self) -> bool:
        """Whether a row could not be read, so that a default stands in for it."""
        return self.status is not None and bool((self.status == FAILED).any())


class FeatureSource(Protocol):
    """Stored features of users and items.

    A call may wait on a network; a source that need not, never suspends. It does not raise for what
    is not stored or cannot be read: the status says so.
    """

    async def fetch(
        self, user: str | None, items: Sequence[str], *, timeout_s: float = math.inf
    ) -> tuple[StoredRows, StoredRows]:
        """Rows of one user (1 row; None is an anonymous one) and of N items, in order.

        Args:
            user: Id.
            items: N ids; one may come twice.
            timeout_s: Longest wait.
        """
        ...

    def first_ids(self, entity: Entity, count: int) -> list[str]:
        """Some stored ids, for examples that run; fewer, or none, where listing them costs a search."""
        ...

    def describe(self) -> str:
        """One phrase for operators; without credentials."""
        ...


__all__ = ["FAILED", "FRESH", "INVALID", "MISSING", "STALE", "FeatureSource", "StoredRows"]
