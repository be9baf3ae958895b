"""What is counted of requests to /score: stages, candidates, reads, scores and their drift per domain.

Invariant: a request that was scored looks up no label; series are found once per bundle and arm.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from service.telemetry.drift import NUM_SLOTS, ScoreWindow
from service.telemetry.instruments import Counter, Instruments
from service.telemetry.metric_table import NO_ARM, OTHER, STAGES, STATUSES, WINDOW


class DomainSeries:
    """Series of one domain label.

    Args:
        made: The metrics.
        label: The domain, or `other`.
    """

    __slots__ = ("candidates", "scores", "window")

    def __init__(self, made: Instruments, label: str) -> None:
        self.candidates = made.counter("ctr_domain_candidates_total", label)
        self.scores = made.counter("ctr_domain_scores_total", label)
        self.window = ScoreWindow(made.slots.claim(WINDOW, (label,), NUM_SLOTS))


class BundleMetrics:
    """Series of one bundle in one arm.

    Args:
        made: The metrics.
        version: Short id of the bundle.
        own_domains: Domains with a label of their own; the rest share one.
        mean_scores: Mean score of each domain by the manifest, where it is known.
        arm: As `experiment/arm`.
    """

    def __init__(
        self,
        made: Instruments,
        *,
        version: str,
        own_domains: Collection[str],
        mean_scores: Mapping[str, float | None],
        arm: str = NO_ARM,
    ) -> None:
        stages = [made.histogram("ctr_score_duration_seconds", stage, version, arm) for stage in STAGES]
        self.decode, self.features, self.infer, self.reply, self.total = stages
        self._made = made
        self._ok = made.counter("ctr_score_requests_total", version, arm, "ok")
        self._candidates = made.histogram("ctr_candidates_per_request")
        self._user_reads = [made.counter("ctr_feature_reads_total", "user", status) for status in STATUSES]
        self._item_reads = [made.counter("ctr_feature_reads_total", "item", status) for status in STATUSES]
        self._other = DomainSeries(made, OTHER)
        own = {name: DomainSeries(made, name) for name in own_domains}
        self._domains = {
            name: (own.get(name, self._other), mean_scores.get(name)) for name in (*own, *mean_scores)
        }

    def scored(
        self,
        *,
        domain: str,
        score_sum: float,
        num_items: int,
        user_reads: Iterable[int],
        item_reads: Iterable[int],
        degraded: Iterable[str] = (),
        blended: bool = False,
    ) -> None:
        """Count one scored request.

        Args:
            domain: As requested.
            score_sum: Of all candidates.
            num_items: Candidates.
            user_reads: Numbers of entities in the order of `STATUSES`.
            item_reads: The same.
            degraded: Parts that a default stands for.
            blended: Whether another bundle had a say, so that the manifest's mean is no measure.
        """
        self._ok.inc()
        self._candidates.observe(num_items)
        _add(self._user_reads, user_reads)
        _add(self._item_reads, item_reads)
        for cause in degraded:
            self._made.counter("ctr_degraded_replies_total", cause).inc()
        series, mean = self._domains.get(domain) or (self._other, None)
        series.candidates.inc(num_items)
        series.scores.inc(score_sum)
        if mean is not None and not blended:
            series.window.add(num_items, score_sum, mean * num_items)


def _add(series: Iterable[Counter], counts: Iterable[int]) -> None:
    for one, count in zip(series, counts, strict=True):
        if count:
            one.inc(count)


__all__ = ["BundleMetrics", "DomainSeries"]
