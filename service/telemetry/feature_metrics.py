"""What is counted of the feature store and its near caches."""

from __future__ import annotations

from service.telemetry.instruments import Instruments
from service.telemetry.metric_table import STORE_FAILURES


class GroupMetrics:
    """Near cache metrics of one entity."""

    def __init__(self, made: Instruments, group: str) -> None:
        requests = made.counters["ctr_near_cache_requests_total"]
        self.hits, self.misses, self.joined = (requests.labels(group, r) for r in ("hit", "miss", "joined"))
        self._evictions = made.counters["ctr_near_cache_evictions_total"].labels(group)
        self._bytes = made.gauges["ctr_near_cache_bytes"].labels(group)

    def kept(self, num_bytes: int, num_evicted: int) -> None:
        """Take note of what the near cache holds now."""
        self._bytes.set(num_bytes)
        if num_evicted:
            self._evictions.inc(num_evicted)


class FeatureMetrics:
    """Metrics of the feature store and its near caches."""

    def __init__(self, made: Instruments) -> None:
        failures = made.counters["ctr_feature_store_failures_total"]
        self._failures = {cause: failures.labels(cause) for cause in STORE_FAILURES}
        self.took = made.histograms["ctr_feature_store_duration_seconds"].observe
        self.open_breakers = made.gauges["ctr_feature_store_open_breakers"]
        self.user = GroupMetrics(made, "user")
        self.item = GroupMetrics(made, "item")

    def failed(self, cause: str) -> None:
        """Count a call that failed, by one of `STORE_FAILURES`."""
        self._failures[cause].inc()


__all__ = ["FeatureMetrics", "GroupMetrics"]
