"""The routing that serves right now, followed while the process runs.

Reads the routing file and the store's aliases every few seconds, off the event loop. A changed file, a
moved alias of an arm or another default bundle makes a plan with a new table, which replaces the old one on
the event loop at once. Invariant: what cannot be planned is refused with a log record, a metric and a
reason in /health/ready, and the last good table serves on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from service.bundles.pool import BundlePool
from service.errors import BundleRefused, RoutingError
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
HOLDER = "routing"
"""Holds the bundles of arms in the pool."""

log = get_logger(__name__)

Use = tuple[str, str, str]
"""Model, version and alias of a bundle of an arm."""

Stamp = tuple[str, tuple[tuple[str, str], ...]]
"""Digest of the file, and the bundle ids behind its references: what a table is made from."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What one look found.

    Attributes:
        stamp: Of it.
        config: The file.
        ids: Of bundles, by reference; without the default's alias.
    """

    stamp: Stamp
    config: RoutingConfig
    ids: dict[str, str]


@dataclass(frozen=True, slots=True)
class Plan:
    """A table that is ready to serve.

    Attributes:
        table: The table.
        seen: What it is made from.
        default: Scorer of the default bundle that it is made for.
        uses: Bundles of its arms.
    """

    table: RoutingTable
    seen: Seen
    default: Scorer
    uses: frozenset[Use]


class LiveRouting:
    """Routing of one process.

    Args:
        path: The routing file.
        pool: Opens bundles of arms.
        runner: Where graphs of arms run.
        metrics: Of this process.
        max_items: Most candidates in one request.
        poll_s: Time between two looks.
    """

    table: RoutingTable
    """Set by the first `commit`, before anything is routed."""

    def __init__(
        self,
        path: Path,
        pool: BundlePool,
        *,
        runner: Runner,
        metrics: Metrics,
        max_items: int,
        poll_s: float,
    ) -> None:
        self.path = path
        self._pool = pool
        self._runner = runner
        # Shadows never run on the event loop, and never take the threads of what serves.
        self._shadow_runner = Runner(inline_max_ms=NEVER_INLINE_MS, num_threads=1)
        self._metrics = metrics
        self._max_items = max_items
        self._poll_s = poll_s
        self._serves: Plan | None = None
        self._parsed: tuple[str, RoutingConfig] | None = None
        self._refused: tuple[str, str] | None = None
        self._num_looks_refused = 0
        self._watch: asyncio.Task[None] | None = None

    def plan(self, default: Scorer) -> Plan:
        """A table around a default bundle; blocks while bundles of arms are loaded.

        It is made from what is there now or, where that cannot be served, from the last good file and
        bundles, so that a broken file does not keep the default where it is. The caller holds `changing`.

        Raises:
            RoutingError: The file is wrong, or its bundles cannot serve its domains.
            BundleRefused: A bundle of an arm cannot be opened.
        """
        try:
            return self._build(self._look(default), default)
        except (RoutingError, BundleRefused):
            if self._serves is None:
                raise
            return self._build(self._serves.seen, default)

    def commit(self, plan: Plan) -> Mapping[str, list[str]]:
        """Serve by a plan from now on; returns what to keep in the pool."""
        before, self._serves = self._serves, plan
        self.table = plan.table
        digest = plan.table.digest
        if before is None:
            self._metrics.routing.serves(digest, None)
        else:
            before.table.close()
            for model, version, alias in before.uses - plan.uses:
                self._metrics.retire_bundle(model=model, version=version, alias=alias)
            self._metrics.routing.serves(digest, before.table.digest)
            if before.seen.stamp != plan.seen.stamp:
                self._metrics.routing.reloaded(loaded=True)
                self._refused = None
        log.info(
            "routing_serves",
            digest=digest,
            default=plan.default.loaded.version,
            experiments=[experiment.name for experiment in plan.seen.config.experiments],
            bundles={name: bundle_id[:12] for name, bundle_id in plan.seen.ids.items()},
        )
        return {HOLDER: list(plan.seen.ids.values())}

    def watch(self) -> None:
        """Follow the file from now on, until `close`."""
        if self._watch is None:
            self._watch = asyncio.get_running_loop().create_task(self._follow())

    async def refresh(self, *, insist: bool = False) -> bool:
        """Look once; whether another table serves now.

        Args:
            insist: Also try what was refused before.
        """
        async with self._pool.changing:
            if self._serves is None:
                return False
            plan = await asyncio.to_thread(self._changed, self._serves, insist=insist)
            if plan is None:
                self._pool.settle()
                return False
            self._pool.keep(self.commit(plan))
            return True

    def describe(self) -> dict[str, str]:
        """For /health/ready: digest of the file that serves, and why what is there now does not."""
        if self._refused is None:
            return {"digest": self.table.digest, "state": "current"}
        return {"digest": self.table.digest, "state": "last_good", "reason": self._refused[1]}

    def close(self) -> None:
        """Stop following; drop shadow runs and their thread."""
        if self._watch is not None:
            self._watch.cancel()
        if self._serves is not None:
            self._serves.table.close()
        self._shadow_runner.close()

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                await self.refresh()
            except Exception:  # whatever it was, the next look is due all the same
                log.exception("routing_watch_crashed")

    def _changed(self, serves: Plan, *, insist: bool) -> Plan | None:
        """A plan for what is there now; None when it serves already or is refused."""
        key = ""
        try:
            seen = self._look(serves.default)
            key = str(seen.stamp)
            if seen.stamp == serves.seen.stamp:
                self._settle()
                return None
            if not insist and self._known_bad(key):
                return None
            return self._build(seen, serves.default)
        except (RoutingError, BundleRefused) as error:
            # A look that fails has no stamp; its reason stands for what is there.
            self._refuse(key or str(error), str(error), serves)
        except Exception:
            log.exception("routing_refresh_crashed")
            self._refuse(key or UNEXPECTED, UNEXPECTED, serves)
        return None

    def _look(self, default: Scorer) -> Seen:
        """What is there now.

        Raises:
            RoutingError: The file cannot be read or is wrong, or a reference leads nowhere.
        """
        try:
            raw = self.path.read_bytes()
        except OSError as error:
            raise RoutingError(f"{self.path}: cannot be read ({type(error).__name__})") from None
        digest = digest_of(raw)
        if self._parsed is None or self._parsed[0] != digest:
            self._parsed = digest, parse_routing(raw, self.path)
        config = self._parsed[1]
        # The default's own alias means the default bundle, which this process has loaded already.
        ids = self._pool.resolve(name for name in config.references if name != default.loaded.alias)
        return Seen((digest, tuple(sorted(ids.items()))), config, ids)

    def _build(self, seen: Seen, default: Scorer) -> Plan:
        """A plan for what was seen.

        Raises:
            RoutingError: It cannot be served.
            BundleRefused: A bundle cannot be opened.
        """
        bundles = self._pool.open(seen.ids)
        table = TableBuilder(
            seen.config,
            default=default,
            bundles={**bundles, default.loaded.alias: default.loaded},
            runner=self._runner,
            shadow_runner=self._shadow_runner,
            metrics=self._metrics,
            max_items=self._max_items,
        ).build(seen.stamp[0])
        uses = frozenset((b.bundle.manifest.name, b.version, b.alias) for b in bundles.values())
        return Plan(table, seen, default, uses)

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

    def _refuse(self, key: str, reason: str, serves: Plan) -> None:
        """Serve on by the last good table; said once for what is there."""
        if self._refused is not None and self._refused[0] == key:
            return
        self._refused = key, reason
        self._num_looks_refused = 0
        log.error("routing_refused", reason=reason, serves=serves.table.digest)
        self._metrics.routing.reloaded(loaded=False)


__all__ = ["HOLDER", "LiveRouting", "Plan", "Seen"]
