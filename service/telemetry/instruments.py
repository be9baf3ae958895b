"""What holders of metrics are handed: the declared metrics, by name and kind."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import Counter, Gauge, Histogram


@dataclass(frozen=True, slots=True)
class Instruments:
    """Every row of the table, made.

    Attributes:
        counters: By name.
        histograms: By name.
        gauges: By name.
    """

    counters: dict[str, Counter]
    histograms: dict[str, Histogram]
    gauges: dict[str, Gauge]


__all__ = ["Counter", "Gauge", "Histogram", "Instruments"]
