"""What is counted of requests to /score: stages, candidates, reads, scores per domain.

Invariant: the hot path looks up no label; children are found once per bundle and arm.
"""

from __future__ import annotations

from collections.abc import Iterable

from service.telemetry.instruments import Counter, Instruments
from service.telemetry.metric_table import NO_ARM, OTHER, STAGES, STATUSES


class BundleMetrics:
    """Children of the hot path's metrics, looked up once per bundle and arm.

    Args:
        made: The metrics.
        version: Short id of the bundle.
        own_domains: Domains with a label of their own; the rest share one.
        arm: As `experiment/arm`.
    """

    def __init__(
        self, made: Instruments, *, version: str, own_domains: Iterable[str], arm: str = NO_ARM
    ) -> None:
        durations = made.histograms["ctr_score_duration_seconds"]
        stages = [durations.labels(stage, version, arm) for stage in STAGES]
        self.decode, self.features, self.infer, self.reply, self.total = stages
        self._ok = made.counters["ctr_score_requests_total"].labels(version, arm, "ok")
        self._candidates = made.histograms["ctr_candidates_per_request"]
        reads = made.counters["ctr_feature_reads_total"]
        self._user_reads = [reads.labels("user", status) for status in STATUSES]
        self._item_reads = [reads.labels("item", status) for status in STATUSES]
        self._degraded = made.counters["ctr_degraded_replies_total"]
        rows, sums = made.counters["ctr_domain_candidates_total"], made.counters["ctr_domain_scores_total"]
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


def _add(children: Iterable[Counter], counts: Iterable[int]) -> None:
    for child, count in zip(children, counts, strict=True):
        if count:
            child.inc(count)


__all__ = ["BundleMetrics"]
