"""Append-only files of lines, one process each, that survive a kill.

A segment is written as `NAME.jsonl.open` under an exclusive lock and becomes `NAME.jsonl` by an atomic
rename when it is full, old or closed. A lock that can be had means that the writer is dead: `recover` then
cuts a torn last line and renames the segment. Invariant: when `append` returns, its lines are on disk and
stay there; when it raises, nothing
half-written is left in a segment that has its final name.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

CLOSED = ".jsonl"
OPEN = ".jsonl.open"
BLOCK_BYTES = 1 << 16


@dataclass(frozen=True)
class Recovered:
    """What was found of dead writers: whole segments, and bytes of torn lines that were cut."""

    segments: int = 0
    torn_bytes: int = 0


@dataclass
class _Segment:
    """The file being written; `size` is what is known to be whole and on disk."""

    fd: int
    path: Path
    opened_s: float
    size: int = 0


class SegmentFiles:
    """A sink of lines in a folder. Blocks: call it from a thread, one call at a time.

    Args:
        folder: Made if missing.
        kind: First part of file names.
        max_bytes: Size after which a segment is closed.
        max_age_s: Age after which a segment is closed, at the next call.
        clock: Seconds, for the age.
    """

    def __init__(
        self,
        folder: Path,
        kind: str,
        *,
        max_bytes: int,
        max_age_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._kind = kind
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._clock = clock
        self._segment: _Segment | None = None
        self._count = 0
        self._host = re.sub(r"[^A-Za-z0-9]", "", socket.gethostname())[:40] or "host"

    def append(self, lines: Sequence[bytes]) -> None:
        """Write lines, each ending in a newline, and wait until they are on disk.

        Without lines only a segment that is due is closed.

        Raises:
            OSError: They could not be written; none of them counts.
        """
        segment = self._segment
        if segment is not None and self._clock() - segment.opened_s >= self._max_age_s:
            self.close()
        if not lines:
            return
        segment = self._segment = self._segment or self._open()
        data = b"".join(lines)
        try:
            _write(segment.fd, data)
            os.fdatasync(segment.fd)
        except OSError:
            self._give_up(segment)
            raise
        segment.size += len(data)
        if segment.size >= self._max_bytes:
            self.close()

    def close(self) -> None:
        """Close the segment, if one is open; the next append opens another.

        Raises:
            OSError: It could not be renamed; `recover` of a later start does that.
        """
        segment, self._segment = self._segment, None
        if segment is None:
            return
        try:
            _publish(segment.path)
        finally:
            os.close(segment.fd)

    def recover(self) -> Recovered:
        """Finish the segments of writers that died.

        Raises:
            OSError: The folder cannot be made or read.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        segments = torn = 0
        for path in sorted(self._folder.glob(f"{self._kind}-*{OPEN}")):
            cut = _recover(path)
            if cut is not None:
                segments, torn = segments + 1, torn + cut
        return Recovered(segments, torn)

    def _open(self) -> _Segment:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._count += 1
        moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        name = f"{self._kind}-{moment}-{self._host}-{os.getpid()}-{self._count}"
        # Locked before it has its name, so that nobody can take it for a dead writer's.
        hidden, path = self._folder / f".{name}.new", self._folder / f"{name}{OPEN}"
        fd = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            hidden.rename(path)
            _sync_folder(self._folder)
        except OSError:
            os.close(fd)
            for left in (hidden, path):
                left.unlink(missing_ok=True)
            raise
        return _Segment(fd, path, self._clock())

    def _give_up(self, segment: _Segment) -> None:
        """Leave a segment whose last write failed, cut back to what is known to be whole.

        A file whose sync failed is not written to again: the kernel may have dropped what it held.
        """
        self._segment = None
        with contextlib.suppress(OSError):
            os.ftruncate(segment.fd, segment.size)
            if segment.size:
                _publish(segment.path)
            else:
                segment.path.unlink()
        os.close(segment.fd)


def check_folder(folder: Path) -> None:
    """Try what a sink needs of a folder: make it, write, sync and rename a file.

    Raises:
        OSError: It cannot.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(prefix=".check-", dir=folder)
    path = Path(name)
    renamed = path.with_suffix(".done")
    try:
        _write(fd, b"\n")
        os.fdatasync(fd)
        path.rename(renamed)
        _sync_folder(folder)
    finally:
        os.close(fd)
        for left in (path, renamed):
            left.unlink(missing_ok=True)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _publish(path: Path) -> None:
    path.rename(path.with_name(path.name.removesuffix(OPEN) + CLOSED))
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _recover(path: Path) -> int | None:
    """Finish one segment; bytes cut, or None when its writer lives or it is gone."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not path.exists() or path.stat().st_ino != os.fstat(fd).st_ino:
            return None
        size = os.fstat(fd).st_size
        whole = _end_of_last_line(fd, size)
        os.ftruncate(fd, whole)
        os.fsync(fd)
        if whole:
            _publish(path)
        else:
            path.unlink()
        return size - whole
    except BlockingIOError:
        return None
    finally:
        os.close(fd)


def _end_of_last_line(fd: int, size: int) -> int:
    """Bytes up to and with the last newline."""
    end = size
    while end:
        start = max(0, end - BLOCK_BYTES)
        found = os.pread(fd, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


__all__ = ["CLOSED", "OPEN", "Recovered", "SegmentFiles", "check_folder"]
