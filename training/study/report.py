"""What a study leaves behind for people and programs.

    OUT/study.json    everything, machine readable
    OUT/study.md      the tables, for a README or notes
    OUT/report.html   tables and plots

Invariant: all three come from the finished run folders alone, so they can be remade without training.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from training.engine.artefacts import save_json
from training.engine.files import write_text
from training.report_page import image, page, table
from training.study.errors import StudyRunError
from training.study.plan import Plan
from training.study.results import finished_runs
from training.study.summary import (
    NOTES,
    SHORT,
    Tables,
    difference_cell,
    difference_rows,
    markdown,
    sentences,
    spread_cell,
    variant_rows,
)
from training.study.tables import study_tables

JSON_FILE = "study.json"
MARKDOWN_FILE = "study.md"
REPORT_FILE = "report.html"

PLOTTED = ("domain_auc", "total_auc", "minor10_auc")


def write_study(plan: Plan, out: Path, *, failed: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Write all files of a study from its finished runs; gives the content of `study.json`.

    Args:
        plan: The study.
        out: Its folder.
        failed: Message of each run that failed, by name.

    Raises:
        StudyRunError: No run is finished, or one is of another config.
    """
    runs = finished_runs(plan, out)
    if not runs:
        raise StudyRunError(f"{out}: no finished run of study {plan.name} there")
    tables = study_tables(plan, runs, failed or {})
    save_json(out / JSON_FILE, tables)
    write_text(out / MARKDOWN_FILE, markdown(tables))
    write_text(out / REPORT_FILE, study_page(tables))
    return tables


def study_page(tables: Tables) -> str:
    """The report as one HTML page."""
    sections = [
        f"<p>{tables['finished_runs']} of {tables['planned_runs']} runs finished; seeds "
        f"{', '.join(map(str, tables['seeds']))}.</p>",
        table(*variant_rows(tables)),
        f"<p class='note'>{html.escape(NOTES[0])}</p>",
        "<h2>Differences</h2>",
        "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in sentences(tables)) + "</ul>",
    ]
    if tables["differences"]:
        sections += [
            table(*difference_rows(tables)),
            f"<p class='note'>{html.escape(NOTES[1])}</p>",
            *(_difference_images(tables, reference) for reference in _references(tables)),
            *(_domain_section(tables, reference) for reference in _references(tables)),
        ]
    sections += [_cluster_section(tables), _validation_section(tables)]
    return page(tables["name"], sections)


def _references(tables: Tables) -> list[str]:
    return list(dict.fromkeys(line["reference"] for line in tables["differences"]))


def _lines(tables: Tables, reference: str) -> list[Mapping[str, Any]]:
    return [line for line in tables["differences"] if line["reference"] == reference]


def _difference_images(tables: Tables, reference: str) -> str:
    lines = _lines(tables, reference)
    figure = Figure(figsize=(4.2 * len(PLOTTED), 1.2 + 0.45 * len(lines)), layout="constrained")
    for column, metric in enumerate(PLOTTED):
        axis = figure.add_subplot(1, len(PLOTTED), column + 1)
        axis.grid(alpha=0.3)
        axis.axvline(0, color="grey", ls=":")
        for place, line in enumerate(reversed(lines)):
            _interval(axis, line["test"][metric], place)
        names = [line["variant"] for line in reversed(lines)]
        axis.set_yticks(range(len(lines)), names if column == 0 else [""] * len(lines))
        axis.set_ylim(-0.6, len(lines) - 0.4)
        axis.set_xlabel(f"{SHORT[metric]}, difference from {reference}")
    note = "<p class='note'>Dots: mean; bars: 95 % interval; crosses: seeds. To the right is better.</p>"
    return (
        f"<h3>Against {html.escape(reference)}</h3>" + image(figure, f"differences from {reference}") + note
    )


def _interval(axis: Any, difference: Mapping[str, Any] | None, place: int) -> None:
    if difference is None:
        return
    values = difference["values"]
    axis.plot(values, [place - 0.18] * len(values), "x", color="grey", ms=4)
    axis.plot([difference["mean"]], [place], "o", color="C0")
    if difference["low"] is not None:
        axis.plot([difference["low"], difference["high"]], [place, place], color="C0", lw=2)


def _domain_section(tables: Tables, reference: str) -> str:
    """AUC of every domain: the reference's mean, and each variant's difference from it."""
    lines, sizes = _lines(tables, reference), tables["domains"]
    base = tables["variants"][reference]["domains"]
    first = [name for name in tables["domains_of_interest"] if name in sizes]
    ordered = [*first, *(name for name in sizes if name not in first)]
    shown = [name for name in ordered if name in base]
    rows = [
        [
            name + (" (small)" if sizes[name]["small"] else ""),
            f"{sizes[name]['train_rows']:,}",
            f"{sizes[name]['test_rows']:,}",
            f"{sizes[name]['test_clicks']:,}",
            spread_cell(base[name]),
            *(difference_cell(line["domains"].get(name)) for line in lines),
        ]
        for name in shown
    ]
    heads = ["domain", "train rows", "test rows", "clicks", reference, *(line["variant"] for line in lines)]
    note = (
        "<p class='note'>Small: the ten domains of minor10 AUC. The intervals are of training noise; a small "
        "domain's few test clicks add more than they show.</p>"
    )
    picture = image(_domain_plot(lines, sizes, shown), f"domains against {reference}")
    return f"<h2>Domains against {html.escape(reference)}</h2>" + picture + note + table(heads, rows)


def _domain_plot(
    lines: Sequence[Mapping[str, Any]], sizes: Mapping[str, Any], shown: Sequence[str]
) -> Figure:
    figure = Figure(figsize=(11.0, 4.5), layout="constrained")
    axis = figure.add_subplot(1, 1, 1)
    axis.grid(alpha=0.3)
    axis.axhline(0, color="grey", ls=":")
    for place, line in enumerate(lines):
        known = [(name, line["domains"][name]) for name in shown if line["domains"].get(name)]
        rows = np.array([max(sizes[name]["train_rows"], 1) for name, _ in known], dtype=np.float64)
        mean = np.array([found["mean"] for _, found in known])
        # Points of one domain stand side by side.
        x = rows * 1.03**place
        colour = f"C{place % 10}"
        axis.plot(x, mean, "o", ms=4, color=colour, label=line["variant"])
        for at, (_, found) in zip(x, known, strict=True):
            if found["low"] is not None:
                axis.plot([at, at], [found["low"], found["high"]], color=colour, lw=0.8)
    axis.set_xscale("log")
    axis.set(xlabel="train rows of the domain", ylabel="difference of test AUC")
    axis.legend(fontsize=8)
    return figure


def _cluster_section(tables: Tables) -> str:
    rows = [
        [name, str(seed), str(len(sizes)), " ".join(map(str, sizes))]
        for name, variant in tables["variants"].items()
        if variant["cluster_sizes"]
        for seed, sizes in zip(variant["seeds"], variant["cluster_sizes"], strict=True)
    ]
    if not rows:
        return ""
    return "<h2>Clusters</h2>" + table(["variant", "seed", "clusters", "domains in each"], rows)


def _validation_section(tables: Tables) -> str:
    names = ("domain_auc", "total_auc", "logloss")
    rows = [
        [name, *(spread_cell(variant["valid"][metric]) for metric in names)]
        for name, variant in tables["variants"].items()
    ]
    note = "<p class='note'>Validation rows, raw scores: what early stopping saw.</p>"
    return "<h2>Validation</h2>" + table(["variant", *(SHORT[name] for name in names)], rows) + note
