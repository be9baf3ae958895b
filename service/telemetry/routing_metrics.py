"""What is counted of the routing file and of shadows."""

from __future__ import annotations

from service.telemetry.instruments import Instruments


class RoutingMetrics:
    """Metrics of the routing file and of shadows."""

    def __init__(self, made: Instruments) -> None:
        self._info = made.gauges["ctr_routing_info"]
        self._reloads = made.counters["ctr_routing_reloads_total"]
        self.stale = made.gauges["ctr_routing_stale_workers"]
        self._shadowed = made.counters["ctr_shadow_requests_total"]
        self._difference = made.histograms["ctr_shadow_abs_difference"]

    def serves(self, digest: str, before: str | None) -> None:
        """Take note of the file that serves now, and of the one before it."""
        if before is not None:
            self._info.labels(before).set(0)
        self._info.labels(digest).set(1)

    def reloaded(self, *, loaded: bool) -> None:
        """Count a change that was taken up or refused."""
        self._reloads.labels("loaded" if loaded else "refused").inc()
        self.stale.set(0 if loaded else 1)

    def shadowed(self, arm: str, result: str, difference: float | None = None) -> None:
        """Count what became of a shadow run; the difference is that of a scored one."""
        self._shadowed.labels(arm, result).inc()
        if difference is not None:
            self._difference.labels(arm).observe(difference)


__all__ = ["RoutingMetrics"]
