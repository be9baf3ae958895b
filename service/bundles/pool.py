"""The bundles that are open in this process, each once, whoever uses it.

Reads the model store. Places that send requests to bundles (the default, the routing table) say which ones
they hold; what nobody holds serves its last requests and is closed. Invariants: two references to one
bundle share its graphs and features; opening fails as a whole or not at all; all that is open at
once, what still drains included, stays within the bound.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from service.bundles.memory import give_back_memory
from service.bundles.registry import LoadedBundle, estimate_bytes
from service.contract.errors import ContractError
from service.contract.store import ModelStore
from service.errors import BundleRefused, RoutingError, StartupError
from service.telemetry.log import get_logger

GIVE_BACK_AFTER_S = 0.5  # by then the frames of the last request are gone, and their arrays with them

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class OpenBundle:
    """One bundle as operators see it.

    Attributes:
        bundle_id: Of the bundle.
        holders: Places that send requests to it; none while it drains.
        leases: Requests that score on it now.
        num_bytes: Estimate of its memory.
    """

    bundle_id: str
    holders: tuple[str, ...]
    leases: int
    num_bytes: int


class BundlePool:
    """Loaded bundles by id.

    One change at a time: `open` what it needs, then `keep` what serves from then on (or `settle`, which
    lets go of what was opened in vain), all while holding `changing`. `open` blocks and belongs into a
    thread, the others on the event loop.

    Args:
        store: Resolves references.
        load: Opens and verifies the bundle of an id; blocks.
        max_bytes: Bound on the estimated memory of all open bundles; 0 for none.
        on_closed: Called with every bundle that was closed.
    """

    def __init__(
        self,
        store: ModelStore,
        load: Callable[[str], LoadedBundle],
        *,
        max_bytes: int = 0,
        on_closed: Callable[[LoadedBundle], None] = lambda _: None,
    ) -> None:
        self.store = store
        self.changing = asyncio.Lock()
        self._load = load
        self._max_bytes = max_bytes
        self._on_closed = on_closed
        self._by_id: dict[str, LoadedBundle] = {}
        self._held: dict[str, frozenset[str]] = {}
        self._pending: set[str] = set()
        self._guard = threading.Lock()

    def resolve(self, references: Iterable[str]) -> dict[str, str]:
        """Ids of bundles by reference (alias, id or part of one).

        Raises:
            RoutingError: Nothing answers to one of them.
        """
        try:
            return {reference: self.store.resolve(reference) for reference in references}
        except ContractError as error:
            raise RoutingError(str(error)) from None

    def add(self, loaded: LoadedBundle) -> None:
        """Take in a bundle that was loaded elsewhere."""
        self._by_id[loaded.bundle_id] = loaded

    def open(self, ids: Mapping[str, str]) -> dict[str, LoadedBundle]:
        """Bundles by reference, each under its reference as alias; blocks while one is loaded.

        Args:
            ids: As resolved.

        Raises:
            BundleRefused: One cannot be loaded, or there is no room for it; the message names the reference.
        """
        with self._guard:  # from here on none of them is closed before the change has ended
            self._pending.update(ids.values())
            found = {i: self._by_id[i] for i in ids.values() if i in self._by_id}
        for reference, bundle_id in ids.items():
            if bundle_id not in found:
                try:
                    self._check_room(bundle_id, found)
                    found[bundle_id] = self._load(bundle_id)
                except (ContractError, StartupError) as error:
                    raise BundleRefused(f"bundle '{reference}' ({bundle_id[:12]}): {error}") from None
        with self._guard:
            self._by_id.update(found)
        return {reference: replace(found[bundle_id], alias=reference) for reference, bundle_id in ids.items()}

    def keep(self, held: Mapping[str, Iterable[str]]) -> None:
        """End a change: these holders hold these ids from now on; what nobody holds is closed when free.

        Args:
            held: Ids by holder; holders that are not named hold what they held.
        """
        self._held.update({holder: frozenset(ids) for holder, ids in held.items()})
        self.settle()

    def settle(self) -> None:
        """End a change without effect: what was opened for it is let go of."""
        with self._guard:
            self._pending.clear()
        for bundle_id in self._unheld():
            self._by_id[bundle_id].leases.when_free(partial(self._close, bundle_id))

    def shown(self) -> list[OpenBundle]:
        """What is open."""
        return [
            OpenBundle(
                bundle_id,
                tuple(sorted(holder for holder, ids in self._held.items() if bundle_id in ids)),
                loaded.leases.count,
                loaded.num_bytes,
            )
            for bundle_id, loaded in list(self._by_id.items())
        ]

    @property
    def num_bytes(self) -> int:
        """Estimated memory of all open bundles."""
        return sum(loaded.num_bytes for loaded in list(self._by_id.values()))

    def _unheld(self) -> list[str]:
        held = set().union(*self._held.values()) if self._held else set()
        return [bundle_id for bundle_id in list(self._by_id) if bundle_id not in held]

    def _check_room(self, bundle_id: str, found: Mapping[str, LoadedBundle]) -> None:
        """Refuse a bundle that does not fit beside what is open.

        Raises:
            ContractError: The store lacks it, or its manifest cannot be read.
            BundleRefused: It does not fit.
        """
        if not self._max_bytes:
            return
        needed = estimate_bytes(self.store.open(bundle_id, verify=False).manifest)
        others = {**self._by_id, **found}
        taken = sum(loaded.num_bytes for loaded in others.values())
        if taken + needed > self._max_bytes:
            raise BundleRefused(
                f"needs about {needed} bytes; with the {taken} of {len(others)} open bundles that is "
                f"{taken + needed}, above max_bundles_bytes ({self._max_bytes})"
            )

    def _close(self, bundle_id: str) -> None:
        """Drop a bundle that is free, unless somebody came back to it."""
        with self._guard:
            if bundle_id in self._pending or bundle_id not in self._unheld():
                return
            closed = self._by_id.pop(bundle_id)
        log.info("bundle_closed", bundle=bundle_id, open_bundles=len(self._by_id))
        self._on_closed(closed)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # a command without a loop ends soon
            return
        loop.call_later(GIVE_BACK_AFTER_S, loop.run_in_executor, None, give_back_memory)


__all__ = ["BundlePool", "OpenBundle"]
