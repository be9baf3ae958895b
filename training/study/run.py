"""Make the runs of a study: one prepared folder per recipe, one run folder per variant and seed.

    OUT/prepared, OUT/prepared-RECIPE   data shared by all runs of that recipe
    OUT/VARIANT/seed-S/                 a run folder like any other

Invariant: a finished run is kept only if its config and data are those of the plan; a run that fails is
reported and the others still run.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.clustering.errors import ClusteringError
from training.data.errors import DataError
from training.data.prepare import prepare
from training.data.prepared import MANIFEST_FILE, PreparedDataset
from training.data.source import open_data
from training.engine.errors import EngineError
from training.engine.fit import run_training
from training.metrics import MetricError
from training.report import write_report
from training.study.errors import StudyRunError
from training.study.plan import Plan, PlannedRun
from training.study.report import write_study
from training.study.results import (
    finished_runs,
    is_finished,
    read_run,
    require_same_config,
    require_same_data,
    run_folder,
)
from training.track import Unsaid, Watcher, duration

FAILURES = (ClusteringError, DataError, EngineError, MetricError)
"""Errors that end one run and say nothing about the others; a full disk ends the study."""


@dataclass(frozen=True)
class Task:
    """A run that is still to be made; it travels to child processes.

    Attributes:
        run: What to train.
        out: Its run folder.
        prepared: Its data.
    """

    run: PlannedRun
    out: Path
    prepared: Path


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    Attributes:
        task: The task.
        seconds: Wall time of this sitting.
        error: Message of what ended it, or None.
    """

    task: Task
    seconds: float
    error: str | None


@dataclass
class Progress:
    """Which run of how many, and how long the rest may take.

    Attributes:
        todo: Variants of the runs not begun or in work.
        total: Runs of the sitting.
        jobs: Runs at a time.
    """

    todo: list[str]
    total: int
    jobs: int
    _started: float = field(default_factory=time.monotonic)
    _seconds: dict[str, list[float]] = field(default_factory=dict)

    def finish(self, variant: str, seconds: float) -> str:
        """Take in the end of a run; gives a line to show."""
        self.todo.remove(variant)
        self._seconds.setdefault(variant, []).append(seconds)
        done, passed = self.total - len(self.todo), time.monotonic() - self._started
        line = f"{done} of {self.total} runs done, {duration(passed)} passed"
        return f"{line}, about {duration(self.left_s())} left" if self.todo else line

    def left_s(self) -> float:
        """Expected seconds: each run left takes the mean of its variant, or of all where none is done."""
        every = [value for values in self._seconds.values() for value in values]
        total = 0.0
        for variant in self.todo:
            known = self._seconds.get(variant, every)
            total += sum(known) / len(known) if known else 0.0
        return total / min(self.jobs, max(len(self.todo), 1))


def run_study(
    plan: Plan,
    out: Path,
    data: Path | None,
    *,
    num_seeds: int | None = None,
    only: Sequence[str] = (),
    jobs: int = 1,
    resume: bool = False,
    watcher: Watcher,
) -> dict[str, Any]:
    """Make the runs of a study that are not there yet; its tables are written anew after each.

    Args:
        plan: The study.
        out: Its folder.
        data: Raw data; may be None where all prepared data is there.
        num_seeds: Only the first so many seeds.
        only: Only these variants.
        jobs: Runs at a time.
        resume: Keep finished runs and go on with begun ones.
        watcher: Shows progress.

    Returns:
        The content of `study.json`.

    Raises:
        PlanError: A seed count or variant that the study lacks.
        StudyRunError: A run in the way, of another config or other data, or none could be finished.
        DataError: The data cannot be prepared.
    """
    runs = plan.select(num_seeds=num_seeds, only=only)
    datasets = prepare_all(runs, out, data, watcher)
    tasks = open_tasks(runs, out, datasets, resume=resume)
    if kept := len(runs) - len(tasks):
        watcher.say(f"{kept} of {len(runs)} runs are finished and kept")

    def tell(failed: Mapping[str, str]) -> None:
        if finished_runs(plan, out):
            write_study(plan, out, failed=failed)

    failed = make_runs(tasks, jobs=jobs, watcher=watcher, on_done=tell)
    if failed and not finished_runs(plan, out):
        name, message = next(iter(failed.items()))
        raise StudyRunError(f"all {len(failed)} runs failed; the first is {name}: {message}")
    return write_study(plan, out, failed=failed)


def prepare_all(
    runs: Sequence[PlannedRun], out: Path, data: Path | None, watcher: Watcher
) -> dict[str | None, PreparedDataset]:
    """Open the prepared data of every recipe in use, made on first use.

    Raises:
        StudyRunError: There is none and no raw data to make it of, or the raw data has changed.
        DataError: The raw data cannot be prepared.
    """
    recipes = dict.fromkeys(run.config.data.recipe for run in runs)
    return {recipe: _prepared(recipe, out, data, watcher) for recipe in recipes}


def _prepared(recipe: str | None, out: Path, data: Path | None, watcher: Watcher) -> PreparedDataset:
    folder = out / ("prepared" if recipe is None else f"prepared-{recipe}")
    if not (folder / MANIFEST_FILE).is_file():
        if data is None:
            raise StudyRunError(f"{folder}: no prepared data there; give --data to make it")
        watcher.say(f"preparing {data} into {folder}")
        return prepare(open_data(data, recipe), folder, progress=watcher.reach)
    dataset = PreparedDataset.open(folder)
    if data is not None and (found := open_data(data, recipe).digest()) != dataset.data_digest:
        raise StudyRunError(
            f"{folder}: was made of other data: digest {dataset.data_digest[:12]} there, {found[:12]} in "
            f"{data}; remove the folder and its runs, or choose another --out"
        )
    return dataset


def open_tasks(
    runs: Sequence[PlannedRun],
    out: Path,
    datasets: Mapping[str | None, PreparedDataset],
    *,
    resume: bool,
) -> list[Task]:
    """The runs that are still to be made.

    Args:
        runs: Those asked for.
        out: Folder of the study.
        datasets: Prepared data by recipe.
        resume: Keep finished runs and go on with begun ones.

    Raises:
        StudyRunError: A run is there and `resume` is not set, or it is of another config or other data.
    """
    tasks = []
    for run in runs:
        folder, dataset = run_folder(out, run), datasets[run.config.data.recipe]
        begun = folder.config.exists() or folder.checkpoint.exists()
        if begun and not resume:
            raise StudyRunError(f"{folder.root}: already holds a run; pass --resume to keep what is there")
        if is_finished(folder):
            require_same_data(read_run(folder, run), dataset)
            continue
        if folder.config.exists():
            require_same_config(folder, run)
        tasks.append(Task(run, folder.root, dataset.path))
    return tasks


def make_run(task: Task, watcher: Watcher | None = None) -> Outcome:
    """Train one run, or go on with it, and write its report."""
    started = time.monotonic()
    error = None
    try:
        dataset = PreparedDataset.open(task.prepared)
        task.out.mkdir(parents=True, exist_ok=True)
        link = task.out / "prepared"
        if not link.is_symlink():
            link.symlink_to(Path("..") / ".." / task.prepared.name, target_is_directory=True)
        run_training(task.run.config, dataset, task.out, resume=True, watcher=watcher)
        write_report(task.out)
    except FAILURES as failure:
        error = str(failure)
    return Outcome(task, time.monotonic() - started, error)


def make_runs(
    tasks: Sequence[Task], *, jobs: int, watcher: Watcher, on_done: Callable[[Mapping[str, str]], None]
) -> dict[str, str]:
    """Make all runs.

    Args:
        tasks: In order.
        jobs: Runs at a time; above 1 each is in a child process.
        watcher: Shows progress.
        on_done: Called in this process after every run with the failures so far.

    Returns:
        Message of each run that failed, by "variant, seed s".
    """
    progress = Progress([task.run.variant for task in tasks], len(tasks), jobs)
    failed: dict[str, str] = {}
    for outcome in _outcomes(tasks, jobs, watcher):
        run = outcome.task.run
        name = f"{run.variant}, seed {run.seed}"
        ended = f"failed: {outcome.error}" if outcome.error else f"done in {duration(outcome.seconds)}"
        if outcome.error:
            failed[name] = outcome.error
        watcher.say(f"{name}: {ended}; {progress.finish(run.variant, outcome.seconds)}")
        on_done(failed)
    return failed


def _outcomes(tasks: Sequence[Task], jobs: int, watcher: Watcher) -> Iterator[Outcome]:
    if jobs == 1:
        for number, task in enumerate(tasks, start=1):
            watcher.say(f"run {number} of {len(tasks)}: {task.run.variant}, seed {task.run.seed}")
            yield make_run(task, Unsaid(watcher))
        return
    # A forked child would inherit torch's thread pool in an unknown state.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        waiting = [pool.submit(make_run, task) for task in tasks]
        try:
            for done in as_completed(waiting):
                yield done.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
