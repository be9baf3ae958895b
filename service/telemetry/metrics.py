"""The metrics of one process, made from the table and held by concern.

Several workers share one truth through prometheus-client's multiprocess mode: the supervisor sets
`PROMETHEUS_MULTIPROC_DIR` before a worker imports this module, and whichever worker is scraped adds
up all files. With one worker there are no files.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from service.telemetry.event_metrics import EventMetrics
from service.telemetry.feature_metrics import FeatureMetrics, GroupMetrics
from service.telemetry.instruments import Instruments
from service.telemetry.metric_table import NO_ARM, NO_VERSION, STATUSES, TABLE, Metric
from service.telemetry.routing_metrics import RoutingMetrics
from service.telemetry.score_metrics import BundleMetrics

MULTIPROCESS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


class Metrics:
    """The metrics of one process.

    Args:
        max_domain_labels: Domains with a label value of their own.
    """

    def __init__(self, *, max_domain_labels: int = 100) -> None:
        self._registry = CollectorRegistry()
        self._max_domain_labels = max_domain_labels
        self._made = made = Instruments({}, {}, {})
        for row in TABLE:
            self._declare(row)
        self.inflight = self._made.gauges["ctr_inflight_requests"]
        self.ready = self._made.gauges["ctr_ready_workers"]
        self.events = EventMetrics(made)
        self.features = FeatureMetrics(made)
        self.routing = RoutingMetrics(made)
        if MULTIPROCESS_VARIABLE not in os.environ:
            ProcessCollector(registry=self._registry)

    def _declare(self, row: Metric) -> None:
        match row.kind:
            case "counter":
                self._made.counters[row.name] = Counter(
                    row.name, row.help, row.labels, registry=self._registry
                )
            case "histogram":
                self._made.histograms[row.name] = Histogram(
                    row.name, row.help, row.labels, registry=self._registry, buckets=row.buckets
                )
            case "gauge":
                self._made.gauges[row.name] = Gauge(
                    row.name,
                    row.help,
                    row.labels,
                    registry=self._registry,
                    multiprocess_mode=row.across_workers,
                )

    def answered(self, version: str, status: int, code: str, *, arm: str = NO_ARM) -> None:
        """Count a problem document."""
        outcome = "failed" if status >= 500 else "rejected"
        self._made.counters["ctr_score_requests_total"].labels(version, arm, outcome).inc()
        self._made.counters["ctr_rejected_requests_total"].labels(code).inc()

    def disconnected(self, version: str) -> None:
        """Count a caller that left before its body was read."""
        self._made.counters["ctr_score_requests_total"].labels(version, NO_ARM, "disconnected").inc()

    def for_bundle(
        self, *, model: str, version: str, alias: str, domains: Iterable[str], arm: str = NO_ARM
    ) -> BundleMetrics:
        """Metrics of one bundle, for one arm of an experiment.

        Args:
            model: Name of the model.
            version: Short id of the bundle.
            alias: Under which it serves.
            domains: In order of importance; the first get labels of their own.
            arm: As `experiment/arm`.
        """
        info = self._made.gauges["ctr_bundle_info"]
        info.labels(model, version, alias).set(1)
        own = [domain for domain, _ in zip(domains, range(self._max_domain_labels), strict=False)]
        return BundleMetrics(self._made, version=version, own_domains=own, arm=arm)

    def retire_bundle(self, *, model: str, version: str, alias: str) -> None:
        """Take note that a bundle no longer serves under an alias."""
        self._made.gauges["ctr_bundle_info"].labels(model, version, alias).set(0)

    def render(self) -> bytes:
        """The text a scrape gets, over all workers. Takes milliseconds: call it off the event loop."""
        if MULTIPROCESS_VARIABLE not in os.environ:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


__all__ = [
    "MULTIPROCESS_VARIABLE",
    "NO_ARM",
    "NO_VERSION",
    "STATUSES",
    "TABLE",
    "BundleMetrics",
    "EventMetrics",
    "FeatureMetrics",
    "GroupMetrics",
    "Metric",
    "Metrics",
    "RoutingMetrics",
]
