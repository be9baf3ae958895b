"""Rows of one entity kept in this process: an id -> slot index over packed arrays.

A look-up of N ids is one fancy index per array. Slot 0 is the default row, which every id that is
not cached falls on. Entries live for `ttl_s`, shortened at random by up to `jitter_ratio` so that
those read together do not expire together; absent and invalid rows live for `missing_ttl_s`. Room is
made by the clock algorithm (second chance). Time is handed in, from a monotonic clock.

Invariants: `num_bytes` never exceeds `max_bytes`; an entry is never found after its time, nor under
another id.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from service.contract.encode import EncodedBlock
from service.contract.layout import EntityLayout
from service.features.blob import DecodedRows
from service.features.source import FAILED, MISSING

INDEX_BYTES = 160  # dict entry at worst load, slot number, places in the small arrays
ID_BYTES = 80  # a Python string without its characters
CHARACTER_BYTES = 4


@dataclass(frozen=True, slots=True)
class Found:
    """What a look-up yields.

    Attributes:
        rows: n rows that the caller owns, defaults where there is no entry; None where there is none
            at all.
        missed: (n,) bool: no entry that is still good; None where all were found.
    """

    rows: DecodedRows | None
    missed: NDArray[np.bool_] | None


class NearCache:
    """Rows of one entity.

    Args:
        layout: Of the entity.
        max_bytes: Bound on everything an entry costs; too small for one entry means no cache.
        ttl_s: Longest life of a stored row.
        missing_ttl_s: Longest life of the knowledge that an id has no sound row.
        jitter_ratio: Lives are shortened by a random share up to this.
        seed: Of the jitter.
    """

    def __init__(
        self,
        layout: EntityLayout,
        *,
        max_bytes: int,
        ttl_s: float,
        missing_ttl_s: float,
        jitter_ratio: float,
        seed: int | None = None,
    ) -> None:
        self._row_bytes = 4 * (layout.int_width + layout.float_width) + INDEX_BYTES
        self._max_bytes = max_bytes
        self._lives_s = np.array([ttl_s, ttl_s, missing_ttl_s, missing_ttl_s, 0.0])  # by status
        self._jitter_ratio = jitter_ratio
        self._random = np.random.default_rng(seed)
        capacity = max_bytes // (self._row_bytes + ID_BYTES)
        # Pages of these arrays are only taken once they are written to.
        self._ints = np.zeros((capacity + 1, layout.int_width), dtype=np.int32)
        self._floats = np.zeros((capacity + 1, layout.float_width), dtype=np.float32)
        self._event_ms = np.zeros(capacity + 1, dtype=np.int64)
        self._status = np.zeros(capacity + 1, dtype=np.uint8)
        self._expires_s = np.zeros(capacity + 1, dtype=np.float64)
        self._taken = np.zeros(capacity + 1, dtype=np.bool_)
        self._used = np.zeros(capacity + 1, dtype=np.bool_)
        self._ints[0], self._floats[0] = layout.default_ints, layout.default_floats
        self._status[0], self._expires_s[0] = MISSING, -np.inf
        self._slot_of: dict[str, int] = {}
        self._id_at = np.full(capacity + 1, None, dtype=np.object_)
        self._free: list[int] = []
        self._top = 1  # no slot from here on was ever taken
        self._hand = 1
        self.num_bytes = 0
        self.num_evicted = 0
        self.max_entries = int(capacity)

    def __len__(self) -> int:
        return len(self._slot_of)

    def find(self, ids: Sequence[str], now_s: float) -> Found:
        """Rows of n ids."""
        if len(ids) == 1:
            return self._find_one(ids[0], now_s)
        if not self._slot_of:
            return Found(None, np.ones(len(ids), dtype=np.bool_))
        slots = np.fromiter(map(self._slot_of.get, ids, repeat(0)), np.intp, len(ids))
        missed = self._expires_s[slots] <= now_s
        if missed.all():
            return Found(None, missed)
        self._used[slots] = True
        rows = DecodedRows(
            EncodedBlock(self._ints.take(slots, axis=0), self._floats.take(slots, axis=0)),
            self._event_ms[slots],
            self._status[slots],
        )
        if not missed.any():
            return Found(rows, None)
        expired = slots[missed]
        if expired.any():  # rows past their time, which must not show through
            rows.block.ints[missed], rows.block.floats[missed] = self._ints[0], self._floats[0]
            rows.event_ms[missed], rows.status[missed] = 0, MISSING
        return Found(rows, missed)

    def _find_one(self, value: str, now_s: float) -> Found:
        """As `find`, without what arrays of one cost."""
        slot = self._slot_of.get(value, 0)
        if self._expires_s[slot] <= now_s:
            return Found(None, np.ones(1, dtype=np.bool_))
        self._used[slot] = True
        one = slice(slot, slot + 1)
        block = EncodedBlock(self._ints[one].copy(), self._floats[one].copy())
        return Found(DecodedRows(block, self._event_ms[one].copy(), self._status[one].copy()), None)

    def insert(self, ids: Sequence[str], rows: DecodedRows, now_s: float) -> None:
        """Keep n rows of distinct ids, replacing older ones; what could not be read is not kept."""
        if self.max_entries == 0 or not len(ids):
            return
        if rows.status.max() == FAILED:  # before room is made, so that an outage evicts nothing
            read = np.flatnonzero(rows.status != FAILED)
            block = EncodedBlock(rows.block.ints[read], rows.block.floats[read])
            rows = DecodedRows(block, rows.event_ms[read], rows.status[read])
            ids = [ids[place] for place in read.tolist()]
        slot_of = self._slot_of
        new = [value for value in ids if value not in slot_of]
        taken = self._make_room(new) if new else []
        if len(taken) == len(rows.status) and not rows.status.any():  # all new, all stored
            self._write(np.array(taken, dtype=np.intp), rows, now_s)
            return
        slots = np.fromiter(map(slot_of.get, ids, repeat(0)), np.intp, len(ids))
        kept = np.flatnonzero(slots)
        block = EncodedBlock(rows.block.ints[kept], rows.block.floats[kept])
        self._write(slots[kept], DecodedRows(block, rows.event_ms[kept], rows.status[kept]), now_s)

    def _write(self, slots: NDArray[np.intp], rows: DecodedRows, now_s: float) -> None:
        self._ints[slots] = rows.block.ints
        self._floats[slots] = rows.block.floats
        self._event_ms[slots] = rows.event_ms
        self._status[slots] = rows.status
        shares = 1.0 - self._jitter_ratio * self._random.random(len(slots))
        self._expires_s[slots] = now_s + self._lives_s[rows.status] * shares

    def _make_room(self, new: list[str]) -> list[int]:
        """Slots for as many of the new ids as the bound allows, evicting others."""
        needed = self._cost(new)
        while needed > self._max_bytes:
            needed -= self._cost([new.pop()])
        while self.num_bytes + needed > self._max_bytes:
            mean = self.num_bytes / len(self._slot_of)
            self._evict(math.ceil((self.num_bytes + needed - self._max_bytes) / mean))
        slots = self._free[len(self._free) - len(new) :] if len(self._free) >= len(new) else list(self._free)
        del self._free[len(self._free) - len(slots) :]
        if len(slots) < len(new):
            top = self._top + len(new) - len(slots)
            slots += range(self._top, top)
            self._top = top
        self._slot_of.update(zip(new, slots, strict=True))
        self._id_at[slots] = new
        self._taken[slots] = True
        self._used[slots] = False
        self._expires_s[slots] = -np.inf  # until its row is written
        self.num_bytes += needed
        return slots

    def _cost(self, ids: Sequence[str]) -> int:
        """Bytes charged for entries: an upper bound, as if every character took the most it can."""
        return len(ids) * (self._row_bytes + ID_BYTES) + CHARACTER_BYTES * len("".join(ids))

    def _evict(self, count: int) -> None:
        """Free `count` slots that were not used since the hand last passed, or all there are."""
        count = min(count, len(self._slot_of))
        while count:
            if self._hand >= self._top:
                self._hand = 1
            end = min(self._hand + max(64, 2 * count), self._top)
            window = slice(self._hand, end)
            victims = np.flatnonzero(self._taken[window] & ~self._used[window])[:count] + self._hand
            if len(victims) == count:
                end = int(victims[-1]) + 1
            self._used[self._hand : end] = False
            self._hand = end
            self._drop(victims)
            count -= len(victims)

    def _drop(self, victims: NDArray[np.intp]) -> None:
        values: list[str] = self._id_at[victims].tolist()
        for value in values:
            del self._slot_of[value]
        self._id_at[victims] = None
        self._taken[victims] = False
        self._expires_s[victims] = -np.inf
        self._free += victims.tolist()
        self.num_bytes -= self._cost(values)
        self.num_evicted += len(values)


__all__ = ["Found", "NearCache"]
