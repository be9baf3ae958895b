"""What a run tells about itself: a JSONL log and a progress bar.

`RunLog` writes one JSON object a line. Invariant: after a resume the log holds each event once, because a
checkpoint knows the log's length and `RunLog` cuts off what came after it.
"""

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class RunLog:
    """Appends events to a file, each with wall time in seconds since the epoch."""

    def __init__(self, path: Path, *, keep: bool = False) -> None:
        """Open the log.

        Args:
            path: The file; its folder is made.
            keep: Append to what the file holds; else it starts empty.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("ab")
        if not keep:
            self.truncate(0)

    def truncate(self, position: int) -> None:
        """Keep the first `position` bytes."""
        self._file.truncate(position)
        self._file.seek(0, os.SEEK_END)

    def event(self, kind: str, **fields: Any) -> None:
        """Append one event; a float that JSON lacks (nan, inf) becomes null."""
        record = {"event": kind, "time_s": round(time.time(), 3)} | {k: _plain(v) for k, v in fields.items()}
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()

    def sync(self) -> int:
        """Force the log to disk; gives its length in bytes."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


class NoLog(RunLog):
    """Keeps nothing: for ranks that leave the log to the first one."""

    def __init__(self) -> None:
        """Open nothing."""

    def truncate(self, position: int) -> None:
        """Nothing."""

    def event(self, kind: str, **fields: Any) -> None:
        """Nothing."""

    def sync(self) -> int:
        """No bytes."""
        return 0

    def close(self) -> None:
        """Nothing."""


def read_log(path: Path) -> list[dict[str, Any]]:
    """All whole events of a log; a last line that a kill cut short is left out."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Watcher(Protocol):
    """Shows how far a job is."""

    def start(self, job: str, total: int) -> None:
        """A job of `total` units begins; it takes the place of the one before."""

    def advance(self, amount: int = 1, *, note: str = "") -> None:
        """So many units are done; `note` is shown beside the bar."""

    def reach(self, job: str, done: int, total: int) -> None:
        """`done` of `total` units of a job are done; a new job takes the place of the one before."""

    def say(self, text: str) -> None:
        """One line worth keeping."""

    def validated(self, epoch: float, value: float) -> None:
        """A validation after so many passes gave this value of the watched metric; raising ends the run."""


class Quiet:
    """Shows nothing: for tests and library use."""

    def start(self, job: str, total: int) -> None:
        """Nothing."""

    def advance(self, amount: int = 1, *, note: str = "") -> None:
        """Nothing."""

    def reach(self, job: str, done: int, total: int) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def validated(self, epoch: float, value: float) -> None:
        """Nothing."""


class Unsaid(Quiet):
    """Passes bars on and keeps the lines of a run to itself: its log has them."""

    def __init__(self, inner: Watcher) -> None:
        self._inner = inner

    def start(self, job: str, total: int) -> None:
        """Pass on."""
        self._inner.start(job, total)

    def advance(self, amount: int = 1, *, note: str = "") -> None:
        """Pass on."""
        self._inner.advance(amount, note=note)

    def reach(self, job: str, done: int, total: int) -> None:
        """Pass on."""
        self._inner.reach(job, done, total)


class Bars:
    """A rich progress bar on a terminal; elsewhere only the lines of `say`."""

    def __init__(self, progress: Progress) -> None:
        """Draw on `progress`, which is running."""
        self._progress = progress
        self._task = progress.add_task("", visible=False, note="")
        self._job = ""

    def start(self, job: str, total: int) -> None:
        """Replace the bar by one for `job`."""
        self._progress.remove_task(self._task)
        self._job = job
        self._task = self._progress.add_task(job, total=total, note="")

    def advance(self, amount: int = 1, *, note: str = "") -> None:
        """Move the bar; an empty note keeps the last one."""
        fields = {"note": note} if note else {}
        self._progress.update(self._task, advance=amount, **fields)  # type: ignore[arg-type]

    def reach(self, job: str, done: int, total: int) -> None:
        """Set the bar of `job`, which is made when it is not the one shown."""
        if self._job != job:
            self.start(job, total)
        self._progress.update(self._task, completed=done, total=total)

    def say(self, text: str) -> None:
        """Print above the bar."""
        self._progress.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def validated(self, epoch: float, value: float) -> None:
        """Nothing: the loop says the same in a line."""


@contextmanager
def bars(console: Console) -> Iterator[Bars]:
    """Progress bars for the length of the block; none are drawn when `console` is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        yield Bars(progress)


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
