"""Reports of sequence runs: one run's page, and a table that compares runs.

Reads `metrics.json` of finished runs, writes `report.html`. Invariant: every figure is one that a run wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.engine.artefacts import RunFolder, load_json
from training.engine.files import write_text
from training.report_page import number, page, table
from training.sequences.errors import SequenceError

SHOWN = ("hr_5", "ndcg_5", "mrr")
HEADS = ("domain", "events", "known", "HR@5", "NDCG@5", "MRR")


def read_metrics(run: Path) -> dict[str, Any]:
    """The figures of a finished sequence run.

    Raises:
        SequenceError: It is not one.
    """
    folder = RunFolder(run)
    if not folder.metrics.is_file():
        raise SequenceError(
            f"{run}: not a finished sequence run, metrics.json is missing; go on with --resume"
        )
    metrics = load_json(folder.metrics)
    if "best_epoch" not in metrics or not {"cross", "single"} & set(metrics.get("test", {})):
        raise SequenceError(f"{run}: a run of another kind; a sequence run has figures by view")
    return metrics


def write_run_report(run: Path) -> Path:
    """Write the run's page; gives its path."""
    metrics = read_metrics(run)
    sections = []
    for split in ("test", "valid"):
        for view, found in metrics[split].items():
            sections.append(f"<h2>{split}, {view} view</h2>")
            sections.append(table(HEADS, view_rows(found)))
    if metrics.get("phi"):
        rows = [
            (
                name,
                *_transfer_cells(metrics, name, pair),
                "single" if metrics["use_single"][name] else "mixed",
            )
            for name, pair in metrics["phi"].items()
        ]
        sections.append("<h2>What the mixed view is worth</h2>")
        sections.append(table(("domain", "phi", "standard error", "weight", "served by"), rows))
    folder = RunFolder(run)
    write_text(folder.report, page(f"Sequence run {metrics['name']}", sections))
    return folder.report


def _transfer_cells(metrics: dict[str, Any], name: str, pair: Sequence[float] | None) -> tuple[str, str, str]:
    phi, error = (None, None) if pair is None else pair
    return number(phi), number(error), number(metrics["weights"][name])


def view_rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row for each domain, and their mean."""
    rows = [
        (name, str(own["num"]), str(own["num_known"]), *(number(own.get(key)) for key in SHOWN))
        for name, own in found["domains"].items()
    ]
    return [*rows, ("mean", "", "", *(number(found["mean"].get(key)) for key in SHOWN))]


def served_at(metrics: dict[str, Any], *, deviations: float) -> dict[str, Any]:
    """The figures as they would be with another limit of the switch; as they are for a net of one view.

    Args:
        metrics: Of a run.
        deviations: A domain is served by its single view where validation has the mixed one worse by more
            than so many standard errors.
    """
    if "served" not in metrics["test"]:
        return metrics
    single = {
        name: pair is not None and pair[0] < -deviations * pair[1] for name, pair in metrics["phi"].items()
    }
    changed: dict[str, Any] = {"use_single": single}
    for split in ("valid", "test"):
        views = metrics[split]
        own = {
            name: views["single" if single[name] else "cross"]["domains"][name]
            for name in views["cross"]["domains"]
        }
        mean = {
            key: sum(figures[key] for figures in own.values() if key in figures)
            / sum(key in figures for figures in own.values())
            for key in views["served"]["mean"]
        }
        changed[split] = views | {"served": {"mean": mean, "domains": own}}
    return metrics | changed


def compared(found: Sequence[dict[str, Any]], *, split: str = "test") -> tuple[list[str], list[list[str]]]:
    """Heads and rows of a table: a line for each run and view, three figures for each domain.

    Args:
        found: Figures of finished sequence runs over the same events.
        split: `valid` or `test`.

    Raises:
        SequenceError: The runs are of different events.
    """
    digests = {metrics["digests"]["data"] for metrics in found}
    if len(digests) > 1:
        raise SequenceError(f"the runs are of {len(digests)} different event logs; compare those of one")
    domains = sorted(
        {name for metrics in found for view in metrics[split].values() for name in view["domains"]}
    )
    rows = [
        [
            f"{metrics['name']} seed {metrics['seed']}, {view}",
            *(" ".join(number(own["domains"].get(name, {}).get(key)) for key in SHOWN) for name in domains),
            " ".join(number(own["mean"].get(key)) for key in SHOWN),
        ]
        for metrics in found
        for view, own in metrics[split].items()
    ]
    return ["run, view", *domains, "mean"], rows


def losses_to_single(metrics: dict[str, Any], *, split: str = "test") -> dict[str, float]:
    """By domain, HR@5 of the served view less that of the single one; empty without both views."""
    views = metrics[split]
    if "served" not in views:
        return {}
    return {
        name: own["hr_5"] - views["single"]["domains"][name]["hr_5"]
        for name, own in views["served"]["domains"].items()
        if "hr_5" in own
    }
