"""The content of `study.json`: what a study found, as plain data.

Pure: from finished runs to a tree of dicts, lists, strings and numbers. Invariant: a variant is compared with
a reference only where both were trained on the same data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from training.metrics import HEADLINE
from training.study.compare import paired, spread
from training.study.errors import StudyRunError
from training.study.plan import Plan
from training.study.results import COMPARED, LOWER_IS_BETTER, FinishedRun, domain_sizes

SPLITS = ("test", "valid")

RunsBySeed = Mapping[int, FinishedRun]


def study_tables(plan: Plan, runs: Sequence[FinishedRun], failed: Mapping[str, str]) -> dict[str, Any]:
    """Everything a study says.

    Args:
        plan: The study.
        runs: Its finished runs.
        failed: Message of each run that failed in this sitting, by "variant, seed s".

    Raises:
        StudyRunError: A domain of interest is none of the data's.
    """
    by_variant: dict[str, dict[int, FinishedRun]] = {}
    for run in runs:
        by_variant.setdefault(run.variant, {})[run.seed] = run
    by_variant = {name: by_variant[name] for name in plan.variants if name in by_variant}
    sizes = {name: asdict(size) for run in runs[:1] for name, size in domain_sizes(run).items()}
    if unknown := [name for name in plan.domains if sizes and name not in sizes]:
        raise StudyRunError(f"domains: {unknown[0]!r} is no domain of the data; it has {', '.join(sizes)}")
    return {
        "name": plan.name,
        "seeds": list(plan.seeds),
        "reference": list(plan.references),
        "domains_of_interest": list(plan.domains),
        "planned_runs": len(plan.runs),
        "finished_runs": len(runs),
        "failed": dict(failed),
        "domains": sizes,
        "variants": {name: _variant(own) for name, own in by_variant.items()},
        "differences": _differences(plan, by_variant),
    }


def _variant(runs: RunsBySeed) -> dict[str, Any]:
    ordered = list(runs.values())
    domains = ordered[0].metrics["test"]["domains"]
    sizes = [run.metrics["clustering"]["sizes"] for run in ordered if "clustering" in run.metrics]
    return {
        "seeds": list(runs),
        "data": ordered[0].data_digest,
        **{
            split: {name: spread([run.value(split, name) for run in ordered]) for name in HEADLINE}
            for split in SPLITS
        },
        "seconds": spread([run.metrics["seconds"] for run in ordered]),
        "cluster_sizes": sizes or None,
        "domains": {name: spread([run.domain_auc(name) for run in ordered]) for name in domains},
    }


def _differences(plan: Plan, by_variant: Mapping[str, RunsBySeed]) -> list[dict[str, Any]]:
    return [
        {"variant": name, "reference": reference} | _difference(by_variant[name], by_variant[reference])
        for reference in plan.references
        if reference in by_variant
        for name in by_variant
        if name != reference and _data(by_variant[name]) == _data(by_variant[reference])
    ]


def _data(runs: RunsBySeed) -> str:
    return next(iter(runs.values())).data_digest


def _difference(variant: RunsBySeed, reference: RunsBySeed) -> dict[str, Any]:
    def of(runs: RunsBySeed, split: str, metric: str) -> dict[int, float | None]:
        return {seed: run.value(split, metric) for seed, run in runs.items()}

    def of_domain(runs: RunsBySeed, domain: str) -> dict[int, float | None]:
        return {seed: run.domain_auc(domain) for seed, run in runs.items()}

    found: dict[str, Any] = {}
    for split in SPLITS:
        found[split] = {}
        for metric in COMPARED:
            difference = paired(
                of(variant, split, metric),
                of(reference, split, metric),
                lower_is_better=metric in LOWER_IS_BETTER,
            )
            found[split][metric] = None if difference is None else difference.to_json_dict()
    names = next(iter(variant.values())).metrics["test"]["domains"]
    found["domains"] = {}
    for name in names:
        difference = paired(of_domain(variant, name), of_domain(reference, name), lower_is_better=False)
        found["domains"][name] = None if difference is None else difference.to_json_dict()
    return found
