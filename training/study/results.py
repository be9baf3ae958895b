"""The finished runs of a study as numbers.

Reads `metrics.json` of each run folder and the row counts of the prepared data. Writes nothing. Invariant:
only finished runs of the planned config count, and test figures are of calibrated scores, valid figures of
raw ones, because the calibrator is fitted on valid.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.config import ConfigError, load_config
from training.data.prepared import PreparedDataset
from training.engine.artefacts import RunFolder, load_json
from training.metrics import HEADLINE
from training.metrics.per_domain import NUM_MINOR
from training.study.errors import StudyRunError
from training.study.plan import Plan, PlannedRun

LOWER_IS_BETTER = frozenset({"logloss", "ece"})

COMPARED = tuple(name for name in HEADLINE if name != "calibration_ratio")
"""Figures with a better direction; a ratio is best at 1, so its differences say nothing by their sign."""


@dataclass(frozen=True)
class FinishedRun:
    """What a study reads of one run.

    Attributes:
        variant: Name of its variant.
        seed: Its seed.
        folder: Where it lies.
        metrics: Content of `metrics.json`.
    """

    variant: str
    seed: int
    folder: RunFolder
    metrics: dict[str, Any]

    @property
    def data_digest(self) -> str:
        """Of the raw data."""
        return str(self.metrics["digests"]["data"])

    def value(self, split: str, metric: str) -> float | None:
        """A figure of test (calibrated) or valid (raw); None where it is undefined."""
        part = self.metrics["raw"]["valid"] if split == "valid" else self.metrics[split]
        found: float | None = part[metric]
        return found

    def domain_auc(self, domain: str) -> float | None:
        """Test AUC of one domain; None where a class is missing or the data has no such domain."""
        found: float | None = self.metrics["test"]["domains"].get(domain, {}).get("auc")
        return found


@dataclass(frozen=True)
class DomainSize:
    """Rows of one domain.

    Attributes:
        train_rows, test_rows, test_clicks: Counts.
        small: Whether it is one of the domains of `minor10_auc`.
    """

    train_rows: int
    test_rows: int
    test_clicks: int
    small: bool


def run_folder(out: Path, run: PlannedRun) -> RunFolder:
    """Where a run of a study lies."""
    return RunFolder(out / run.variant / f"seed-{run.seed}")


def is_finished(folder: RunFolder) -> bool:
    """Whether the folder holds a finished run."""
    return folder.metrics.is_file()


def require_same_config(folder: RunFolder, run: PlannedRun) -> None:
    """Refuse a folder whose run has another config than the plan.

    Raises:
        StudyRunError: It has; the message names the first keys that differ.
    """
    try:
        found = load_config(folder.config)
    except ConfigError as error:
        raise StudyRunError(f"{folder.root}: its config is not one of this version: {error}") from error
    if found.digest == run.config.digest:
        return
    keys = _differences(found.model_dump(mode="json"), run.config.model_dump(mode="json"))
    raise StudyRunError(
        f"{folder.root}: holds a run of another config: {'; '.join(keys[:3])}; "
        "take the change back, remove that folder, or choose another --out"
    )


def require_same_data(run: FinishedRun, prepared: PreparedDataset) -> None:
    """Refuse a finished run of other data.

    Raises:
        StudyRunError: It is; the message gives both digests.
    """
    for name, wanted in (("data", prepared.data_digest), ("schema", prepared.schema.digest)):
        if run.metrics["digests"][name] != wanted:
            raise StudyRunError(
                f"{run.folder.root}: holds a run of other data: {name} {run.metrics['digests'][name][:12]} "
                f"there, {wanted[:12]} in {prepared.path}; remove that folder or choose another --out"
            )


def read_run(folder: RunFolder, run: PlannedRun) -> FinishedRun:
    """Read a finished run.

    Raises:
        StudyRunError: Its config is not the planned one.
        RunError: `metrics.json` cannot be read.
    """
    require_same_config(folder, run)
    return FinishedRun(run.variant, run.seed, folder, load_json(folder.metrics))


def finished_runs(plan: Plan, out: Path) -> list[FinishedRun]:
    """All finished runs of a study, in the order of the plan.

    Raises:
        StudyRunError: A run has another config than the plan.
    """
    folders = ((run_folder(out, run), run) for run in plan.runs)
    return [read_run(folder, run) for folder, run in folders if is_finished(folder)]


def domain_sizes(run: FinishedRun) -> dict[str, DomainSize]:
    """Rows of every domain of a run's data, largest first by train rows."""
    train = PreparedDataset.open(run.folder.prepared).domain_rows["train"]
    tested = run.metrics["test"]["domains"]
    names = list(tested)
    # As `minor10_auc` picks its domains: of equal sizes, the domain named first counts as the larger.
    by_size = sorted(names, key=lambda name: (-train.get(name, 0), names.index(name)))
    small = set([name for name in by_size if tested[name]["rows"]][-NUM_MINOR:])
    return {
        name: DomainSize(train.get(name, 0), tested[name]["rows"], tested[name]["positives"], name in small)
        for name in by_size
    }


def _differences(found: Any, wanted: Any, path: str = "") -> list[str]:
    """`key: there -> planned` of every leaf that differs."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = [*found, *(key for key in wanted if key not in found)]
        return [
            line
            for key in keys
            for line in _differences(found.get(key), wanted.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if found == wanted else [f"{path} is {found!r} there and {wanted!r} in the study"]
