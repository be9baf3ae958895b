"""The report of a search: history, which keys mattered, the best trials.

Reads the trials; writes `OUT/report.html`. Invariant: every value shown is of validation.
"""

from __future__ import annotations

import html
from pathlib import Path

import numpy as np
import optuna
from matplotlib.figure import Figure
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from training.engine.files import write_text
from training.report_page import image, page, plot, table
from training.tune.search import BEST_FILE, Search, counted

REPORT_FILE = "report.html"
SHOWN = 10
MIN_FOR_IMPORTANCE = 4
"""Whole trials below which nothing is said of importance."""


def write_search_report(search: Search, study: optuna.Study) -> Path:
    """Write the report and give its path."""
    trials = counted(study)
    whole = [t for t in trials if t.state == TrialState.COMPLETE]
    monitor = search.base.training.monitor
    states = {state: sum(t.state == state for t in trials) for state in TrialState}
    seconds = sum(t.user_attrs.get("seconds", 0.0) for t in trials)
    sections = [
        f"<p>{len(trials)} trials: {states[TrialState.COMPLETE]} whole, {states[TrialState.PRUNED]} ended "
        f"early, {states[TrialState.FAIL]} failed; {seconds:.0f} s in all. Best validation {monitor} "
        f"{study.best_value:.5f}; its config is {BEST_FILE}.</p>",
        "<h2>History</h2>" + image(_history(study, trials, monitor), "value by trial"),
        "<h2>Importance</h2>" + _importance(study, whole),
        "<h2>Best trials</h2>" + _best(search, study, trials),
        f"<h2>Best config</h2><pre>{html.escape((search.out / BEST_FILE).read_text(encoding='utf-8'))}</pre>",
    ]
    write_text(search.out / REPORT_FILE, page(f"search of {search.base.name}", sections))
    return search.out / REPORT_FILE


def _history(study: optuna.Study, trials: list[FrozenTrial], monitor: str) -> Figure:
    figure, axes = plot(columns=1)
    whole = [(n, t.value) for n, t in enumerate(trials) if t.state == TrialState.COMPLETE]
    ended = [
        (n, t.intermediate_values[max(t.intermediate_values)])
        for n, t in enumerate(trials)
        if t.state == TrialState.PRUNED and t.intermediate_values
    ]
    x, values = np.array([n for n, _ in whole]), np.array([value for _, value in whole], dtype=np.float64)
    lower = study.direction == optuna.study.StudyDirection.MINIMIZE
    best = np.minimum.accumulate(values) if lower else np.maximum.accumulate(values)
    axes[0].plot(x, values, "o", label="whole")
    axes[0].step(x, best, where="post", color="C0", label="best so far")
    if ended:
        axes[0].plot([n for n, _ in ended], [v for _, v in ended], "x", color="grey", label="ended early")
    axes[0].set(xlabel="trial", ylabel=f"validation {monitor}")
    axes[0].legend()
    return figure


def _importance(study: optuna.Study, whole: list[FrozenTrial]) -> str:
    if len(whole) < MIN_FOR_IMPORTANCE or len({t.value for t in whole}) == 1:
        return f"<p>At least {MIN_FOR_IMPORTANCE} whole trials of different values are needed.</p>"
    shares = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    names, values = list(shares)[::-1], list(shares.values())[::-1]
    figure = Figure(figsize=(8.0, 1.0 + 0.35 * len(names)), layout="constrained")
    axis = figure.add_subplot(1, 1, 1)
    axis.barh(range(len(names)), values)
    axis.set_yticks(range(len(names)), names)
    axis.set_xlabel("share of the variance of values (fANOVA)")
    return image(figure, "importance of keys")


def _best(search: Search, study: optuna.Study, trials: list[FrozenTrial]) -> str:
    numbered = [
        (number, trial.value, trial)
        for number, trial in enumerate(trials)
        if trial.state == TrialState.COMPLETE and trial.value is not None
    ]
    higher = study.direction == optuna.study.StudyDirection.MAXIMIZE
    numbered.sort(key=lambda entry: entry[1], reverse=higher)
    rows = [
        [str(number), f"{value:.5f}", *(_shown(trial.params.get(key)) for key in search.space)]
        for number, value, trial in numbered[:SHOWN]
    ]
    return table(["trial", "value", *search.space], rows)


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
