"""The text of a scrape: the slots of all processes, added up, as metric families of prometheus-client.

Reads the files of sibling processes; the library writes the text. Invariants: whoever is scraped tells the
same, since each adds up all; the text is made in pieces of some series, between which the event loop turns.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric as Family

from service.telemetry.metric_table import Metric
from service.telemetry.slots import Hidden, Labels, Record, SlotSource

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PIECE_S = 0.0003
"""Time after which the event loop gets its turn."""
PIECE_SAMPLES = 32
"""Lines of the text, about, that are written without a turn between."""
VERSION = "version"

Derive = Callable[[Sequence[Sequence[float]]], float | None]
"""From the slots of one series in each process to a value, or none."""


class Exposition:
    """Makes the text.

    Args:
        table: What is shown, in order.
        derived: How rows that name another series as their source are worked out.
    """

    def __init__(self, table: Iterable[Metric], derived: Mapping[str, Derive]) -> None:
        self._table = tuple(table)
        self._derived = derived
        self._sources: list[SlotSource] = []
        self._hidden: list[set[str]] = []
        self._places: dict[str, dict[Labels, list[tuple[int, int, int]]]] = {}
        self._busy = asyncio.Lock()

    def add(self, source: SlotSource) -> None:
        """Take in another process."""
        self._sources.append(source)
        self._hidden.append(set())

    def render(self) -> bytes:
        """The text, at once."""
        return b"".join(self._pieces())

    async def render_in_turns(self) -> bytes:
        """The text, made while the event loop goes on turning; one scrape at a time."""
        async with self._busy:
            text: list[bytes] = []
            begun = time.perf_counter()
            for piece in self._pieces():
                text.append(piece)
                if time.perf_counter() - begun > PIECE_S:
                    await asyncio.sleep(0)
                    begun = time.perf_counter()
            return b"".join(text)

    def _pieces(self) -> Iterator[bytes]:
        """The text in pieces of some series; empty ones while what is there is being read."""
        numbers: list[array[float]] = []
        for process, source in enumerate(self._sources):
            while records := source.records():
                for record in records:
                    self._take(process, record)
                yield b""
            numbers.append(source.numbers())
            yield b""
        hidden = set().union(*self._hidden)
        for row in self._table:
            piece = Piece(row)
            for labels, places in self._places.get(row.derived or row.name, {}).items():
                if hidden and VERSION in row.labels and labels[row.labels.index(VERSION)] in hidden:
                    continue
                parts = [numbers[p][start : start + n] for p, start, n in places]
                if row.derived:
                    piece.add(labels, self._derived[row.name](parts))
                else:
                    piece.add(labels, _together(row, parts))
                if len(piece.samples) >= PIECE_SAMPLES:
                    yield piece.text()
            yield piece.text()

    def _take(self, process: int, record: Record) -> None:
        if isinstance(record, Hidden):
            hidden = self._hidden[process]
            (hidden.add if record.hidden else hidden.discard)(record.version)
        else:
            series = self._places.setdefault(record.name, {})
            series.setdefault(record.labels, []).append((process, record.start, record.count))


class Piece(Family):
    """Series of one metric, written some at a time.

    Args:
        row: The metric.
    """

    def __init__(self, row: Metric) -> None:
        super().__init__(row.name.removesuffix("_total"), row.help, row.kind)
        self._row = row
        self._is_first = True

    def collect(self) -> Iterator[Family]:
        """What the library writes: this piece."""
        yield self

    def add(self, labels: Labels, value: float | Sequence[float] | None) -> None:
        """Take in a series.

        Args:
            labels: Its label values.
            value: A number; of a histogram the count of each bucket and the sum; None for nothing to show.
        """
        named = dict(zip(self._row.labels, labels, strict=True))
        name = self._row.name
        if isinstance(value, Sequence):
            counts = list(accumulate(value[:-1]))
            for bound, count in zip((*map(repr, self._row.buckets), "+Inf"), counts, strict=True):
                self.add_sample(f"{name}_bucket", named | {"le": bound}, count)
            self.add_sample(f"{name}_count", named, counts[-1])
            self.add_sample(f"{name}_sum", named, value[-1])
        elif value is not None:
            self.add_sample(name, named, value)

    def text(self) -> bytes:
        """The series since the last call, under the metric's help and type the first time."""
        text = generate_latest(self)
        self.samples = []
        if self._is_first:
            self._is_first = False
            return text
        _, _, series = text.split(b"\n", 2)
        return series


def _together(row: Metric, parts: Sequence[Sequence[float]]) -> float | Sequence[float]:
    """One series over processes."""
    if row.kind == "histogram":
        return parts[0] if len(parts) == 1 else [sum(column) for column in zip(*parts, strict=True)]
    return max(p[0] for p in parts) if row.across_workers == "max" else sum(p[0] for p in parts)


__all__ = ["MEDIA_TYPE", "Derive", "Exposition"]
