"""What is counted of the feature store and its near caches."""

from __future__ import annotations

from service.telemetry.instruments import Instruments
from service.telemetry.metric_table import STORE_FAILURES


class GroupMetrics:
    """Near cache metrics of one entity."""

    def __init__(self, made: Instruments, group: str) -> None:
        self.hits, self.misses, self.joined = (
            made.counter("ctr_near_cache_requests_total", group, result)
            for result in ("hit", "miss", "joined")
        )
        self._evictions = made.counter("ctr_near_cache_evictions_total", group)
        self._bytes = made.gauge("ctr_near_cache_bytes", group)

    def kept(self, num_bytes: int, num_evicted: int) -> None:
        """Take note of what the near cache holds now."""
        self._bytes.set(num_bytes)
        if num_evicted:
            self._evictions.inc(num_evicted)


class FeatureMetrics:
    """Metrics of the feature store and its near caches."""

    def __init__(self, made: Instruments) -> None:
        self._failures = {
            cause: made.counter("ctr_feature_store_failures_total", cause) for cause in STORE_FAILURES
        }
        self.took = made.histogram("ctr_feature_store_duration_seconds").observe
        self.open_breakers = made.gauge("ctr_feature_store_open_breakers")
        self.user = GroupMetrics(made, "user")
        self.item = GroupMetrics(made, "item")

    def failed(self, cause: str) -> None:
        """Count a call that failed, by one of `STORE_FAILURES`."""
        self._failures[cause].inc()


__all__ = ["FeatureMetrics", "GroupMetrics"]
