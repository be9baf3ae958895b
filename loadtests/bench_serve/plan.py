"""What is measured, and what is asked of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from loadtests.bench_serve.load import Form
from loadtests.bench_serve.reference import Model

Better = Literal["more", "less"]


@dataclass(frozen=True)
class Case:
    """Requests of one kind.

    Attributes:
        model: Which reference bundle.
        num_items: N.
        form: How items are sent.
    """

    model: Model
    num_items: int
    form: Form = "ids"

    @property
    def name(self) -> str:
        """For reports and file names."""
        return f"{self.model}-{self.num_items}-{self.form}"


SMALL_100, SMALL_1 = Case("small", 100), Case("small", 1)
AREAD_100, AREAD_10, AREAD_1 = Case("aread", 100), Case("aread", 10), Case("aread", 1)
FEATURES_100 = Case("small", 100, "features")
CASES = (SMALL_100, SMALL_1, FEATURES_100, AREAD_100, AREAD_10, AREAD_1)
BASELINE_CASES = (FEATURES_100,)
BATCHED_CASES = (AREAD_1, AREAD_10)
BATCH_MAX_ROWS = 256
RATE_CASES = (SMALL_100, AREAD_100)


@dataclass(frozen=True)
class Target:
    """One figure with its limit.

    Attributes:
        figure: Key of the figure, `<case>.<name>`.
        better: Whether more or less of it is.
        limit: Passed by at least, or at most, this much.
        says: One line for the report.
    """

    figure: str
    better: Better
    limit: float
    says: str

    def passed(self, value: float) -> bool:
        """Whether a value satisfies the limit."""
        return value >= self.limit if self.better == "more" else value <= self.limit


TARGETS = (
    Target(f"{SMALL_100.name}.of_bare", "more", 0.46, "small, N = 100: rate over the bare graph's"),
    Target(f"{SMALL_1.name}.of_bare", "more", 0.15, "small, N = 1: rate over the bare graph's"),
    Target(f"{SMALL_100.name}.overhead_us", "less", 150, "small, N = 100: CPU us beyond the graph"),
    Target(f"{SMALL_1.name}.overhead_us", "less", 70, "small, N = 1: CPU us beyond the graph"),
    Target(f"{FEATURES_100.name}.of_baseline", "more", 3, "all features sent: rate over plain FastAPI"),
    Target(f"{AREAD_100.name}.of_bare", "more", 0.88, "AREAD, N = 100: rate over the bare graph's"),
    Target(f"{AREAD_10.name}.of_bare", "more", 0.6, "AREAD, N = 10: rate over the bare graph's"),
    Target(f"{SMALL_100.name}.p99_over_p50", "less", 3, "small, half load: p99 over p50"),
    Target(f"{AREAD_100.name}.p99_over_p50", "less", 3, "AREAD, half load: p99 over p50"),
    Target("balance.worst_cpu", "less", 2, "busiest over least busy worker, CPU, worst run"),
    Target("balance.worst_requests", "less", 2, "busiest over least busy worker, requests, worst run"),
    Target("scrape.stop_ms", "less", 2, "a scrape stops the event loop, ms"),
)
