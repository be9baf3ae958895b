"""Every metric of the service, declared once: name, kind, labels, help.

Read by the registry, which makes what is declared here, and by tests that hold documents, dashboards and
alerts to it. Invariants: names start with `ctr_` and end in their unit or `_total`; no label value comes
from a request except domains that a bundle lists, and of those at most `max_domain_labels`; arms are those
of the routing file, as `experiment/arm`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OTHER = "other"
NO_ARM = "none"
NO_VERSION = "none"

SECONDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
CANDIDATES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
DIFFERENCES = (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
WINDOW = "score_window"
"""Slots that drift is worked out from; no metric of its own."""
STATUSES = ("fresh", "stale", "missing", "invalid", "failed")
STORE_FAILURES = ("timeout", "connect", "connection", "reply", "backlog", "breaker_open", "closed")
EXPOSURE_OUTCOMES = ("written", "queue_full", "write_failed")
STAGES = ("decode", "features", "infer", "reply", "total")


@dataclass(frozen=True)
class Metric:
    """One row of the table.

    Attributes:
        kind: How it behaves.
        name: Ends in its unit or `_total`.
        help: One sentence or two.
        labels: Names of its labels.
        buckets: Upper bounds of a histogram's buckets, rising; one above all is implied.
        across_workers: How gauges of several workers become one.
        derived: Series of slots that a scrape works it out from; nobody writes it.
    """

    kind: Literal["counter", "histogram", "gauge"]
    name: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    across_workers: Literal["sum", "max"] = "sum"
    derived: str = ""

    @property
    def num_slots(self) -> int:
        """Numbers that a series needs: one; for a histogram one a bucket, one above all, and the sum."""
        return len(self.buckets) + 2 if self.kind == "histogram" else 1


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
        "Time of scored requests by stage, bundle and arm; `total` runs from the request's head to the reply "
        "written.",
        ("stage", "version", "arm"),
        SECONDS,
    ),
    Metric("histogram", "ctr_candidates_per_request", "Candidates of scored requests.", (), CANDIDATES),
    Metric(
        "counter",
        "ctr_infer_requests_total",
        "Requests to infer by outcome: ok, rejected (4xx), failed (5xx) or disconnected.",
        ("version", "outcome"),
    ),
    Metric(
        "histogram",
        "ctr_infer_duration_seconds",
        "Time of infer requests that were answered, from the request's head to the reply written.",
        ("version",),
        SECONDS,
    ),
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
        "Sum of scores per domain; over its candidates it is the mean score.",
        ("domain",),
    ),
    Metric(
        "counter",
        "ctr_expert_rows_total",
        "Candidates that an expert was run for, in graphs whose rows choose among experts.",
        ("version", "domain", "expert"),
    ),
    Metric(
        "gauge",
        "ctr_mean_score_ratio",
        "Mean score per domain over the mean that manifests give, of the last ten minutes; 1 is no drift.",
        ("domain",),
        derived=WINDOW,
    ),
    Metric(
        "gauge",
        "ctr_mean_score_window_candidates",
        "Candidates that ctr_mean_score_ratio is made of: with few of them it says little.",
        ("domain",),
        derived=WINDOW,
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
        across_workers="max",
    ),
    Metric(
        "counter",
        "ctr_bundle_reloads_total",
        "Looks for another default bundle by result: loaded, unchanged or refused.",
        ("result",),
    ),
    Metric(
        "gauge",
        "ctr_bundle_stale_workers",
        "Workers that serve by their last good bundle, since what the alias names now is refused.",
    ),
    Metric(
        "gauge",
        "ctr_bundle_open_bytes",
        "Estimated memory of all open bundles, those that still drain included; the largest of all workers.",
        across_workers="max",
    ),
    Metric(
        "gauge",
        "ctr_routing_info",
        "1 for the routing file that serves, by the digest of its text.",
        ("digest",),
        across_workers="max",
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
    Metric(
        "gauge",
        "ctr_worker_resident_memory_bytes",
        "Memory of a worker; files it shares with others, such as a bundle's, are counted in each.",
        ("worker",),
    ),
    Metric(
        "counter", "ctr_worker_cpu_seconds_total", "CPU time of a worker, over its restarts.", ("worker",)
    ),
    Metric("gauge", "ctr_worker_start_time_seconds", "When a worker was started, in Unix time.", ("worker",)),
    Metric(
        "histogram",
        "ctr_event_loop_lag_seconds",
        "How much later than asked event loops came to a timer, once a second: what requests wait for.",
        (),
        SECONDS,
    ),
    Metric("gauge", "ctr_max_inflight_requests", "Requests to /score that all workers take at a time."),
    Metric("gauge", "ctr_deadline_seconds", "Time a request may take at most, as set.", across_workers="max"),
    Metric("gauge", "ctr_graph_threads", "Threads for graph runs off the event loop, of all workers."),
    Metric(
        "gauge",
        "ctr_cpu_quota_cores",
        "CPUs the process may use, by control group and affinity.",
        across_workers="max",
    ),
)


def page() -> str:
    """The table as Markdown, for the page beside this module."""
    rows = [
        f"| `{row.name}` | {row.kind} | {', '.join(row.labels)} | {row.help} |"
        for row in sorted(TABLE, key=lambda row: row.name)
    ]
    return "\n".join(["| metric | kind | labels | meaning |", "|---|---|---|---|", *rows]) + "\n"


__all__ = [
    "CANDIDATES",
    "DIFFERENCES",
    "EXPOSURE_OUTCOMES",
    "NO_ARM",
    "NO_VERSION",
    "OTHER",
    "SECONDS",
    "STAGES",
    "STATUSES",
    "STORE_FAILURES",
    "TABLE",
    "WINDOW",
    "Metric",
    "page",
]


if __name__ == "__main__":
    print(page(), end="")
