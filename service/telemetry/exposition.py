"""The text of a scrape: the slots of all processes, added up, in Prometheus' text format 0.0.4.

Reads the files of sibling processes. Invariants: whoever is scraped tells the same, since each adds up all;
the text is made in pieces, between which the event loop turns.
"""

from __future__ import annotations

import asyncio
import math
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate

from service.telemetry.metric_table import Metric
from service.telemetry.slots import Hidden, Labels, Record, SlotSource

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PIECE_S = 0.0003
"""Time after which the event loop gets its turn."""
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
        self._prefixes: dict[tuple[str, Labels], tuple[str, ...]] = {}
        self._busy = asyncio.Lock()

    def add(self, source: SlotSource) -> None:
        """Take in another process."""
        self._sources.append(source)
        self._hidden.append(set())

    def render(self) -> bytes:
        """The text, at once."""
        return "".join(self._pieces()).encode()

    async def render_in_turns(self) -> bytes:
        """The text, made while the event loop goes on turning; one scrape at a time."""
        async with self._busy:
            text: list[str] = []
            begun = time.perf_counter()
            for piece in self._pieces():
                text.append(piece)
                if time.perf_counter() - begun > PIECE_S:
                    await asyncio.sleep(0)
                    begun = time.perf_counter()
            return "".join(text).encode()

    def _pieces(self) -> Iterator[str]:
        """The text in pieces of a series; empty ones while what is there is being read."""
        numbers: list[array[float]] = []
        for process, source in enumerate(self._sources):
            while records := source.records():
                for record in records:
                    self._take(process, record)
                yield ""
            numbers.append(source.numbers())
            yield ""
        hidden = set().union(*self._hidden)
        for row in self._table:
            yield _head(row)
            for labels, places in self._places.get(row.derived or row.name, {}).items():
                if hidden and VERSION in row.labels and labels[row.labels.index(VERSION)] in hidden:
                    continue
                yield self._series(row, labels, [numbers[p][start : start + n] for p, start, n in places])

    def _take(self, process: int, record: Record) -> None:
        if isinstance(record, Hidden):
            hidden = self._hidden[process]
            (hidden.add if record.hidden else hidden.discard)(record.version)
        else:
            series = self._places.setdefault(record.name, {})
            series.setdefault(record.labels, []).append((process, record.start, record.count))

    def _series(self, row: Metric, labels: Labels, parts: Sequence[Sequence[float]]) -> str:
        prefixes = self._prefixes.get((row.name, labels))
        if prefixes is None:
            prefixes = self._prefixes[row.name, labels] = _prefixes(row, labels)
        if row.derived:
            value = self._derived[row.name](parts)
            return "" if value is None else f"{prefixes[0]}{_shown(value)}\n"
        if row.kind != "histogram":
            value = max(p[0] for p in parts) if row.across_workers == "max" else sum(p[0] for p in parts)
            return f"{prefixes[0]}{_shown(value)}\n"
        sums = parts[0] if len(parts) == 1 else [sum(column) for column in zip(*parts, strict=True)]
        counts = list(accumulate(sums[:-1]))
        values = (*counts, counts[-1], sums[-1])
        return "".join([f"{prefix}{value!r}\n" for prefix, value in zip(prefixes, values, strict=True)])


def _head(row: Metric) -> str:
    text = row.help.replace("\\", "\\\\").replace("\n", "\\n")
    return f"# HELP {row.name} {text}\n# TYPE {row.name} {row.kind}\n"


def _prefixes(row: Metric, labels: Labels) -> tuple[str, ...]:
    """What stands before each number of a series: one, or for a histogram buckets, count and sum."""
    pairs = [f'{name}="{_escaped(value)}"' for name, value in sorted(zip(row.labels, labels, strict=True))]
    plain = f"{{{','.join(pairs)}}} " if pairs else " "
    if row.kind != "histogram":
        return (row.name + plain,)
    bounds = [f'le="{bound!r}"' for bound in row.buckets] + ['le="+Inf"']
    buckets = [f"{row.name}_bucket{{{','.join([*pairs, bound])}}} " for bound in bounds]
    return (*buckets, f"{row.name}_count{plain}", f"{row.name}_sum{plain}")


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _shown(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return "NaN" if math.isnan(value) else repr(float(value))


__all__ = ["MEDIA_TYPE", "Derive", "Exposition"]
