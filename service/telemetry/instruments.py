"""Counters, gauges and histograms over slots, and all that the table declares, by name.

Updating prometheus-client's own in its multiprocess mode would cost a request six times as much (33 us of
processor time against 5, `python -m loadtests.bench_metrics`), so numbers are kept here and the library
writes them out.
Invariant: a series is updated by one thread at a time, mostly that of the event loop; nothing here locks or
looks up a label unless asked for a series by name.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

from service.telemetry.metric_table import Metric
from service.telemetry.slots import Labels, Slots


class Counter:
    """A number that grows."""

    __slots__ = ("_slots",)

    def __init__(self, slots: memoryview[float]) -> None:
        self._slots = slots

    def inc(self, amount: float = 1.0) -> None:
        """Add an amount, which is not negative."""
        self._slots[0] += amount


class Gauge:
    """A number that goes up and down."""

    __slots__ = ("_slots",)

    def __init__(self, slots: memoryview[float]) -> None:
        self._slots = slots

    def set(self, value: float) -> None:
        """Be a value."""
        self._slots[0] = value

    def inc(self, amount: float = 1.0) -> None:
        """Add an amount."""
        self._slots[0] += amount

    def dec(self, amount: float = 1.0) -> None:
        """Take an amount away."""
        self._slots[0] -= amount


class Histogram:
    """Counts of observations by size: one slot a bucket, one above all, and one for the sum."""

    __slots__ = ("_bounds", "_slots")

    def __init__(self, slots: memoryview[float], bounds: tuple[float, ...]) -> None:
        self._slots = slots
        self._bounds = bounds

    def observe(self, value: float) -> None:
        """Count a value in the first bucket whose bound it does not exceed."""
        slots = self._slots
        slots[bisect_left(self._bounds, value)] += 1.0
        slots[-1] += value


class Instruments:
    """Every metric of a table.

    Args:
        table: What there is.
        slots: Where numbers are kept.
    """

    def __init__(self, table: Iterable[Metric], slots: Slots) -> None:
        self.slots = slots
        self._rows = {row.name: row for row in table}
        self._made: dict[tuple[str, Labels], Counter | Gauge | Histogram] = {}
        for row in self._rows.values():
            if not row.labels and not row.derived:
                self._find(row.kind, row.name, ())

    def counter(self, name: str, *labels: str) -> Counter:
        """The series of a counter, zero at first.

        Raises:
            ValueError: No such counter is declared, or not with as many labels.
        """
        made = self._made.get((name, labels)) or self._find("counter", name, labels)
        if not isinstance(made, Counter):
            raise _wrong_kind(name, "counter")
        return made

    def gauge(self, name: str, *labels: str) -> Gauge:
        """The series of a gauge, zero at first.

        Raises:
            ValueError: No such gauge is declared, or not with as many labels.
        """
        made = self._made.get((name, labels)) or self._find("gauge", name, labels)
        if not isinstance(made, Gauge):
            raise _wrong_kind(name, "gauge")
        return made

    def histogram(self, name: str, *labels: str) -> Histogram:
        """The series of a histogram, empty at first.

        Raises:
            ValueError: No such histogram is declared, or not with as many labels.
        """
        made = self._made.get((name, labels)) or self._find("histogram", name, labels)
        if not isinstance(made, Histogram):
            raise _wrong_kind(name, "histogram")
        return made

    def _find(self, kind: str, name: str, labels: Labels) -> Counter | Gauge | Histogram:
        row = self._rows.get(name)
        if row is None or row.kind != kind or row.derived:
            raise _wrong_kind(name, kind)
        if len(labels) != len(row.labels):
            raise ValueError(f"{name} has labels {row.labels}, not the values {labels}")
        made: Counter | Gauge | Histogram
        slots = self.slots.claim(name, labels, row.num_slots)
        if kind == "counter":
            made = Counter(slots)
        elif kind == "gauge":
            made = Gauge(slots)
        else:
            made = Histogram(slots, row.buckets)
        return self._made.setdefault((name, labels), made)


def _wrong_kind(name: str, kind: str) -> ValueError:
    return ValueError(f"the table declares no {kind} '{name}' to be written")


__all__ = ["Counter", "Gauge", "Histogram", "Instruments"]
