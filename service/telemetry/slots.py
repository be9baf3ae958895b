"""Numbers of one process that its siblings may read: float64 slots in memory or in a mapped file.

Writes `NAME.keys`, a line of JSON for each claim of slots, and `NAME.slots`, the numbers. A process that
takes the place of a dead one goes on with its files, so that counters go on and files do not pile up.
Invariants: slots never move, so a view of them stays right; a key is written only after its slots exist; what
was added before a crash is in the file, since the kernel holds it.
"""

from __future__ import annotations

import mmap
import threading
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import msgspec

CHUNK_SLOTS = 8192
SLOT_BYTES = 8
CHUNK_BYTES = CHUNK_SLOTS * SLOT_BYTES
KEYS_SUFFIX = ".keys"
SLOTS_SUFFIX = ".slots"
BATCH = 100
"""Records handed out at a time: some tenths of a millisecond to read."""
READ_BYTES = 1 << 16
"""Of keys, read at a time; many times the longest line."""

Labels = tuple[str, ...]


class Claim(msgspec.Struct, frozen=True, tag=True):
    """Slots that belong to one series.

    Attributes:
        name: Of the metric.
        labels: Label values.
        start: First slot.
        count: Number of slots.
    """

    name: str
    labels: Labels
    start: int
    count: int


class Hidden(msgspec.Struct, frozen=True, tag=True):
    """From here on, series of a version are (not) to be shown."""

    version: str
    hidden: bool


Record = Claim | Hidden
_encode = msgspec.json.Encoder().encode
_decode_line = msgspec.json.Decoder(Record).decode


class SlotSource(Protocol):
    """Where a scrape reads the numbers of one process."""

    def records(self) -> list[Record]:
        """The next records, `BATCH` at most; none when all were handed out."""

    def numbers(self) -> array[float]:
        """A copy of all slots."""


class Slots:
    """Slots of this process.

    Args:
        path: Files without their suffix; None keeps all in memory.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._chunks: list[memoryview[float]] = []
        self._used = 0
        self._claims: dict[tuple[str, Labels], Claim] = {}
        self._hidden: set[str] = set()
        self._news: list[Record] = []
        if path is not None:
            self._take_over(path)

    def claim(self, name: str, labels: Labels, count: int) -> memoryview[float]:
        """`count` float64 slots of a series, zero at first; the same ones every time.

        Raises:
            ValueError: More slots than a chunk has, or another number than before.
        """
        with self._lock:
            claim = self._claims.get((name, labels))
            if claim is None:
                claim = self._append(name, labels, count)
            if claim.count != count:
                raise ValueError(f"{name} {labels}: {count} slots, but {claim.count} were claimed before")
            return self._view(claim)

    def hide(self, version: str, *, hidden: bool) -> None:
        """Say whether series of a version are to be shown; of several processes each has to show them."""
        with self._lock:
            if hidden != (version in self._hidden):
                (self._hidden.add if hidden else self._hidden.discard)(version)
                self._write(Hidden(version, hidden))

    def clear(self, names: Iterable[str]) -> None:
        """Set all slots of some metrics to zero."""
        cleared = set(names)
        with self._lock:
            for claim in self._claims.values():
                if claim.name in cleared:
                    self._view(claim)[:] = memoryview(array("d", bytes(claim.count * SLOT_BYTES)))

    def records(self) -> list[Record]:
        """The next records, `BATCH` at most; none when all were handed out."""
        with self._lock:
            news, self._news = self._news[:BATCH], self._news[BATCH:]
            return news

    def numbers(self) -> array[float]:
        """A copy of all slots."""
        copy = array("d")
        for chunk in self._chunks:
            copy.frombytes(chunk.tobytes())
        return copy

    def _append(self, name: str, labels: Labels, count: int) -> Claim:
        if count > CHUNK_SLOTS:
            raise ValueError(f"{name}: {count} slots, at most {CHUNK_SLOTS} fit")
        left = len(self._chunks) * CHUNK_SLOTS - self._used
        if left < count:
            self._used += left
            self._grow()
        claim = Claim(name, labels, self._used, count)
        self._used += count
        self._claims[name, labels] = claim
        self._write(claim)
        return claim

    def _grow(self) -> None:
        number = len(self._chunks)
        if self._path is None:
            self._chunks.append(memoryview(array("d", bytes(CHUNK_BYTES))))
            return
        with self._path.with_suffix(SLOTS_SUFFIX).open("ab+") as file:
            file.truncate(max(file.seek(0, 2), (number + 1) * CHUNK_BYTES))
            mapped = mmap.mmap(file.fileno(), CHUNK_BYTES, offset=number * CHUNK_BYTES)
        self._chunks.append(memoryview(mapped).cast("d"))

    def _view(self, claim: Claim) -> memoryview[float]:
        number, first = divmod(claim.start, CHUNK_SLOTS)
        return self._chunks[number][first : first + claim.count]

    def _write(self, record: Record) -> None:
        self._news.append(record)
        if self._path is not None:
            with self._path.with_suffix(KEYS_SUFFIX).open("ab", buffering=0) as file:
                file.write(_encode(record) + b"\n")

    def _take_over(self, path: Path) -> None:
        """Go on with the files of a dead process; a line torn by its death is cut."""
        keys = path.with_suffix(KEYS_SUFFIX)
        found = keys.read_bytes() if keys.exists() else b""
        whole = found[: found.rfind(b"\n") + 1]
        if whole != found:
            keys.write_bytes(whole)
        for line in whole.splitlines():
            record = _decode_line(line)
            self._news.append(record)
            if isinstance(record, Hidden):
                (self._hidden.add if record.hidden else self._hidden.discard)(record.version)
                continue
            self._claims[record.name, record.labels] = record
            self._used = max(self._used, record.start + record.count)
        keys.touch()
        while len(self._chunks) * CHUNK_SLOTS < self._used:
            self._grow()


class SlotFiles:
    """Slots of another process, by its files.

    Args:
        path: Files without their suffix.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def records(self) -> list[Record]:
        """The next records, `BATCH` at most; a line that is still being written is left for later."""
        with self._path.with_suffix(KEYS_SUFFIX).open("rb") as file:
            file.seek(self._read)
            fresh = file.read(READ_BYTES)
        lines = fresh.split(b"\n")[:-1][:BATCH]
        self._read += sum(len(line) + 1 for line in lines)
        return [_decode_line(line) for line in lines]

    def numbers(self) -> array[float]:
        """A copy of all slots."""
        copy = array("d")
        slots = self._path.with_suffix(SLOTS_SUFFIX)
        if slots.exists():
            copy.frombytes(slots.read_bytes())
        return copy


__all__ = [
    "CHUNK_SLOTS",
    "KEYS_SUFFIX",
    "Claim",
    "Hidden",
    "Labels",
    "Record",
    "SlotFiles",
    "SlotSource",
    "Slots",
]
