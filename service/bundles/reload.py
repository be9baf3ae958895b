"""Following the bundle that an alias names: when to look again, and how each look ended.

Reads the state of a few small files, never their content. Invariant: what was refused is tried again when one
of the files changes or somebody asks, and not before.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

FileState = tuple[int, int, int] | None
"""Modification time (ns), size and inode of a file, which a rename changes too; None where there is none."""


class Result(StrEnum):
    """How a reload ended."""

    LOADED = "loaded"
    UNCHANGED = "unchanged"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Reload:
    """One reload.

    Attributes:
        result: How it ended.
        bundle: Id of the bundle that serves since; None where none does.
        reason: Why what is there was refused; empty otherwise.
        took_s: Seconds it took.
        ended_ms: Unix time at its end.
    """

    result: Result
    bundle: str | None
    reason: str
    took_s: float
    ended_ms: int

    def shown(self) -> dict[str, Any]:
        """For operators."""
        return {**asdict(self), "result": str(self.result)}


def file_states(paths: Iterable[Path]) -> tuple[FileState, ...]:
    """States of files, one `stat` each."""
    return tuple(_state(path) for path in paths)


def _state(path: Path) -> FileState:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


__all__ = ["FileState", "Reload", "Result", "file_states"]
