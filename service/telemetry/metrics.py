"""Every metric of the service, declared once in `TABLE`.

Several workers share one truth through prometheus-client's multiprocess mode: the supervisor sets
`PROMETHEUS_MULTIPROC_DIR` before a worker imports this module, and whichever worker is scraped adds
up all files. With one worker there are no files. Invariant: no label value comes from a request
except domains that the bundle lists, and of those at most `max_domain_labels`; arms are those of the
routing file, as `experiment/arm`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

MULTIPROCESS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
OTHER = "other"
NO_ARM = "none"
NO_VERSION = "none"

SECONDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
CANDIDATES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
DIFFERENCES = (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
STATUSES = ("fresh", "stale", "missing", "invalid", "failed")
STORE_FAILURES = ("timeout", "connect", "connection", "reply", "backlog", "breaker_open", "closed")
EXPOSURE_OUTCOMES = ("written", "queue_full", "write_failed")
STAGES = ("decode", "features", "infer", "reply", "total")


@dataclass(frozen=True)
class Metric:
    """One row of the table; names end in their unit or `_total`."""

    kind: Literal["counter", "histogram", "gauge"]
    name: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    across_workers: Literal["livesum", "livemax"] = "livesum"


TABLE: tuple[Metric, ...] = (
    Metric(
        "counter",
        "ctr_score_requests_total",
        "Requests to /score by outcome: ok, rejected (4xx), failed (5xx) or disconnected.",
        ("version", "arm", "outcome"),
    ),
    Metric(
        "counter", "ctr_rejected_requests_total", "Problem documents sent by /score, by code.", ("reason",)
    ),
    Metric(
        "histogram",
        "ctr_score_duration_seconds",
        "Time of scored requests by stage; `total` runs from the first byte read to the reply written.",
        ("stage", "version"),
        SECONDS,
    ),
    Metric("histogram", "ctr_candidates_per_request", "Candidates of scored requests.", (), CANDIDATES),
    Metric("gauge", "ctr_inflight_requests", "Requests to /score being worked on."),
    Metric(
        "counter",
        "ctr_feature_reads_total",
        "Entities looked up in the feature source, by group (user, item) and how they were found.",
        ("group", "status"),
    ),
    Metric(
        "counter",
        "ctr_degraded_replies_total",
        "Replies in which a default stands for a part that failed, by part.",
        ("cause",),
    ),
    Metric(
        "counter",
        "ctr_near_cache_requests_total",
        "Ids asked of the near cache: hit, miss (read from the store), or joined (being read already).",
        ("group", "result"),
    ),
    Metric("counter", "ctr_near_cache_evictions_total", "Near cache entries dropped for room.", ("group",)),
    Metric("gauge", "ctr_near_cache_bytes", "Bytes charged to near cache entries.", ("group",)),
    Metric(
        "histogram",
        "ctr_feature_store_duration_seconds",
        "Time of calls to the feature store that succeeded in time.",
        (),
        SECONDS,
    ),
    Metric(
        "counter",
        "ctr_feature_store_failures_total",
        "Calls to the feature store that failed or were not made, by cause.",
        ("cause",),
    ),
    Metric("gauge", "ctr_feature_store_open_breakers", "Feature store servers that are not asked for now."),
    Metric("counter", "ctr_domain_candidates_total", "Candidates scored per domain.", ("domain",)),
    Metric(
        "counter",
        "ctr_domain_scores_total",
        "Sum of scores per domain; over its candidates it is the mean score to hold against the manifest's.",
        ("domain",),
    ),
    Metric(
        "counter",
        "ctr_exposures_total",
        "Exposure records by outcome: written, queue_full or write_failed (both dropped).",
        ("outcome",),
    ),
    Metric(
        "counter",
        "ctr_feedback_requests_total",
        "Requests to /feedback by outcome: ok (on disk), rejected (4xx) or failed (5xx).",
        ("outcome",),
    ),
    Metric(
        "counter",
        "ctr_feedback_items_total",
        "Items of acknowledged feedback, by click.",
        ("click",),
    ),
    Metric(
        "gauge",
        "ctr_bundle_info",
        "1 for every bundle that serves, as default or for an arm.",
        ("model", "version", "alias"),
        across_workers="livemax",
    ),
    Metric(
        "gauge",
        "ctr_routing_info",
        "1 for the routing file that serves, by the digest of its text.",
        ("digest",),
        across_workers="livemax",
    ),
    Metric(
        "counter",
        "ctr_routing_reloads_total",
        "Changed routing files and moved aliases of arms, by result: loaded or refused.",
        ("result",),
    ),
    Metric(
        "gauge",
        "ctr_routing_stale_workers",
        "Workers that serve by their last good routing, since what is there now is refused.",
    ),
    Metric(
        "counter",
        "ctr_shadow_requests_total",
        "Answered requests that a shadow was to score, by the arm that answered and result: scored, dropped "
        "(no room, or busy), late or failed.",
        ("arm", "result"),
    ),
    Metric(
        "histogram",
        "ctr_shadow_abs_difference",
        "Mean absolute difference between served and shadow scores of one request.",
        ("arm",),
        DIFFERENCES,
    ),
    Metric("gauge", "ctr_ready_workers", "Workers that answer /health/ready with 200."),
)


class Metrics:
    """The metrics of one process.

    Args:
        max_domain_labels: Domains with a label value of their own.
    """

    def __init__(self, *, max_domain_labels: int = 100) -> None:
        self._registry = CollectorRegistry()
        self._max_domain_labels = max_domain_labels
        self._counters: dict[str, Counter] = {}
        self._histograms: dict[str, Histogram] = {}
        self._gauges: dict[str, Gauge] = {}
        for row in TABLE:
            self._declare(row)
        self.inflight = self._gauges["ctr_inflight_requests"]
        self.ready = self._gauges["ctr_ready_workers"]
        self.events = EventMetrics(self._counters)
        self.features = FeatureMetrics(self._counters, self._histograms, self._gauges)
        self.routing = RoutingMetrics(self._counters, self._histograms, self._gauges)
        if MULTIPROCESS_VARIABLE not in os.environ:
            ProcessCollector(registry=self._registry)

    def _declare(self, row: Metric) -> None:
        match row.kind:
            case "counter":
                self._counters[row.name] = Counter(row.name, row.help, row.labels, registry=self._registry)
            case "histogram":
                self._histograms[row.name] = Histogram(
                    row.name, row.help, row.labels, registry=self._registry, buckets=row.buckets
                )
            case "gauge":
                self._gauges[row.name] = Gauge(
                    row.name,
                    row.help,
                    row.labels,
                    registry=self._registry,
                    multiprocess_mode=row.across_workers,
                )

    def answered(self, version: str, status: int, code: str, *, arm: str = NO_ARM) -> None:
        """Count a problem document."""
        outcome = "failed" if status >= 500 else "rejected"
        self._counters["ctr_score_requests_total"].labels(version, arm, outcome).inc()
        self._counters["ctr_rejected_requests_total"].labels(code).inc()

    def disconnected(self, version: str) -> None:
        """Count a caller that left before its body was read."""
        self._counters["ctr_score_requests_total"].labels(version, NO_ARM, "disconnected").inc()

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
        info = self._gauges["ctr_bundle_info"]
        info.labels(model, version, alias).set(1)
        own = [domain for domain, _ in zip(domains, range(self._max_domain_labels), strict=False)]
        return BundleMetrics(self._counters, self._histograms, version, own, arm)

    def retire_bundle(self, *, model: str, version: str, alias: str) -> None:
        """Take note that a bundle no longer serves under an alias."""
        self._gauges["ctr_bundle_info"].labels(model, version, alias).set(0)

    def render(self) -> bytes:
        """The text a scrape gets, over all workers. Takes milliseconds: call it off the event loop."""
        if MULTIPROCESS_VARIABLE not in os.environ:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


class BundleMetrics:
    """Children of the hot path's metrics, looked up once per bundle."""

    def __init__(
        self,
        counters: dict[str, Counter],
        histograms: dict[str, Histogram],
        version: str,
        own_domains: list[str],
        arm: str = NO_ARM,
    ) -> None:
        durations = histograms["ctr_score_duration_seconds"]
        stages = [durations.labels(stage, version) for stage in STAGES]
        self.decode, self.features, self.infer, self.reply, self.total = stages
        self._ok = counters["ctr_score_requests_total"].labels(version, arm, "ok")
        self._candidates = histograms["ctr_candidates_per_request"]
        reads = counters["ctr_feature_reads_total"]
        self._user_reads = [reads.labels("user", status) for status in STATUSES]
        self._item_reads = [reads.labels("item", status) for status in STATUSES]
        self._degraded = counters["ctr_degraded_replies_total"]
        rows, sums = counters["ctr_domain_candidates_total"], counters["ctr_domain_scores_total"]
        self._domains = {name: (rows.labels(name), sums.labels(name)) for name in (*own_domains, OTHER)}

    def scored(
        self,
        *,
        domain: str,
        score_sum: float,
        num_items: int,
        user_reads: Iterable[int],
        item_reads: Iterable[int],
        degraded: Iterable[str] = (),
    ) -> None:
        """Count one scored request; reads are numbers of entities in the order of `STATUSES`."""
        self._ok.inc()
        self._candidates.observe(num_items)
        _add(self._user_reads, user_reads)
        _add(self._item_reads, item_reads)
        for cause in degraded:
            self._degraded.labels(cause).inc()
        rows, sums = self._domains.get(domain) or self._domains[OTHER]
        rows.inc(num_items)
        sums.inc(score_sum)


class GroupMetrics:
    """Near cache metrics of one entity."""

    def __init__(self, counters: dict[str, Counter], gauges: dict[str, Gauge], group: str) -> None:
        requests = counters["ctr_near_cache_requests_total"]
        self.hits, self.misses, self.joined = (requests.labels(group, r) for r in ("hit", "miss", "joined"))
        self._evictions = counters["ctr_near_cache_evictions_total"].labels(group)
        self._bytes = gauges["ctr_near_cache_bytes"].labels(group)

    def kept(self, num_bytes: int, num_evicted: int) -> None:
        """Take note of what the near cache holds now."""
        self._bytes.set(num_bytes)
        if num_evicted:
            self._evictions.inc(num_evicted)


class FeatureMetrics:
    """Metrics of the feature store and its near caches."""

    def __init__(
        self, counters: dict[str, Counter], histograms: dict[str, Histogram], gauges: dict[str, Gauge]
    ) -> None:
        failures = counters["ctr_feature_store_failures_total"]
        self._failures = {cause: failures.labels(cause) for cause in STORE_FAILURES}
        self.took = histograms["ctr_feature_store_duration_seconds"].observe
        self.open_breakers = gauges["ctr_feature_store_open_breakers"]
        self.user = GroupMetrics(counters, gauges, "user")
        self.item = GroupMetrics(counters, gauges, "item")

    def failed(self, cause: str) -> None:
        """Count a call that failed, by one of `STORE_FAILURES`."""
        self._failures[cause].inc()


class RoutingMetrics:
    """Metrics of the routing file and of shadows."""

    def __init__(
        self, counters: dict[str, Counter], histograms: dict[str, Histogram], gauges: dict[str, Gauge]
    ) -> None:
        self._info = gauges["ctr_routing_info"]
        self._reloads = counters["ctr_routing_reloads_total"]
        self.stale = gauges["ctr_routing_stale_workers"]
        self._shadowed = counters["ctr_shadow_requests_total"]
        self._difference = histograms["ctr_shadow_abs_difference"]

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


class EventMetrics:
    """Metrics of exposure records and feedback."""

    def __init__(self, counters: dict[str, Counter]) -> None:
        exposures, requests = counters["ctr_exposures_total"], counters["ctr_feedback_requests_total"]
        self._exposures = {name: exposures.labels(name) for name in EXPOSURE_OUTCOMES}
        self._requests = {name: requests.labels(name) for name in ("ok", "rejected", "failed")}
        self._items = [counters["ctr_feedback_items_total"].labels(click) for click in ("0", "1")]

    def exposures(self, outcome: str, count: int) -> None:
        """Count records, by one of `EXPOSURE_OUTCOMES`."""
        self._exposures[outcome].inc(count)

    def accepted(self, num_items: int, num_clicks: int) -> None:
        """Count feedback that is on disk."""
        self._requests["ok"].inc()
        _add(self._items, (num_items - num_clicks, num_clicks))

    def refused(self, status: int) -> None:
        """Count feedback that was answered with a problem document."""
        self._requests["failed" if status >= 500 else "rejected"].inc()


def _add(children: Iterable[Counter], counts: Iterable[int]) -> None:
    for child, count in zip(children, counts, strict=True):
        if count:
            child.inc(count)


__all__ = [
    "MULTIPROCESS_VARIABLE",
    "NO_ARM",
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
