"""What is counted of bundles that come and go."""

from __future__ import annotations

from service.telemetry.instruments import Instruments


class ReloadMetrics:
    """Metrics of reloads of the default bundle, and of all bundles that are open."""

    def __init__(self, made: Instruments) -> None:
        self._made = made
        self._stale = made.gauge("ctr_bundle_stale_workers")
        self.open_bytes = made.gauge("ctr_bundle_open_bytes")

    def ended(self, result: str, *, stale: bool) -> None:
        """Count a reload; stale where the last good bundle serves on instead of what is there."""
        self._made.counter("ctr_bundle_reloads_total", result).inc()
        self._stale.set(1 if stale else 0)


__all__ = ["ReloadMetrics"]
