"""Training runs of tests: one into a folder, and one that is killed on the way."""

from __future__ import annotations

from pathlib import Path

from training.config import RunConfig
from training.data.prepared import PreparedDataset
from training.engine.fit import RunResult, run_training
from training.track import Quiet


def run_into(config: RunConfig, prepared: PreparedDataset, out: Path, **options) -> RunResult:
    """Run into a folder that links to its prepared data, as the command line does."""
    out.mkdir(exist_ok=True)
    if not (out / "prepared").exists():
        (out / "prepared").symlink_to(prepared.path)
    return run_training(config, prepared, out, **options)


class KillError(BaseException):
    """Stands for a kill: nothing that handles errors handles it."""


class Dying(Quiet):
    """A watcher that kills the run after so many steps."""

    def __init__(self, left: int) -> None:
        self.left = left

    def advance(self, amount: int = 1, *, note: str = "") -> None:
        if note:
            self.left -= 1
            if self.left == 0:
                raise KillError
