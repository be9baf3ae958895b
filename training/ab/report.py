"""The report of an experiment: one page, and the same figures as JSON.

Reads an `Analysis`; writes `report.html` and `analysis.json`. Invariant: every number of the page is in the
JSON; what is not defined is null there and "-" here.
"""

from __future__ import annotations

import html
import json
import math
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from training.ab.analyse import Analysis
from training.ab.compare import Comparison
from training.engine.files import write_text
from training.report_page import image, number, page, plot, table

REPORT_FILE = "report.html"
JSON_FILE = "analysis.json"
SHOWN_GROUPS = 60


def write_analysis(analysis: Analysis, out: Path) -> Path:
    """Write the JSON and the page; gives the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    document = _plain(asdict(analysis))
    write_text(out / JSON_FILE, json.dumps(document, indent=1, allow_nan=False) + "\n")
    sections = [_verdict(analysis), _ratio(analysis), _arms(analysis), _lifts(analysis)]
    sections += [_sequence(analysis, comparison) for comparison in analysis.comparisons if comparison.looks]
    sections.append(_calibration(analysis))
    write_text(out / REPORT_FILE, page(f"experiment {analysis.experiment}", sections))
    return out / REPORT_FILE


def sentences(analysis: Analysis) -> list[str]:
    """What the experiment says, in words."""
    ratio = analysis.sample_ratio
    lines = []
    if ratio.mismatch:
        lines.append(
            f"Sample ratio mismatch (p = {ratio.p_value:.2g}): no lift below can be trusted until its cause "
            "is found."
        )
    else:
        lines.append(f"The sample ratio is as configured (p = {ratio.p_value:.2g}).")
    if analysis.crossed_units:
        lines.append(f"{analysis.crossed_units:,} units were seen in several arms and are left out.")
    return lines + [_sentence(analysis, comparison) for comparison in analysis.comparisons]


def _sentence(analysis: Analysis, comparison: Comparison) -> str:
    if comparison.lift is None:
        return f"{comparison.arm}: no clicks, so no lift."
    lift = (
        f"{comparison.arm} against {analysis.control}: lift {_percent(comparison.lift)} "
        f"[{_percent(comparison.lift_low)}, {_percent(comparison.lift_high)}], p = {comparison.p_value:.2g} "
        "if the end was planned"
    )
    if not comparison.looks:
        return lift + "; too few clicks for sequential results."
    last = comparison.looks[-1]
    level = analysis.alpha / len(analysis.comparisons)
    decided = "different" if last.always_p < level else "not told apart yet"
    return lift + f"; always-valid p = {last.always_p:.2g}: {decided}."


def _verdict(analysis: Analysis) -> str:
    end = datetime.fromtimestamp(analysis.last_ms / 1000, UTC)
    items = "".join(f"<li>{line}</li>" for line in map(_escaped, sentences(analysis)))
    return f"<p class='note'>Rows until {end:%Y-%m-%d %H:%M} UTC.</p><ul>{items}</ul>"


def _ratio(analysis: Analysis) -> str:
    ratio = analysis.sample_ratio
    rows = [[arm, f"{units:,}", f"{ratio.expected[arm]:,.1f}"] for arm, units in ratio.units.items()]
    note = f"<p class='note'>Chi-square {ratio.statistic:.3f}, p = {ratio.p_value:.3g}.</p>"
    return "<h2>Sample ratio</h2>" + table(["arm", "units", "expected"], rows) + note


def _arms(analysis: Analysis) -> str:
    heads = ["arm", "units", "rows", "clicks", "CTR", "rows per unit", "design effect"]
    rows = [
        [
            arm.name,
            f"{arm.units:,}",
            f"{arm.rows:,}",
            f"{arm.clicks:,}",
            f"{arm.ctr:.5f}",
            f"{arm.rows_per_unit:.2f}",
            number(_finite(arm.design_effect)),
        ]
        for arm in analysis.arms
    ]
    return "<h2>Arms</h2>" + table(heads, rows)


def _lifts(analysis: Analysis) -> str:
    heads = ["arm", "difference", "fixed low", "fixed high", "p", "lift", "lift low", "lift high"]
    rows = [
        [
            c.arm,
            *(f"{value:+.6f}" for value in (c.difference, c.low, c.high)),
            f"{c.p_value:.3g}",
            *map(_percent, (c.lift, c.lift_low, c.lift_high)),
        ]
        for c in analysis.comparisons
    ]
    return (
        f"<h2>Lift against {_escaped(analysis.control)}</h2>"
        + table(heads, rows)
        + "<p class='note'>Intervals are clustered by unit (delta method) and hold at the planned end only; "
        f"{len(rows)} comparison(s) share an error level of {analysis.alpha:g}.</p>"
    )


def _sequence(analysis: Analysis, comparison: Comparison) -> str:
    looks = comparison.looks
    shown = looks[-1]
    note = (
        f"Always-valid interval at the last look: [{shown.always_low:+.6f}, {shown.always_high:+.6f}], "
        f"smallest p-value so far {shown.always_p:.3g}; tuned for a lift of "
        f"{_percent(analysis.planned_lift)}. It may be read at every look."
    )
    return (
        f"<h2>Over time: {_escaped(comparison.arm)}</h2>"
        + image(_curves(comparison), f"difference of {comparison.arm} over time")
        + f"<p class='note'>{note}</p>"
    )


def _curves(comparison: Comparison) -> Figure:
    figure, (axis,) = plot(columns=1)
    times = [datetime.fromtimestamp(look.time_ms / 1000, UTC) for look in comparison.looks]
    axis.fill_between(
        times,  # type: ignore[arg-type]
        [look.always_low for look in comparison.looks],
        [look.always_high for look in comparison.looks],
        alpha=0.2,
        label="always valid",
    )
    axis.fill_between(
        times,  # type: ignore[arg-type]
        [look.low for look in comparison.looks],
        [look.high for look in comparison.looks],
        alpha=0.3,
        label="fixed horizon",
    )
    axis.plot(times, [look.difference for look in comparison.looks], "o-", color="C0", markersize=3)  # type: ignore[arg-type]
    axis.axhline(0, color="grey", linewidth=1)
    locator = AutoDateLocator()  # type: ignore[no-untyped-call]
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    axis.set(ylabel="difference of click rates")
    axis.legend()
    return figure


def _calibration(analysis: Analysis) -> str:
    heads = [
        "arm",
        "domain",
        "rows",
        "clicks",
        "mean score",
        "CTR",
        "score / click",
        "low",
        "high",
        "ECE",
    ]
    rows = [
        [
            group.arm,
            group.domain,
            f"{group.rows:,}",
            f"{group.clicks:,}",
            f"{group.mean_score:.5f}",
            f"{group.ctr:.5f}",
            *map(number, (group.ratio, group.ratio_low, group.ratio_high)),
            f"{group.ece:.5f}",
        ]
        for group in analysis.calibration[:SHOWN_GROUPS]
    ]
    left = len(analysis.calibration) - len(rows)
    note = f"<p class='note'>{left} more groups are in {JSON_FILE}.</p>" if left else ""
    return "<h2>Calibration</h2>" + table(heads, rows) + note


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.2f} %"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _escaped(text: str) -> str:
    return html.escape(text)


def _plain(value: Any) -> Any:
    """Values as JSON takes them: nan and infinities become null."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return _finite(value) if isinstance(value, float) else value
