"""Which graphs a bundle has: one of all domains, one per cluster, own ones of hot domains.

    whole     one graph, tables by domain
    cluster   a graph per cluster of domains
    domain    own graphs of the domains named, the rest as the run has it
    auto      what is faster on this machine, measured

Writes candidates into a scratch folder only. Invariant: whatever the choice, the parts serve every domain and
the unknown one exactly once; `auto` records the rows a second and the memory that decided.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import JsonValue

from export.clusters import SPLIT, served_domains
from export.errors import RunError
from export.memory import resident_mib
from export.one_tower import with_one_tower
from export.onnx_export import export_graph
from export.rows import GraphArrays
from export.run_folder import Part, RunFolder
from export.timing import rows_per_second
from service.scoring.predictor import Predictor
from training.models.aread import Aread
from training.models.base import CtrModel
from training.models.cesaa import Cesaa
from training.models.specialise import specialise
from training.models.towers import TowerRanker

FormChoice = Literal["auto", "whole", "cluster", "domain"]
Progress = Callable[[str], None]
MIN_GAIN = 1.1
"""How much faster a special graph must be to be worth its memory."""
TIMED_ROWS = 100
TIMED_DRAWS = 8
TIMED_SEED = 13


def choose_form(
    run: RunFolder, form: FormChoice | None, named: Sequence[str], scratch: Path, progress: Progress
) -> tuple[RunFolder, dict[str, JsonValue]]:
    """The run with the parts that get graphs, and why, by key of graph.

    Args:
        run: As read.
        form: Wanted; None for the run's own parts and the domains named.
        named: Domains that get own graphs; with `auto`, those that are tried.
        scratch: Folder for candidates.
        progress: Told the name of each step.

    Raises:
        RunError: The run cannot have that form.
    """
    if form == "whole":
        if run.clustering is not None and run.clustering.version == SPLIT:
            raise RunError(
                f"form whole: run '{run.path.name}' has a model for each cluster, no model of all domains"
            )
        if named:
            raise RunError(f"form whole has one graph, but own graphs are wanted for {', '.join(named)}")
        return run, {}
    if form == "cluster":
        return by_cluster(run).with_domain_graphs(named), {}
    if form == "auto":
        return _measured(run, named, scratch, progress)
    if form == "domain" and not named:
        raise RunError("form domain: no domain gets a graph; give --hot-domains or --domain-graphs")
    return run.with_domain_graphs(named), {}


def by_cluster(run: RunFolder) -> RunFolder:
    """The same run with a graph per cluster.

    Raises:
        RunError: It has no clusters, or its model has nothing to drop for one of them.
    """
    if run.clustering is None:
        raise RunError(f"form cluster: run '{run.path.name}' has no clusters")
    if run.clustering.version == SPLIT:
        return run
    (whole,) = run.parts
    parts = []
    for k in range(len(run.clustering.clusters)):
        served = served_domains(run.clustering, run.schema, k)
        if served:
            parts.append(_of_cluster(whole, k, served))
    if all(part.model is whole.model and specialise(part.model, part.domains) is None for part in parts):
        raise RunError(
            f"form cluster: a model of type {run.metrics.get('model')} has nothing to drop for the domains "
            f"of one cluster: {_why_nothing(whole.model)}"
        )
    return replace(run, parts=tuple(parts))


def _of_cluster(whole: Part, k: int, served: tuple[int, ...]) -> Part:
    """The part of one cluster: the whole model, or what is left of it where its towers go by the clusters."""
    part = replace(whole, key=f"cluster-{k}", form="cluster", domains=served)
    own = with_one_tower(whole.model, served)
    return part if own is None else replace(part, model=own, reference=whole.reference or whole.model)


def _why_nothing(model: CtrModel) -> str:
    """Why a graph of several domains would hold all that the graph of all domains does."""
    if isinstance(model.ranker, Aread):
        return "for each cluster the masks of its domains together use every expert"
    if isinstance(model.ranker, Cesaa):
        return "experts that a domain may not choose are left out of graphs of one domain only"
    if isinstance(model.ranker, TowerRanker) and model.ranker.num_towers > 1:
        return "only MMoE and PLE of one level are cut to the tower of a cluster"
    return "it has one tower and no masks, and a gate that is a softmax gives no expert a weight of zero"


def _measured(
    run: RunFolder, named: Sequence[str], scratch: Path, progress: Progress
) -> tuple[RunFolder, dict[str, JsonValue]]:
    """The fastest parts: clusters before the whole, then domains before either."""
    trial = _Trial(run, scratch, progress)
    base, reason, tried = _best_base(run, trial)
    own = []
    for name in named:
        key, told = _domain_gain(base, name, trial)
        tried[key] = told
        if told.get("gain", 0.0) >= MIN_GAIN:
            own.append(name)
    chosen = base.with_domain_graphs(own)
    keys = {part.key for part in chosen.parts}
    left: dict[str, JsonValue] = {key: dict(told) for key, told in tried.items() if key not in keys}
    evidence: dict[str, JsonValue] = {}
    for part in chosen.parts:
        told_of: dict[str, JsonValue] = dict(tried.get(part.key, {}))
        if part.form != "domain":
            told_of |= {"reason": reason} | ({"not_taken": left} if left else {})
        evidence[part.key] = told_of
    return chosen, evidence


def _best_base(run: RunFolder, trial: _Trial) -> tuple[RunFolder, str, dict[str, dict[str, Any]]]:
    """The run by clusters where every cluster's graph is worth it, else as it is; why; what was measured."""
    try:
        clusters = by_cluster(run)
    except RunError as error:
        return run, str(error), {}
    if clusters is run:
        return run, "the run has a model for each cluster", {}
    gains = {part.key: trial.compare(run.parts[0], part) for part in clusters.parts}
    worth = sum(gain["gain"] >= MIN_GAIN for gain in gains.values())
    reason = f"{worth} of {len(gains)} cluster graphs are at least {MIN_GAIN} times as fast as the whole"
    return (clusters if worth == len(gains) else run), reason, gains


def _domain_gain(base: RunFolder, name: str, trial: _Trial) -> tuple[str, dict[str, Any]]:
    """Key of a domain's own graph, and what it gains; the reason where it cannot have one."""
    index = base.schema.domain_index(name)
    try:
        special = base.with_domain_graphs([name]).part_of(index)
    except RunError as error:
        return f"domain-{index}", {"reason": str(error)}
    return special.key, trial.compare(base.part_of(index), special)


class _Trial:
    """Measures two parts side by side.

    Args:
        run: Whose rows are scored.
        scratch: Folder for candidates.
        progress: Told the name of each step.
    """

    def __init__(self, run: RunFolder, scratch: Path, progress: Progress) -> None:
        self._run, self._scratch, self._progress = run, scratch, progress
        self._opened: dict[str, tuple[Predictor, float]] = {}

    def compare(self, general: Part, special: Part) -> dict[str, Any]:
        """Rows a second and MiB of both, on rows of the special part's first domain."""
        self._progress(f"measure graph '{special.key}'")
        pair = {name: self._open(part) for name, part in (("general", general), ("special", special))}
        sampler = self._run.sampler(seed=TIMED_SEED)
        inputs = [sampler.draw(domain=special.domains[0], num_rows=TIMED_ROWS) for _ in range(TIMED_DRAWS)]
        runs = {name: runner(predictor) for name, (predictor, _) in pair.items()}
        rates = rows_per_second(runs, inputs)
        return {
            "gain": round(rates["special"] / rates["general"], 3),
            "rows_per_s": round(rates["special"]),
            "rows_per_s_without": round(rates["general"]),
            "memory_mib": round(pair["special"][1], 2),
            "memory_mib_without": round(pair["general"][1], 2),
        }

    def _open(self, part: Part) -> tuple[Predictor, float]:
        """A part's graph, and what opening it added to the memory of this process."""
        if part.key not in self._opened:
            folder = self._scratch / part.key
            entry = export_graph(
                part.scoring_graph(self._run.schema),
                self._run.schema,
                folder,
                name=part.key,
                form=part.form,
            )
            before = resident_mib()
            predictor = Predictor(folder / entry.file, entry)
            self._opened[part.key] = (predictor, resident_mib() - before)
        return self._opened[part.key]


def runner(predictor: Predictor) -> Callable[[GraphArrays], object]:
    """Runs a graph on the inputs that it reads of those given."""
    names = [spec.name for spec in predictor.graph.inputs]
    return lambda inputs: predictor.run({name: inputs[name] for name in names})
