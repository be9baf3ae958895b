"""How a graph computes the experts that rows chose, for models whose rows choose.

    grouped   rows sorted by expert, each expert on its rows: the default on a CPU
    dense     every expert on every row, unchosen ones times 0: the reference
    fused     one operator of the runtime; only when asked for by name
    auto      the fastest of grouped and dense on this machine, measured

and which experts rows may choose from:

    masks     each domain only those that hold nearly all of its routing, as the run measured them
    static    a graph of one domain whose rows nearly all choose the same set has that set alone, with
              constant weights, where the run found that it costs less than 1e-4 AUC; with `auto` only

Reads what the run measured (`routing` of its metrics); writes candidates into a scratch folder only.
Invariants: a model without such a choice is left as it is; whatever changes a score is in the evidence with
the share of rows and the AUC it changes.

Source: CESAA, arXiv 2411.06826; the forms are ours.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import JsonValue
from torch import nn

from export.errors import RunError
from export.forms import runner
from export.fused_experts import FusedExperts
from export.onnx_export import export_graph
from export.run_folder import Part, RunFolder
from export.timing import rows_per_second
from service.scoring.predictor import Predictor
from training.models.base import CtrModel
from training.models.cesaa import Cesaa
from training.models.layers import ExpertStack
from training.models.routed_experts import DenseExperts, GroupedExperts

ExpertChoiceForm = Literal["auto", "grouped", "dense", "fused"]
Progress = Callable[[str], None]
TIMED_ROWS = (1, 10, 100, 500)
TIMED_DRAWS = 4
TIMED_SEED = 14
MAX_STATIC_LOSS = 1e-4
"""AUC that a set of experts frozen for a domain may cost."""
MIN_AGREEMENT = 0.98


@dataclass(frozen=True)
class ExpertForm:
    """One way to compute chosen experts.

    Attributes:
        build: Makes the module from a stack of experts.
        skips: Whether experts that a row did not choose are not computed for it.
        by_name: Whether `auto` leaves it out.
    """

    build: Callable[[ExpertStack], nn.Module]
    skips: bool
    by_name: bool = False


EXPERT_FORMS: dict[str, ExpertForm] = {
    "grouped": ExpertForm(GroupedExperts, skips=True),
    "dense": ExpertForm(DenseExperts, skips=False),
    "fused": ExpertForm(FusedExperts, skips=True, by_name=True),
}


def chooses_experts(model: CtrModel) -> bool:
    """Whether rows of a model choose among experts."""
    return isinstance(model.ranker, Cesaa)


def with_form(model: CtrModel, form: str) -> CtrModel:
    """A model whose inference form computes chosen experts in a given way; shares all weights."""
    ranker = _copied(model)
    ranker.routed_form = EXPERT_FORMS[form].build
    return CtrModel(model.inputs, ranker).eval()


def with_masks(model: CtrModel, allowed: Sequence[Sequence[int]]) -> CtrModel:
    """A model whose D + 1 domains choose from some experts only; shares all weights."""
    ranker = _copied(model)
    ranker.gate = copy.deepcopy(ranker.gate)
    ranker.gate.allow(allowed)
    return CtrModel(model.inputs, ranker).eval()


def with_static(model: CtrModel, domain: int, experts: Sequence[int], weights: Sequence[float]) -> CtrModel:
    """A model in which all rows of one domain use one set of experts; shares all weights."""
    ranker = _copied(model)
    ranker.fixed = {**ranker.fixed, domain: (tuple(experts), tuple(weights))}
    return CtrModel(model.inputs, ranker).eval()


def apply_masks(run: RunFolder) -> tuple[RunFolder, dict[str, dict[str, JsonValue]]]:
    """The run with each domain's experts masked as it measured them, and what that costs.

    Raises:
        RunError: A model without such a choice, or a run that measured no routing.
    """
    parts: list[Part] = []
    told: dict[str, dict[str, JsonValue]] = {}
    for part in run.parts:
        routing = _routing(run, part)
        every = list(range(int(routing["num_experts"])))
        domains = routing["domains"]
        allowed = [domains[name]["allowed"] for name in run.schema.domains]
        parts.append(replace(part, model=with_masks(part.model, [*allowed, every])))
        mean = sum(map(len, allowed)) / len(allowed)
        told[part.key] = {
            "routing_mass": routing["routing_mass"],
            "mean_experts": round(mean, 3),
            "num_experts": len(every),
            "changed_ratio": routing["allowed"]["changed_ratio"],
            "auc_change": {name: routing["allowed"][name] for name in ("total_auc", "domain_auc", "gauc")},
            "domains": {
                name: {key: domains[name][key] for key in ("allowed", "changed_ratio", "auc_change")}
                for name in run.schema.domains
            },
        }
    return replace(run, parts=tuple(parts)), told


def choose_expert_forms(
    run: RunFolder, form: ExpertChoiceForm | None, scratch: Path, progress: Progress
) -> tuple[RunFolder, dict[str, dict[str, JsonValue]]]:
    """The run with the form of each graph's experts set, and why, by key of graph.

    Args:
        run: With the parts that get graphs.
        form: Wanted; None takes the default where rows choose.
        scratch: Folder for candidates.
        progress: Told the name of each step.

    Raises:
        RunError: A form is wanted of a model whose rows do not choose.
    """
    if not any(chooses_experts(part.model) for part in run.parts):
        if form not in (None, "auto"):
            raise RunError(
                f"experts {form}: rows of a model of type {run.metrics.get('model')} choose no experts"
            )
        return run, {}
    parts, evidence = [], {}
    for part in run.parts:
        chosen, told = _of_part(run, part, form or "grouped", scratch, progress)
        # Every form is held to the one that computes all experts.
        parts.append(replace(chosen, reference=with_form(chosen.model, "dense")))
        evidence[part.key] = told
    return replace(run, parts=tuple(parts)), evidence


def _of_part(
    run: RunFolder, part: Part, form: ExpertChoiceForm, scratch: Path, progress: Progress
) -> tuple[Part, dict[str, JsonValue]]:
    if form != "auto":
        chosen = replace(part, model=with_form(part.model, form))
        return chosen, {"form": form, "skips_experts": EXPERT_FORMS[form].skips, "reason": "as asked for"}
    frozen = _static(run, part)
    if frozen is not None:
        return frozen
    progress(f"measure expert forms of graph '{part.key}'")
    names = [name for name, known in EXPERT_FORMS.items() if not known.by_name]
    candidates = {name: replace(part, model=with_form(part.model, name)) for name in names}
    rates = measured_rates(run, candidates, scratch / part.key)
    best = max(names, key=lambda name: _mean_rate(rates[name]))
    told: dict[str, Any] = {
        "form": best,
        "skips_experts": EXPERT_FORMS[best].skips,
        "reason": f"most rows a second, geometric mean over {', '.join(map(str, TIMED_ROWS))} rows a run",
        "rows_per_s": {name: {str(n): round(rate) for n, rate in of.items()} for name, of in rates.items()},
    }
    return candidates[best], told


def _static(run: RunFolder, part: Part) -> tuple[Part, dict[str, JsonValue]] | None:
    """A graph of one domain with one set of experts, where routing agreement allows."""
    if part.form != "domain":
        return None
    (domain,) = part.domains
    found = _routing(run, part)["domains"].get(run.schema.domains[domain], {})
    agreement, change = found.get("agreement"), found.get("static_auc_change")
    if agreement is None or change is None or agreement < MIN_AGREEMENT or change <= -MAX_STATIC_LOSS:
        return None
    model = with_static(part.model, domain, found["modal"], found["modal_weights"])
    return replace(part, model=model), {
        "form": "static",
        "skips_experts": True,
        "reason": f"{agreement:.4f} of its rows choose the same experts",
        "experts": found["modal"],
        "changed_ratio": 1 - agreement,
        "auc_change": change,
    }


def measured_rates(run: RunFolder, candidates: dict[str, Part], scratch: Path) -> dict[str, dict[int, float]]:
    """Rows a second of each candidate by rows a run, side by side on rows of its first domain."""
    opened: dict[str, Predictor] = {}
    for name, part in candidates.items():
        folder = scratch / name
        entry = export_graph(
            part.scoring_graph(run.schema), run.schema, folder, name=part.key, form=part.form
        )
        opened[name] = Predictor(folder / entry.file, entry)
    rates: dict[str, dict[int, float]] = {name: {} for name in candidates}
    sampler = run.sampler(seed=TIMED_SEED)
    domains = next(iter(candidates.values())).domains
    for num_rows in TIMED_ROWS:
        inputs = [
            sampler.draw(domain=domains[draw % len(domains)], num_rows=num_rows)
            for draw in range(TIMED_DRAWS)
        ]
        found = rows_per_second({name: runner(predictor) for name, predictor in opened.items()}, inputs)
        for name, rate in found.items():
            rates[name][num_rows] = rate
    return rates


def _mean_rate(rates: dict[int, float]) -> float:
    return math.prod(rates.values()) ** (1 / len(rates))


def _routing(run: RunFolder, part: Part) -> dict[str, Any]:
    if not chooses_experts(part.model):
        raise RunError(f"expert masks: rows of a model of type {run.metrics.get('model')} choose no experts")
    found: dict[str, Any] | None = run.metrics.get("routing")
    if found is None:
        raise RunError(f"expert masks: {run.path} has no routing among its metrics; train it again")
    return found


def _copied(model: CtrModel) -> Cesaa:
    """A ranker of its own around the same weights."""
    if not isinstance(model.ranker, Cesaa):
        raise RunError(f"rows of a {type(model.ranker).__name__} choose no experts")
    own = copy.copy(model.ranker)
    own._modules = dict(model.ranker._modules)
    own._buffers = dict(model.ranker._buffers)
    return own
