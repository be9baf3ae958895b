"""What is counted of the routing file and of shadows."""

from __future__ import annotations

from service.telemetry.instruments import Instruments


class RoutingMetrics:
    """Metrics of the routing file and of shadows."""

    def __init__(self, made: Instruments) -> None:
        self._made = made
        self.stale = made.gauge("ctr_routing_stale_workers")

    def serves(self, digest: str, before: str | None) -> None:
        """Take note of the file that serves now, and of the one before it."""
        if before is not None:
            self._made.gauge("ctr_routing_info", before).set(0)
        self._made.gauge("ctr_routing_info", digest).set(1)

    def reloaded(self, *, loaded: bool) -> None:
        """Count a change that was taken up or refused."""
        self._made.counter("ctr_routing_reloads_total", "loaded" if loaded else "refused").inc()
        self.stale.set(0 if loaded else 1)

    def shadowed(self, arm: str, result: str, difference: float | None = None) -> None:
        """Count what became of a shadow run; the difference is that of a scored one."""
        self._made.counter("ctr_shadow_requests_total", arm, result).inc()
        if difference is not None:
            self._made.histogram("ctr_shadow_abs_difference", arm).observe(difference)


__all__ = ["RoutingMetrics"]
