"""What a load run leaves: one line for every request, and what the run was.

Writes and reads a folder: `run.json` (how load was made, when, what else was measured), `calls.jsonl` (a list
a line, in the order of `FIELDS`) and, where there was one, `routing.yaml` of the service. Invariant: every
request that was planned has a line, also one that got no reply or was never sent.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict, astuple, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

RUN_FILE, CALLS_FILE, ROUTING_FILE = "run.json", "calls.jsonl", "routing.yaml"
Loop = Literal["open", "closed"]


class RunError(ValueError):
    """A folder that holds no load run."""


@dataclass(frozen=True)
class Call:
    """One request and its end. Times are seconds since the run began; None where it did not come to that.

    Attributes:
        kind: `score` or `feedback`.
        profile: Kind of the request to /score; empty for feedback.
        num_items: Candidates, or items fed back.
        intended_s: When it should have been sent; a latency counts from here.
        sent_s: When it was.
        done_s: When its reply was there.
        status: Of HTTP; 0 without a reply.
        domain, user, session, request_id: As sent, the last as replied.
        experiment, arm: As replied; None outside of experiments.
        degraded: Whether defaults stood for features that could not be read.
    """

    kind: Literal["score", "feedback"]
    profile: str
    num_items: int
    intended_s: float
    sent_s: float | None
    done_s: float | None
    status: int
    domain: str = ""
    user: str = ""
    session: str = ""
    request_id: str = ""
    experiment: str | None = None
    arm: str | None = None
    degraded: bool = False

    @property
    def latency_ms(self) -> float | None:
        """From the intended start to the reply."""
        return None if self.done_s is None else 1000 * (self.done_s - self.intended_s)


FIELDS = tuple(entry.name for entry in fields(Call))


@dataclass
class Run:
    """A whole load run.

    Attributes:
        loop: `open`: starts were planned; `closed`: users waited for their replies.
        title: One line for people.
        seconds: How long it was meant to last.
        begun_at: UTC, ISO 8601.
        plan: How load was made; shown as it is.
        parity: `num_rows` compared with the bundle's own graph, and `max_abs_difference`.
        calls: Every request.
    """

    loop: Loop
    title: str
    seconds: float
    begun_at: str
    plan: dict[str, Any]
    parity: dict[str, float] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)

    def write(self, folder: Path, routing: Path | None = None) -> None:
        """Write the folder, with a copy of the routing file."""
        folder.mkdir(parents=True, exist_ok=True)
        about = {key: value for key, value in asdict(self).items() if key != "calls"}
        (folder / RUN_FILE).write_text(json.dumps(about | {"fields": FIELDS}, indent=1) + "\n")
        with (folder / CALLS_FILE).open("w") as file:
            file.writelines(json.dumps(astuple(call)) + "\n" for call in self.calls)
        if routing is not None:
            shutil.copyfile(routing, folder / ROUTING_FILE)


def read_run(folder: Path) -> Run:
    """Read what `Run.write` wrote.

    Raises:
        RunError: A file is missing or holds something else.
    """
    try:
        about = json.loads((folder / RUN_FILE).read_text())
        names = tuple(about.pop("fields"))
        lines = (folder / CALLS_FILE).read_text().splitlines()
        return Run(**about, calls=list(_calls(names, lines)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{folder} holds no load run: {type(error).__name__}: {error}") from None


def _calls(names: tuple[str, ...], lines: Iterable[str]) -> Iterable[Call]:
    for line in lines:
        yield Call(**dict(zip(names, json.loads(line), strict=True)))


__all__ = ["FIELDS", "ROUTING_FILE", "Call", "Loop", "Run", "RunError", "read_run"]
