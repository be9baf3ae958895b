"""The metrics of one process, made from the table and held by concern.

Several workers share one truth: the supervisor names for each worker a file of numbers, beside those of its
siblings, and whichever worker is scraped adds up all of them. Without such a name numbers stay in memory.
Invariants: domains with a label of their own are at most `max_domain_labels`, over all bundles; series of
versions that no longer serve are shown for the last few of them only.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from service.telemetry.drift import mean_score_ratio, window_candidates
from service.telemetry.event_metrics import EventMetrics
from service.telemetry.expert_load import ExpertLoad
from service.telemetry.exposition import Exposition
from service.telemetry.feature_metrics import FeatureMetrics, GroupMetrics
from service.telemetry.infer_metrics import InferMetrics
from service.telemetry.instruments import Instruments
from service.telemetry.metric_table import NO_ARM, NO_VERSION, OTHER, STATUSES, TABLE, Metric
from service.telemetry.reload_metrics import ReloadMetrics
from service.telemetry.routing_metrics import RoutingMetrics
from service.telemetry.score_metrics import BundleMetrics
from service.telemetry.slots import KEYS_SUFFIX, SlotFiles, Slots
from service.telemetry.worker_metrics import WorkerMetrics

SLOTS_VARIABLE = "WORKER_METRICS_FILE"
"""Environment variable by which the supervisor names a worker's file."""
RETIRED_SHOWN = 8
DERIVED = {
    "ctr_mean_score_ratio": mean_score_ratio,
    "ctr_mean_score_window_candidates": window_candidates,
}
GAUGES = tuple(row.name for row in TABLE if row.kind == "gauge" and not row.derived)


class Metrics:
    """The metrics of one process.

    Args:
        max_domain_labels: Domains with a label value of their own.
        file: File of this worker, without suffix, in a folder with those of its siblings; None: no siblings.
    """

    def __init__(self, *, max_domain_labels: int = 100, file: Path | None = None) -> None:
        self._max_domain_labels = max_domain_labels
        self._own_domains: set[str] = set()
        self._serving: set[tuple[str, str, str]] = set()
        self._retired: deque[str] = deque()
        self._file = file
        self._slots = Slots(file)
        self._slots.clear(GAUGES)
        self._made = made = Instruments(TABLE, self._slots)
        self._exposition = Exposition(TABLE, DERIVED)
        self._exposition.add(self._slots)
        self._siblings: set[Path] = set()
        self.inflight = made.gauge("ctr_inflight_requests")
        self.ready = made.gauge("ctr_ready_workers")
        self.events = EventMetrics(made)
        self.features = FeatureMetrics(made)
        self.routing = RoutingMetrics(made)
        self.infer = InferMetrics(made)
        self.worker = WorkerMetrics(made, "0" if file is None else file.name.rpartition("-")[2])
        self.reloads = ReloadMetrics(made)

    def answered(self, version: str, status: int, code: str, *, arm: str = NO_ARM) -> None:
        """Count a problem document."""
        outcome = "failed" if status >= 500 else "rejected"
        self._made.counter("ctr_score_requests_total", version, arm, outcome).inc()
        self._made.counter("ctr_rejected_requests_total", code).inc()

    def disconnected(self, version: str) -> None:
        """Count a caller that left before its body was read."""
        self._made.counter("ctr_score_requests_total", version, NO_ARM, "disconnected").inc()

    def for_bundle(
        self,
        *,
        model: str,
        version: str,
        alias: str,
        mean_scores: Mapping[str, float | None],
        arm: str = NO_ARM,
    ) -> BundleMetrics:
        """Metrics of one bundle, for one arm of an experiment.

        Args:
            model: Name of the model.
            version: Short id of the bundle.
            alias: Under which it serves.
            mean_scores: Its domains in order of importance, of which the first get labels of their own, and
                their mean scores where these are known.
            arm: As `experiment/arm`.
        """
        self._made.gauge("ctr_bundle_info", model, version, alias).set(1)
        self._serving.add((model, version, alias))
        if version in self._retired:
            self._retired.remove(version)
        self._slots.hide(version, hidden=False)
        for domain in mean_scores:
            if len(self._own_domains) < self._max_domain_labels:
                self._own_domains.add(domain)
        own = [domain for domain in mean_scores if domain in self._own_domains]
        return BundleMetrics(self._made, version=version, own_domains=own, mean_scores=mean_scores, arm=arm)

    def expert_load(self, *, version: str, domains: Sequence[str], num_experts: int) -> ExpertLoad:
        """Counters of the experts that rows of a bundle choose.

        Args:
            version: Short id of the bundle.
            domains: Names by index in graphs; those without a label of their own share one.
            num_experts: Experts to choose from.
        """
        labels = [name if name in self._own_domains else OTHER for name in domains]
        return ExpertLoad(self._made, version=version, labels=[*labels, OTHER], num_experts=num_experts)

    def retire_bundle(self, *, model: str, version: str, alias: str) -> None:
        """Take note that a bundle no longer serves under an alias."""
        self._made.gauge("ctr_bundle_info", model, version, alias).set(0)
        self._serving.discard((model, version, alias))
        if version in self._retired or any(version == serving for _, serving, _ in self._serving):
            return
        self._retired.append(version)
        if len(self._retired) > RETIRED_SHOWN:
            self._slots.hide(self._retired.popleft(), hidden=True)

    def close_bundle(self, version: str) -> None:
        """Take note that a bundle was closed: it serves under no alias, not even one that came to nothing."""
        for model, _, alias in [use for use in self._serving if use[1] == version]:
            self.retire_bundle(model=model, version=version, alias=alias)

    def render(self) -> bytes:
        """The text a scrape gets, over all workers."""
        self._look_for_siblings()
        return self._exposition.render()

    async def render_in_turns(self) -> bytes:
        """The same, made while the event loop goes on turning."""
        self._look_for_siblings()
        return await self._exposition.render_in_turns()

    def _look_for_siblings(self) -> None:
        if self._file is None:
            return
        for keys in sorted(self._file.parent.glob(f"*{KEYS_SUFFIX}")):
            path = keys.with_suffix("")
            if path != self._file and path not in self._siblings:
                self._siblings.add(path)
                self._exposition.add(SlotFiles(path))


def worker_file() -> Path | None:
    """The file that the supervisor named for this worker; None without a supervisor."""
    name = os.environ.get(SLOTS_VARIABLE)
    return Path(name) if name else None


def forget_worker(file: Path) -> None:
    """Set a dead worker's gauges to zero until another takes its place; its counters stay."""
    if file.with_suffix(KEYS_SUFFIX).exists():
        Slots(file).clear(GAUGES)


__all__ = [
    "NO_ARM",
    "NO_VERSION",
    "SLOTS_VARIABLE",
    "STATUSES",
    "TABLE",
    "BundleMetrics",
    "EventMetrics",
    "FeatureMetrics",
    "GroupMetrics",
    "Metric",
    "Metrics",
    "ReloadMetrics",
    "RoutingMetrics",
    "WorkerMetrics",
    "forget_worker",
    "worker_file",
]
