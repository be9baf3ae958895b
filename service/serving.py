"""What this process can do right now: loading, ready, failed or draining; and which bundle it does it with.

The one mutable holder between the life cycle (app, server) and the endpoints. Reads the model store, follows
its aliases. Invariants: `scorer` is set only after the golden rows passed, `routing` only with a table that
serves, and both change in one step of the event loop; what cannot be loaded leaves the last good bundle
serving; once draining, never ready again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from enum import StrEnum
from typing import Any

from service.bundles.pool import BundlePool
from service.bundles.reload import FileState, Reload, Result, file_states
from service.contract.errors import ContractError
from service.contract.store import ALIASES_FILE
from service.errors import NotReady, StartupError
from service.routing.build import bundle_metrics
from service.routing.live import LiveRouting, Plan
from service.scoring.runner import Runner
from service.scoring.scorer import Scorer
from service.telemetry.log import get_logger
from service.telemetry.metrics import BundleMetrics, Metrics

log = get_logger(__name__)

LOADING_REASON = "the bundle is being loaded and verified"
UNEXPECTED_REASON = "the bundle could not be loaded; the log has the cause"
DRAINING_REASON = "the process is draining"
HOLDER = "default"
"""Holds the default bundle in the pool."""

Seen = tuple[tuple[FileState, ...], str | None]
"""What tells that a reload may find something else: states of files, and the digest of the routing table."""


class State(StrEnum):
    """Where the process stands."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    DRAINING = "draining"


class Serving:
    """State of one process.

    Args:
        pool: Opens bundles.
        reference: Alias (or id, or part of one) of the default bundle.
        runner: Where graphs run.
        metrics: Of this process.
        max_items: Most candidates in one request.
        routing: Chooses between bundles; None where there is no routing file.
        poll_s: Time between two looks at the store's aliases; 0 for none.
    """

    def __init__(
        self,
        pool: BundlePool,
        reference: str,
        runner: Runner,
        metrics: Metrics,
        *,
        max_items: int,
        routing: LiveRouting | None = None,
        poll_s: float = 0.0,
    ) -> None:
        self.pool = pool
        self._reference = reference
        self._runner = runner
        self._max_items = max_items
        self._routing = routing
        self._poll_s = poll_s
        self._seen: Seen | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.metrics = metrics
        self.state = State.LOADING
        self.reason = LOADING_REASON
        self.scorer: Scorer | None = None
        self.bundle_metrics: BundleMetrics | None = None
        self.routing: LiveRouting | None = None
        self.before_ready: Callable[[], None] | None = None
        """Called once, when the first bundle is there and no request is answered yet."""
        self.last_reload: Reload | None = None
        self.last_failure: Reload | None = None
        self.refused: Reload | None = None
        """The last reload, if what is there now was refused by it."""

    async def load(self) -> None:
        """Load the bundle, then follow its alias; on failure stay up, not ready, and say why."""
        await self.reload()
        if self._poll_s:
            self._spawn(self._follow)

    async def reload(self) -> Reload:
        """Serve the bundle that the reference names now; on any failure nothing changes.

        Opens, verifies and warms it in a thread, with a routing table around it, then swaps. The bundle
        before it answers the requests that it has begun.
        """
        async with self.pool.changing:
            self._seen = self._look()
            begun, reason, result = time.perf_counter(), "", Result.UNCHANGED
            try:
                change = None if self.draining else await asyncio.to_thread(self._prepare)
                if self.draining:
                    reason = DRAINING_REASON
                elif change is not None:
                    self._swap(*change)
                    result = Result.LOADED
            except (ContractError, StartupError) as error:
                reason = str(error)
            except Exception:
                log.exception("bundle_load_crashed")
                reason = UNEXPECTED_REASON
            if reason:
                self.pool.settle()
                return self._refuse(reason, begun)
            return self._ended(result, begun)

    async def reload_all(self) -> Reload:
        """Reload the default bundle, then the routing, what was refused before included."""
        done = await self.reload()
        if self.routing is not None:
            await self.routing.refresh(insist=True)
        return done

    def request_reload(self) -> None:
        """Begin `reload_all`; for a signal handler of the event loop."""
        log.info("reload_requested")

        async def reload() -> None:
            await self.reload_all()

        self._spawn(reload)

    def begin_drain(self) -> None:
        """Turn not ready for good; requests are still answered."""
        if self.state is State.READY:
            self.metrics.ready.set(0)
        self.state = State.DRAINING
        self.reason = DRAINING_REASON

    @property
    def draining(self) -> bool:
        """Whether replies should ask callers to connect elsewhere."""
        return self.state is State.DRAINING

    @property
    def version(self) -> str | None:
        """Short id of the bundle that serves."""
        return None if self.scorer is None else self.scorer.loaded.version

    def require(self) -> tuple[Scorer, BundleMetrics]:
        """The scorer and its metrics.

        Raises:
            NotReady: No verified bundle is there (yet).
        """
        if self.scorer is None or self.bundle_metrics is None:
            raise NotReady(self.reason, retry_after_s=1)
        return self.scorer, self.bundle_metrics

    def describe(self) -> dict[str, str]:
        """For /health/ready: whether the bundle that serves is what the alias names, and why not."""
        if self.refused is None:
            return {"state": "current"}
        return {"state": "last_good", "reason": self.refused.reason}

    def close(self) -> None:
        """Stop following; release the runner's threads."""
        for task in self._tasks:
            task.cancel()
        if self._routing is not None:
            self._routing.close()
        self._runner.close()

    async def _follow(self) -> None:
        """Reload whenever what a reload reads has changed."""
        while True:
            await asyncio.sleep(self._poll_s)
            if await asyncio.to_thread(self._look) != self._seen:
                await self.reload()

    def _look(self) -> Seen:
        """What tells whether a reload may end in another way than the last one."""
        aliases = self.pool.store.path / ALIASES_FILE
        if self._routing is None:
            return file_states((aliases,)), None
        if self.routing is None:
            return file_states((aliases, self._routing.path)), None
        # A bundle that the routing refused may do for the table that serves now.
        return file_states((aliases,)), self.routing.table.digest

    def _prepare(self) -> tuple[Scorer, Plan | None] | None:
        """What to serve from now on; None when it serves already. Blocks.

        Raises:
            ContractError: The reference leads nowhere.
            BundleRefused: The bundle does not load, or there is no room for it.
            RoutingError: The routing file is wrong, or does not go with the bundle.
        """
        bundle_id = self.pool.store.resolve(self._reference)
        if self.scorer is not None and self.scorer.loaded.bundle_id == bundle_id:
            return None
        loaded = self.pool.open({self._reference: bundle_id})[self._reference]
        scorer = Scorer(loaded, self._runner, max_items=self._max_items)
        return scorer, None if self._routing is None else self._routing.plan(scorer)

    def _swap(self, scorer: Scorer, plan: Plan | None) -> None:
        before, loaded = self.scorer, scorer.loaded
        self.bundle_metrics = bundle_metrics(self.metrics, loaded)
        self.scorer = scorer
        held = {HOLDER: [loaded.bundle_id]}
        if plan is not None and self._routing is not None:
            held.update(self._routing.commit(plan))
            self.routing = self._routing
            self.routing.watch()
        if before is not None:
            old = before.loaded
            self.metrics.retire_bundle(model=old.bundle.manifest.name, version=old.version, alias=old.alias)
        self.pool.keep(held)
        log.info(
            "bundle_ready",
            bundle=loaded.bundle_id,
            alias=loaded.alias,
            before=None if before is None else before.loaded.bundle_id,
            domains=len(loaded.bundle.manifest.domains),
            golden_max_error=max(loaded.golden_error.values()),
            load_s=round(loaded.load_s, 3),
        )
        if before is None and self.before_ready is not None:
            self.before_ready()
        if self.state in (State.LOADING, State.FAILED):
            self.state = State.READY
            self.reason = ""
            self.metrics.ready.set(1)

    def _refuse(self, reason: str, begun: float) -> Reload:
        log.error("bundle_refused", reason=reason, serves=self.version)
        if self.state in (State.LOADING, State.FAILED):
            self.state = State.FAILED
            self.reason = reason
        self.last_failure = self._ended(Result.REFUSED, begun, reason)
        return self.last_failure

    def _ended(self, result: Result, begun: float, reason: str = "") -> Reload:
        """Take note of how a reload ended."""
        bundle = None if self.scorer is None else self.scorer.loaded.bundle_id
        took_s = round(time.perf_counter() - begun, 3)
        done = Reload(result, bundle, reason, took_s, time.time_ns() // 1_000_000)
        self.last_reload = done
        self.refused = done if result is Result.REFUSED else None
        self.metrics.reloads.ended(result, stale=self.scorer is not None and self.refused is not None)
        self.metrics.reloads.open_bytes.set(self.pool.num_bytes)
        return done

    def _spawn(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = asyncio.get_running_loop().create_task(work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


__all__ = ["Serving", "State"]
