"""What this process can do right now: loading, ready, failed or draining.

The one mutable holder between the life cycle (app, server) and the endpoints. Invariant: `scorer` is
set only after the golden rows passed, `routing` only with a table that serves; once draining, never
ready again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import StrEnum

from service.bundles.registry import LoadedBundle
from service.contract.errors import ContractError
from service.errors import NotReady, StartupError
from service.routing.build import bundle_metrics
from service.routing.live import LiveRouting
from service.scoring.runner import Runner
from service.scoring.scorer import Scorer
from service.telemetry.log import get_logger
from service.telemetry.metrics import BundleMetrics, Metrics

log = get_logger(__name__)

LOADING_REASON = "the bundle is being loaded and verified"
UNEXPECTED_REASON = "the bundle could not be loaded; the log has the cause"
DRAINING_REASON = "the process is draining"


class State(StrEnum):
    """Where the process stands."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    DRAINING = "draining"


class Serving:
    """State of one process.

    Args:
        load: Builds the bundle; blocks, so it is run in a thread.
        runner: Where graphs run.
        metrics: Of this process.
        max_items: Most candidates in one request.
        routing: Chooses between bundles; None where there is no routing file.
    """

    def __init__(
        self,
        load: Callable[[], LoadedBundle],
        runner: Runner,
        metrics: Metrics,
        *,
        max_items: int,
        routing: LiveRouting | None = None,
    ) -> None:
        self._load = load
        self._runner = runner
        self._max_items = max_items
        self._routing = routing
        self.metrics = metrics
        self.state = State.LOADING
        self.reason = LOADING_REASON
        self.scorer: Scorer | None = None
        self.bundle_metrics: BundleMetrics | None = None
        self.routing: LiveRouting | None = None

    async def load(self) -> None:
        """Load the bundle off the event loop; on failure stay up, not ready, with the reason."""
        try:
            scorer = await asyncio.to_thread(self._prepare)
        except (ContractError, StartupError) as error:
            self._fail(str(error))
        except Exception:
            log.exception("bundle_load_crashed")
            self._fail(UNEXPECTED_REASON)
        else:
            self._serve(scorer)

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

    def close(self) -> None:
        """Release the runner's threads."""
        if self._routing is not None:
            self._routing.close()
        self._runner.close()

    def _prepare(self) -> Scorer:
        """Load the bundle, and whatever the routing file asks for beside it; blocks."""
        scorer = Scorer(self._load(), self._runner, max_items=self._max_items)
        if self._routing is not None:
            self._routing.start(scorer)
        return scorer

    def _fail(self, reason: str) -> None:
        log.error("bundle_refused", reason=reason)
        if self.state is State.LOADING:
            self.state = State.FAILED
            self.reason = reason

    def _serve(self, scorer: Scorer) -> None:
        loaded = scorer.loaded
        self.bundle_metrics = bundle_metrics(self.metrics, loaded)
        self.scorer = scorer
        if self._routing is not None:
            self.routing = self._routing
            self._routing.watch()
        log.info(
            "bundle_ready",
            bundle=loaded.bundle.bundle_id,
            alias=loaded.alias,
            domains=len(loaded.bundle.manifest.domains),
            golden_max_error=max(loaded.golden_error.values()),
            load_s=round(loaded.load_s, 3),
        )
        if self.state is State.LOADING:
            self.state = State.READY
            self.reason = ""
            self.metrics.ready.set(1)


__all__ = ["Serving", "State"]
