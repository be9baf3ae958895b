"""A search for a config's best values by validation, with a fixed number of trials.

    OUT/prepared/       data shared by all trials (or a link to it)
    OUT/trials.log      optuna's journal: what was tried, what came of it
    OUT/trials/0007/    run folder of one trial
    OUT/trials.csv      one line a trial
    OUT/best.yaml       whole config of the best trial
    OUT/report.html     history and importance

Trial 0 has the config's own values where the space holds them; the others are drawn by TPE (Bergstra et al.,
"Algorithms for Hyper-Parameter Optimization", 2011). A trial that is below the median of the others at the
same validation is ended. Invariant: values are chosen and judged by validation rows alone; every trial counts
towards the budget, a failed or ended one too.
"""

from __future__ import annotations

import csv
import hashlib
import io
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from training.clustering.errors import ClusteringError
from training.config import ConfigError, RunConfig, load_config
from training.data.errors import DataError
from training.data.prepared import PreparedDataset
from training.engine.errors import EngineError
from training.engine.files import write_text
from training.engine.fit import run_training
from training.engine.monitor import LOWER_IS_BETTER, Monitor
from training.metrics import MetricError
from training.study.plan import overrides
from training.track import Unsaid, Watcher, duration
from training.tune.errors import TuneError
from training.tune.space import Space, check_space, values_of

JOURNAL_FILE = "trials.log"
CSV_FILE = "trials.csv"
BEST_FILE = "best.yaml"

TAKEN_UP = "taken_up"
"""Where the journal lists the trials that were cut and made again."""

STARTUP_TRIALS = 5
"""Whole trials before any is ended early."""

FAILURES = (ClusteringError, ConfigError, DataError, EngineError, MetricError)
"""Errors that end one trial and count as its outcome."""


@dataclass(frozen=True)
class Search:
    """What is searched.

    Attributes:
        config: File of the run config.
        given: Overrides of it, before those of a trial.
        space: What trials may change.
        prepared: The data.
        out: Folder of the search.
        seed: Of the draws; the seed of training is the config's own in every trial.
    """

    config: Path
    given: list[str]
    space: Space
    prepared: PreparedDataset
    out: Path
    seed: int = 0

    @property
    def base(self) -> RunConfig:
        """The config as it stands."""
        return load_config(self.config, self.given)

    def config_of(self, values: dict[str, Any]) -> RunConfig:
        """The config with values of the space, by dotted key."""
        return load_config(self.config, [*self.given, *overrides(values)])

    @property
    def identity(self) -> dict[str, str]:
        """What must agree for a search to be gone on with."""
        axes = "".join(f"{key}={axis.model_dump_json()};" for key, axis in self.space.items())
        return {
            "config": self.base.digest,
            "data": self.prepared.data_digest,
            "space": hashlib.sha256(axes.encode()).hexdigest(),
            "seed": str(self.seed),
        }


def run_search(search: Search, num_trials: int, *, resume: bool, watcher: Watcher) -> optuna.Study:
    """Make trials until there are `num_trials`, those of earlier sittings included.

    Raises:
        TuneError: The folder holds a search and `resume` is not set, or another search; or no trial finished.
    """
    check_space(search.space, search.config, search.given)
    study = _open(search, resume=resume)
    _take_up(study)
    started, first = time.monotonic(), len(counted(study))
    while (done := len(counted(study))) < num_trials:
        # Seeded by trial, so that a search that was cut draws what an unbroken one would.
        study.sampler = optuna.samplers.TPESampler(seed=search.seed * 100_003 + done)
        watcher.say(f"trial {done + 1} of {num_trials}{_left(started, done - first, num_trials - done)}")
        watcher.say(_one_trial(search, study, watcher))
        write_trials(search, study)
    if not any(t.state == TrialState.COMPLETE for t in counted(study)):
        raise TuneError(f"{search.out}: none of {len(counted(study))} trials finished; see {CSV_FILE}")
    return study


def counted(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that are over, without those that were cut and taken up again."""
    over = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    cut = study.user_attrs.get(TAKEN_UP, [])
    return [t for t in study.get_trials(deepcopy=False, states=over) if t.number not in cut]


def objective_value(valid: dict[str, Any], monitor: Monitor) -> float:
    """The watched metric of a finished run's raw validation figures.

    Raises:
        TuneError: It is undefined.
    """
    names = ("domain_auc", "total_auc") if monitor == "mean_auc" else (monitor,)
    values = [valid[name] for name in names]
    if any(value is None for value in values):
        raise TuneError(f"validation metric '{monitor}' is undefined: {valid['rows']} rows")
    return float(sum(values) / len(values))


class Pruner(Unsaid):
    """Tells a trial's validations to optuna and ends the trial when it falls behind."""

    def __init__(self, trial: optuna.Trial, inner: Watcher, *, evaluations_per_epoch: int) -> None:
        """Watch one run of `trial`, whose validations are counted by the epoch they come after."""
        super().__init__(inner)
        self._trial = trial
        self._per_epoch = evaluations_per_epoch

    def validated(self, epoch: float, value: float) -> None:
        """Report; raises optuna's `TrialPruned` where the trial is to end."""
        self._trial.report(value, round(epoch * self._per_epoch))
        if self._trial.should_prune():
            raise optuna.TrialPruned


def write_trials(search: Search, study: optuna.Study) -> None:
    """Write `trials.csv`, and `best.yaml` where a trial is complete."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", "value", "seconds", *search.space, "error"])
    for number, trial in enumerate(counted(study)):
        told = trial.user_attrs
        cells = [trial.params.get(key, "") for key in search.space]
        value = "" if trial.state != TrialState.COMPLETE else trial.value
        writer.writerow(
            [number, trial.state.name.lower(), value, told.get("seconds"), *cells, told.get("error", "")]
        )
    write_text(search.out / CSV_FILE, text.getvalue())
    if any(t.state == TrialState.COMPLETE for t in counted(study)):
        write_text(search.out / BEST_FILE, search.config_of(study.best_trial.user_attrs["values"]).to_yaml())


def _open(search: Search, *, resume: bool) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = search.out / JOURNAL_FILE
    known = journal.exists()
    if known and not resume:
        raise TuneError(f"{search.out}: already holds a search; pass --resume to go on, or choose another")
    search.out.mkdir(parents=True, exist_ok=True)
    monitor = search.base.training.monitor
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(journal))),
        study_name=search.base.name,
        direction="minimize" if monitor in LOWER_IS_BETTER else "maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=1),
        load_if_exists=True,
    )
    found = study.user_attrs.get("identity")
    if found is None:
        study.set_user_attr("identity", search.identity)
        if (own := values_of(search.base, search.space)) is not None:
            study.enqueue_trial(own)
    elif found != search.identity:
        names = [name for name, digest in search.identity.items() if found.get(name) != digest]
        raise TuneError(f"{search.out}: holds a search with another {' and '.join(names)}")
    return study


def _take_up(study: optuna.Study) -> None:
    """Let trials that a kill cut short be the next ones, in their old folders."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        folder = trial.user_attrs.get("folder")
        study.set_user_attr(TAKEN_UP, [*study.user_attrs.get(TAKEN_UP, []), trial.number])
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params, user_attrs={} if folder is None else {"folder": folder})


def _one_trial(search: Search, study: optuna.Study, watcher: Watcher) -> str:
    """Make one trial; gives a line on what came of it."""
    trial = study.ask()
    values = {key: axis.draw(trial, key) for key, axis in search.space.items()}
    folder = trial.user_attrs.get("folder", f"trials/{len(counted(study)):04d}")
    trial.set_user_attr("folder", folder)
    trial.set_user_attr("values", values)
    started = time.monotonic()
    try:
        value = _train(search, trial, values, search.out / folder, watcher)
    except optuna.TrialPruned:
        _tell(study, trial, started, TrialState.PRUNED)
        return "ended early, behind the others"
    except (*FAILURES, TuneError) as error:
        trial.set_user_attr("error", str(error))
        _tell(study, trial, started, TrialState.FAIL)
        return f"failed: {error}"
    _tell(study, trial, started, TrialState.COMPLETE, value)
    return f"{search.base.training.monitor} {value:.5f}, best {study.best_value:.5f}"


def _tell(
    study: optuna.Study, trial: optuna.Trial, started: float, state: TrialState, value: float | None = None
) -> None:
    trial.set_user_attr("seconds", round(time.monotonic() - started, 1))
    study.tell(trial, value, state=state)


def _train(search: Search, trial: optuna.Trial, values: dict[str, Any], out: Path, watcher: Watcher) -> float:
    config = search.config_of(values)
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "prepared").is_symlink():
        (out / "prepared").symlink_to(search.prepared.path.resolve(), target_is_directory=True)
    # Validations of a split run are of one cluster each: nothing to compare trials by before the end.
    split = config.clustering.version == "split"
    per_epoch = config.training.evaluations_per_epoch
    heard = Unsaid(watcher) if split else Pruner(trial, watcher, evaluations_per_epoch=per_epoch)
    result = run_training(config, search.prepared, out, resume=True, watcher=heard)
    return objective_value(result.metrics["raw"]["valid"], config.training.monitor)


def _left(started: float, done: int, todo: int) -> str:
    if not done:
        return ""
    return f", about {duration((time.monotonic() - started) / done * todo)} left"
