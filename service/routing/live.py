"""The routing that serves right now, followed while the process runs.

Reads the routing file and the store's aliases every few seconds, off the event loop. A changed file or
a moved alias builds a new table, which replaces the old one at once. Invariant: what cannot be built is
refused with a log record, a metric and a reason in /health/ready, and the last good table serves on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from service.bundles.pool import BundlePool
from service.bundles.registry import LoadedBundle
from service.contract.store import ModelStore
from service.errors import RoutingError
from service.routing.build import TableBuilder
from service.routing.config import RoutingConfig, digest_of, parse_routing
from service.routing.table import RoutingTable
from service.scoring.runner import Runner
from service.scoring.scorer import Scorer
from service.telemetry.log import get_logger
from service.telemetry.metrics import Metrics

RETRY_LOOKS = 15  # after so many, what was refused is tried again although nothing seems changed
NEVER_INLINE_MS = -1.0
UNEXPECTED = "the routing could not be loaded; the log has the cause"

log = get_logger(__name__)

Use = tuple[str, str, str]
"""Model, version and alias of a bundle of an arm."""

Stamp = tuple[str, tuple[tuple[str, str], ...]]
"""Digest of the file, and the bundle ids behind its references: what a table is made from."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one look found: the stamp, and what it stands for."""

    stamp: Stamp
    config: RoutingConfig
    ids: dict[str, str]


class LiveRouting:
    """Routing of one process.

    Args:
        path: The routing file.
        store: Where references point.
        load: Opens and verifies the bundle of an id; blocks.
        runner: Where graphs of arms run.
        metrics: Of this process.
        max_items: Most candidates in one request.
        poll_s: Time between two looks.
    """

    table: RoutingTable
    """Set by `start`, before anything is routed."""

    def __init__(
        self,
        path: Path,
        store: ModelStore,
        load: Callable[[str], LoadedBundle],
        *,
        runner: Runner,
        metrics: Metrics,
        max_items: int,
        poll_s: float,
    ) -> None:
        self._path = path
        self._pool = BundlePool(store, load)
        self._runner = runner
        # Shadows never run on the event loop, and never take the threads of what serves.
        self._shadow_runner = Runner(inline_max_ms=NEVER_INLINE_MS, num_threads=1)
        self._metrics = metrics
        self._max_items = max_items
        self._poll_s = poll_s
        self._default: Scorer | None = None
        self._parsed: tuple[str, RoutingConfig] | None = None
        self._stamp: Stamp | None = None
        self._ids: dict[str, str] = {}
        self._refused: tuple[str, str] | None = None
        self._num_looks_refused = 0
        self._in_use: set[Use] = set()
        self._watch: asyncio.Task[None] | None = None

    def start(self, default: Scorer) -> None:
        """Build the first table; blocks while bundles of arms are loaded.

        Raises:
            RoutingError: The file is wrong, or its bundles cannot serve its domains.
        """
        self._default = default
        self._take(self._look(default), default)

    def watch(self) -> None:
        """Follow the file from now on, until `close`."""
        self._tell()
        self._watch = asyncio.get_running_loop().create_task(self._follow())

    def refresh(self) -> RoutingTable | None:
        """Look once; blocks. Returns the table that was replaced, if one was, for the caller to close."""
        default = self._default
        if default is None:
            return None
        key = ""
        try:
            seen = self._look(default)
            key = str(seen.stamp)
            if seen.stamp == self._stamp:
                self._settle()
                return None
            if self._known_bad(key):
                return None
            before = self.table
            self._take(seen, default)
        except RoutingError as error:
            # A look that fails has no stamp; its reason stands for what is there.
            self._refuse(key or str(error), str(error))
            return None
        except Exception:
            log.exception("routing_refresh_crashed")
            self._refuse(key or UNEXPECTED, UNEXPECTED)
            return None
        self._metrics.routing.reloaded(loaded=True)
        self._refused = None
        self._tell()
        return before

    def describe(self) -> dict[str, str]:
        """For /health/ready: digest of the file that serves, and why what is there now does not."""
        if self._refused is None:
            return {"digest": self.table.digest, "state": "current"}
        return {"digest": self.table.digest, "state": "last_good", "reason": self._refused[1]}

    def close(self) -> None:
        """Stop following; drop shadow runs and their thread."""
        if self._watch is not None:
            self._watch.cancel()
        if self._stamp is not None:
            self.table.close()
        self._shadow_runner.close()

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            replaced = await asyncio.to_thread(self.refresh)
            if replaced is not None:
                replaced.close()

    def _look(self, default: Scorer) -> _Seen:
        """What is there now.

        Raises:
            RoutingError: The file cannot be read or is wrong, or a reference leads nowhere.
        """
        try:
            raw = self._path.read_bytes()
        except OSError as error:
            raise RoutingError(f"{self._path}: cannot be read ({type(error).__name__})") from None
        digest = digest_of(raw)
        if self._parsed is None or self._parsed[0] != digest:
            self._parsed = digest, parse_routing(raw, self._path)
        config = self._parsed[1]
        # The default's own alias means the default bundle, which this process has loaded already.
        ids = self._pool.resolve(name for name in config.references if name != default.loaded.alias)
        return _Seen((digest, tuple(sorted(ids.items()))), config, ids)

    def _take(self, seen: _Seen, default: Scorer) -> None:
        """Serve what was seen.

        Raises:
            RoutingError: It cannot be served; nothing changed.
        """
        bundles = self._pool.open(seen.ids, default.loaded)
        before = None if self._stamp is None else self.table.digest
        digest, _ = seen.stamp
        try:
            self.table = TableBuilder(
                seen.config,
                default=default,
                bundles={**bundles, default.loaded.alias: default.loaded},
                runner=self._runner,
                shadow_runner=self._shadow_runner,
                metrics=self._metrics,
                max_items=self._max_items,
            ).build(digest)
            self._stamp, self._ids = seen.stamp, seen.ids
        finally:
            self._pool.keep(self._ids)
        in_use = {(b.bundle.manifest.name, b.version, b.alias) for b in bundles.values()}
        for model, version, alias in self._in_use - in_use:
            self._metrics.retire_bundle(model=model, version=version, alias=alias)
        self._in_use = in_use
        self._metrics.routing.serves(digest, before)

    def _tell(self) -> None:
        """Log what serves from now on."""
        log.info(
            "routing_serves",
            digest=self.table.digest,
            experiments=[experiment.name for experiment in self.table.config.experiments],
            bundles={name: bundle_id[:12] for name, bundle_id in self._ids.items()},
        )

    def _settle(self) -> None:
        """What serves is what is there, maybe again."""
        if self._refused is not None:
            self._refused = None
            self._metrics.routing.stale.set(0)

    def _known_bad(self, key: str) -> bool:
        """Whether this was refused before and is not due to be tried again."""
        if self._refused is None or self._refused[0] != key:
            return False
        self._num_looks_refused += 1
        return self._num_looks_refused % RETRY_LOOKS != 0

    def _refuse(self, key: str, reason: str) -> None:
        """Serve on by the last good table; said once for what is there."""
        if self._refused is not None and self._refused[0] == key:
            return
        self._refused = key, reason
        self._num_looks_refused = 0
        log.error("routing_refused", reason=reason, serves=self.table.digest)
        self._metrics.routing.reloaded(loaded=False)


__all__ = ["LiveRouting"]
