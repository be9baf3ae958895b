"""Feature source in Redis, behind a near cache.

A request costs one look-up per entity, and at most one read of the store for all that the near
cache lacks. An id that another request is already reading is not read again: both wait for the same
flight. A request that leaves earlier than that leaves the flight alone; a flight that takes longer
than `timeout_s` has failed, and its reply is discarded when it comes. What could not be read in time
is answered with defaults and the status `failed`.

Invariants: a row is used only for the id and entity it was stored under (see `blob`); its age is
taken from its event time on every read, whether it comes from Redis or from the near cache.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract.encode import EncodedBlock
from service.contract.layout import EntityLayout
from service.contract.schema import Entity
from service.features.blob import UNREAD, BlobCodec, DecodedRows
from service.features.keys import KeySpace
from service.features.near_cache import NearCache
from service.features.reader import BlobReader
from service.features.source import FAILED, FRESH, STALE, StoredRows
from service.telemetry.log import get_logger
from service.telemetry.metrics import GroupMetrics

log = get_logger(__name__)


class _Flight:
    """Rows of one entity on their way from the store."""

    __slots__ = ("_place_of", "group", "ids", "rows", "waits")

    def __init__(self, group: EntityGroup, ids: list[str]) -> None:
        self.group = group
        self.ids = ids
        self.rows: DecodedRows | None = None
        self.waits: list[_Wait] = []
        self._place_of: dict[str, int] | None = None

    def places_of(self, ids: Sequence[str]) -> list[int]:
        """Rows of ids that it carries."""
        if self._place_of is None:
            self._place_of = dict(zip(self.ids, range(len(self.ids)), strict=True))
        return list(map(self._place_of.__getitem__, ids))

    def land(self, values: Sequence[Any]) -> None:
        """Take the values, tell whoever waits, and fill the near cache."""
        try:
            self.rows = self.group.landed(self.ids, values)
        except Exception:  # a crash here must not keep others waiting; the rows stay unread
            log.exception("feature_rows_crashed", entity=self.group.space.entity.value)
        for wait in self.waits:
            wait.one_less()


class _Read:
    """One read of the store and the flights that it carries, until the reply or the time limit.

    After the limit its flights have landed empty, so that later requests ask anew (and are refused at
    once where the breaker is open) instead of waiting for a store that hangs; the reply is discarded.
    """

    __slots__ = ("_flights", "_timer")

    def __init__(self, flights: Sequence[_Flight], timeout_s: float) -> None:
        self._flights = flights
        self._timer = asyncio.get_running_loop().call_later(timeout_s, self._be_late)

    def land(self, values: Sequence[Any]) -> None:
        """Give each flight its values."""
        flights, self._flights = self._flights, ()
        self._timer.cancel()
        start = 0
        for flight in flights:
            flight.land(values[start : start + len(flight.ids)])
            start += len(flight.ids)

    def _be_late(self) -> None:
        self.land([UNREAD] * sum(len(flight.ids) for flight in self._flights))


class _Wait:
    """A request's wait for one or more flights."""

    __slots__ = ("_count", "_future")

    def __init__(self, flights: Sequence[_Flight]) -> None:
        self._future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._count = len(flights)
        for flight in flights:
            flight.waits.append(self)

    def one_less(self) -> None:
        self._count -= 1
        if self._count <= 0:
            self._end()

    async def until(self, timeout_s: float) -> None:
        """Wait, but no longer than that; inf where the flights' own limit is enough.

        Cancelling it leaves the flights alone.
        """
        if timeout_s == math.inf:
            await self._future
            return
        timer = self._future.get_loop().call_later(timeout_s, self._end)
        try:
            await self._future
        finally:
            timer.cancel()

    def _end(self) -> None:
        if not self._future.done():
            self._future.set_result(None)


class EntityGroup:
    """Everything about one entity's stored rows.

    Args:
        layout: Of the entity.
        codec: Of its blobs.
        space: Names of its keys.
        cache: Its near cache.
        max_age_s: Age after which a row is stale; inf for never.
        use_stale: Whether a stale row is used, or replaced by defaults.
        metrics: Its counters.
    """

    def __init__(
        self,
        layout: EntityLayout,
        codec: BlobCodec,
        space: KeySpace,
        cache: NearCache,
        *,
        max_age_s: float,
        use_stale: bool,
        metrics: GroupMetrics,
    ) -> None:
        self.space = space
        self.flights: dict[str, _Flight] = {}
        self.cache = cache
        self._layout = layout
        self._codec = codec
        self._max_age_ms = max_age_s * 1000
        self._use_stale = use_stale
        self._metrics = metrics

    def look_up(self, ids: Sequence[str]) -> _LookUp:
        """Begin a read of n ids with what the near cache has."""
        found = self.cache.find(ids, time.monotonic())
        if found.missed is None:
            self._metrics.hits.inc(len(ids))
            return _LookUp(self, ids, found.rows, None)
        missed = np.flatnonzero(found.missed)
        if found.rows is not None:
            self._metrics.hits.inc(len(ids) - len(missed))
            found.rows.status[missed] = FAILED  # until read
        return _LookUp(self, ids, found.rows, missed)

    def unread(self, count: int) -> DecodedRows:
        """Default rows that stand for what could not be read."""
        layout = self._layout
        ints = np.repeat(layout.default_ints[None], count, axis=0)
        floats = np.repeat(layout.default_floats[None], count, axis=0)
        status = np.full(count, FAILED, dtype=np.uint8)
        return DecodedRows(EncodedBlock(ints, floats), np.zeros(count, dtype=np.int64), status)

    def nobody(self) -> StoredRows:
        """The one row of an entity without an id."""
        block = EncodedBlock(self._layout.default_ints[None].copy(), self._layout.default_floats[None].copy())
        return StoredRows(block, np.zeros(1, dtype=np.bool_))

    def landed(self, ids: list[str], values: Sequence[Any]) -> DecodedRows:
        """Decode values of ids that were in flight, and keep them."""
        for value in ids:
            del self.flights[value]
        rows = self._codec.decode(ids, values)
        evicted = self.cache.num_evicted
        self.cache.insert(ids, rows, time.monotonic())
        self._metrics.kept(self.cache.num_bytes, self.cache.num_evicted - evicted)
        return rows

    def judge(self, rows: DecodedRows) -> StoredRows:
        """Rows with their age taken into account."""
        status, block = rows.status, rows.block
        if self._max_age_ms < math.inf:
            horizon_ms = time.time() * 1000 - self._max_age_ms
            old = (status == FRESH) & (rows.event_ms < horizon_ms)
            if old.any():
                status[old] = STALE
                if not self._use_stale:
                    block.ints[old], block.floats[old] = (
                        self._layout.default_ints,
                        self._layout.default_floats,
                    )
        if not status.any():  # all fresh
            return StoredRows(block, np.ones(len(status), dtype=np.bool_), None, rows.event_ms)
        last_used = STALE if self._use_stale else FRESH
        return StoredRows(block, status <= last_used, status, rows.event_ms)

    def count(self, *, missed: int, joined: int) -> None:
        """Count ids that the near cache lacked."""
        if missed:
            self._metrics.misses.inc(missed)
        if joined:
            self._metrics.joined.inc(joined)


class _LookUp:
    """A request's read of one entity: what the near cache had, and flights for the rest."""

    __slots__ = ("_missed", "_own", "_rows", "_shared", "flights", "group", "ids")

    def __init__(
        self,
        group: EntityGroup,
        ids: Sequence[str],
        rows: DecodedRows | None,
        missed: NDArray[np.intp] | None,
    ) -> None:
        self.group = group
        self.ids = ids
        self._rows = rows
        self._missed = missed
        self._own: _Flight | None = None
        self._shared: list[tuple[_Flight, list[int]]] = []
        self.flights: list[_Flight] = []

    @property
    def complete(self) -> bool:
        """Whether the near cache had everything."""
        return self._missed is None

    def take_off(self) -> _Flight | None:
        """A flight for the missed ids that no other request is reading; the others' are joined."""
        if self._missed is None:
            return None
        ids, under_way = self.ids, self.group.flights
        missing = list(ids) if len(self._missed) == len(ids) else [ids[p] for p in self._missed.tolist()]
        own_flight = _Flight(self.group, missing)
        wanted = dict.fromkeys(missing, own_flight)
        if len(wanted) == len(missing) and (not under_way or under_way.keys().isdisjoint(missing)):
            self._own = own_flight
            under_way.update(wanted)
            self.flights = [own_flight]
            self.group.count(missed=len(missing), joined=0)
            return self._own
        own = [value for value in wanted if value not in under_way]
        flight = _Flight(self.group, own) if own else None
        if flight is not None:
            under_way.update(dict.fromkeys(own, flight))
        by_flight: dict[_Flight, list[int]] = {}
        for place, value in zip(self._missed.tolist(), missing, strict=True):
            by_flight.setdefault(under_way[value], []).append(place)
        self._shared = list(by_flight.items())
        self.flights = list(by_flight)
        self.group.count(missed=len(own), joined=len(missing) - len(own))
        return flight

    def result(self) -> StoredRows:
        """Rows with what the flights have brought so far."""
        own = None if self._own is None else self._own.rows
        if own is not None and len(own.status) == len(self.ids):
            # Copies, contiguous and the caller's own: others may join the flight until it is gone.
            block = EncodedBlock(own.block.ints.copy(), own.block.floats.copy())
            return self.group.judge(DecodedRows(block, own.event_ms, own.status.copy()))
        rows = self.group.unread(len(self.ids)) if self._rows is None else self._rows
        if own is not None:
            where = self._missed
            rows.block.ints[where], rows.block.floats[where] = own.block.ints, own.block.floats
            rows.event_ms[where], rows.status[where] = own.event_ms, own.status
        for flight, places in self._shared:
            if flight.rows is not None:
                brought, from_ = flight.rows, flight.places_of([self.ids[place] for place in places])
                rows.block.ints[places] = brought.block.ints[from_]
                rows.block.floats[places] = brought.block.floats[from_]
                rows.event_ms[places], rows.status[places] = brought.event_ms[from_], brought.status[from_]
        return self.group.judge(rows)


class RedisSource:
    """Users and items stored in Redis under one schema.

    Args:
        reader: Of the server or cluster; shared by all sources of the process.
        users: Group of users.
        items: Group of items.
        timeout_s: Longest wait of a request for the store.
    """

    def __init__(
        self, reader: BlobReader, users: EntityGroup, items: EntityGroup, *, timeout_s: float
    ) -> None:
        self._reader = reader
        self.users = users
        self.items = items
        self._timeout_s = timeout_s

    async def fetch(
        self, user: str | None, items: Sequence[str], *, timeout_s: float = math.inf
    ) -> tuple[StoredRows, StoredRows]:
        """Rows of one user and of N items; suspends only when the near cache lacks some."""
        of_items = self.items.look_up(items)
        if user is None:
            if not of_items.complete:
                await self._read((of_items,), timeout_s)
            return self.users.nobody(), of_items.result()
        of_user = self.users.look_up((user,))
        if not (of_user.complete and of_items.complete):
            await self._read((of_user, of_items), timeout_s)
        return of_user.result(), of_items.result()

    def first_ids(self, entity: Entity, count: int) -> list[str]:  # noqa: ARG002 - of the protocol
        """None: a store is not searched for examples."""
        return []

    def describe(self) -> str:
        """Where it reads."""
        head = self.items.space.head.rpartition(f"{Entity.ITEM.value}:")[0]
        return f"users and items read from {self._reader.name}, keys {head}*"

    async def _read(self, look_ups: Sequence[_LookUp], timeout_s: float) -> None:
        """Bring what the near cache lacks, in one read of the store, within the time."""
        if timeout_s <= 0:
            return
        own = [flight for look_up in look_ups if (flight := look_up.take_off()) is not None]
        waited_for = [flight for look_up in look_ups for flight in look_up.flights]
        wait = _Wait(waited_for)
        if own:
            read = _Read(own, self._timeout_s)
            self._reader.read([(flight.group.space, flight.ids) for flight in own], read.land)
        await wait.until(timeout_s if timeout_s < self._timeout_s else math.inf)


__all__ = ["EntityGroup", "RedisSource"]
