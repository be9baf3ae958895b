"""The tables and sentences of a study, for a terminal, a markdown file and a page alike.

Pure: reads the tree of `study.json`. Invariant: gains and losses are told in the same words, and a difference
whose interval holds 0 is never called either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from training.metrics import HEADLINE
from training.study.results import LOWER_IS_BETTER

Tables = Mapping[str, Any]
Rows = list[list[str]]

SHORT = {
    "total_auc": "total AUC",
    "domain_auc": "domain AUC",
    "major5_auc": "major5 AUC",
    "minor10_auc": "minor10 AUC",
    "gauc": "GAUC",
    "logloss": "logloss",
    "ece": "ECE",
    "calibration_ratio": "predicted/observed",
}
"""Metrics as people read them."""

TOLD = ("domain_auc", "total_auc", "minor10_auc", "logloss")
"""Metrics of the table of differences."""

NOTES = (
    "Test rows, calibrated scores; mean and standard deviation over seeds. Seconds are of training and "
    "evaluation, without the search for clusters.",
    "A difference is variant minus reference, paired by seed, with a 95 % interval by Student's t. It speaks "
    "of training noise: all seeds share one set of test rows. p values are not corrected for their number.",
)


def variant_rows(tables: Tables, metrics: Sequence[str] = HEADLINE) -> tuple[list[str], Rows]:
    """Heads and rows of the table of variants, test figures."""
    heads = ["variant", "seeds", *(SHORT[name] for name in metrics), "seconds"]
    rows = [
        [
            name,
            str(len(variant["seeds"])),
            *(spread_cell(variant["test"][metric]) for metric in metrics),
            spread_cell(variant["seconds"], digits=0),
        ]
        for name, variant in tables["variants"].items()
    ]
    return heads, rows


def difference_rows(tables: Tables) -> tuple[list[str], Rows]:
    """Heads and rows of the table of differences on test."""
    heads = ["variant", "against", *(SHORT[name] for name in TOLD), "p (domain AUC)", "seeds won"]
    rows = []
    for line in tables["differences"]:
        main = line["test"]["domain_auc"]
        rows.append(
            [
                line["variant"],
                line["reference"],
                *(difference_cell(line["test"][name]) for name in TOLD),
                "-" if main is None or main["p"] is None else f"{main['p']:.2g}",
                "-" if main is None else f"{main['won']} of {main['n']}",
            ]
        )
    return heads, rows


def sentences(tables: Tables) -> list[str]:
    """One sentence per pair on domain AUC, one on total AUC where it says otherwise; then what is missing."""
    lines = []
    for line in tables["differences"]:
        told = {name: verdict(line["test"][name], name) for name in ("domain_auc", "total_auc")}
        parts = [f"in {SHORT[name]} {text}" for name, text in told.items()]
        lines.append(f"{line['variant']} against {line['reference']}: {'; '.join(parts)}.")
    if missing := tables["planned_runs"] - tables["finished_runs"]:
        lines.append(f"{missing} of {tables['planned_runs']} runs are not finished; figures are of the rest.")
    lines += [f"Failed: {name}: {message}" for name, message in tables["failed"].items()]
    return lines


def verdict(difference: Mapping[str, Any] | None, metric: str) -> str:
    """A paired difference in plain words."""
    if difference is None:
        return "undefined"
    cell, n = difference_cell(difference), difference["n"]
    if difference["low"] is None:
        return f"{cell} on one seed, which says nothing of noise"
    if difference["low"] <= 0 <= difference["high"]:
        return f"not told apart, {cell}, better on {difference['won']} of {n} seeds"
    better = (difference["mean"] < 0) == (metric in LOWER_IS_BETTER)
    word, seeds = ("better", difference["won"]) if better else ("worse", difference["lost"])
    return f"{word}, {cell}, {word} on {seeds} of {n} seeds"


def markdown(tables: Tables) -> str:
    """The study as markdown, for a README or notes."""
    parts = [f"## {tables['name']}", markdown_table(*variant_rows(tables))]
    if tables["differences"]:
        parts.append(markdown_table(*difference_rows(tables)))
    parts.append("\n".join(f"- {line}" for line in sentences(tables)))
    return "\n\n".join(part for part in (*parts, *NOTES) if part) + "\n"


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table, the first column to the left."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread_cell(spread: Mapping[str, Any] | None, *, digits: int = 4) -> str:
    """Mean and standard deviation."""
    if spread is None:
        return "-"
    mean = f"{spread['mean']:.{digits}f}"
    return mean if spread["sd"] is None else f"{mean} ± {spread['sd']:.{digits}f}"


def difference_cell(difference: Mapping[str, Any] | None) -> str:
    """Mean difference with its interval."""
    if difference is None:
        return "-"
    mean = f"{difference['mean']:+.4f}"
    if difference["low"] is None:
        return mean
    return f"{mean} ({difference['low']:+.4f} to {difference['high']:+.4f})"
