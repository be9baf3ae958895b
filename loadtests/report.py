"""A load run as one page: objectives, latencies and rates over time, by profile, domain and arm.

    python -m loadtests.report RUN [--out RUN/report.html] [--slo loadtests/slo.yaml]

Reads a folder that `loadtests.record` wrote. The page is self-contained: pictures are inside it. Invariant:
latencies are those of good replies, from the intended start of each request.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from loadtests.record import Call, Run, RunError
from loadtests.slo import OK, SLO_FILE, SloError, Verdict, check, percentile, read_objectives

PERCENTS = (50, 90, 99)
MAX_BINS = 120
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #223; margin: 2rem auto; padding: 0 1rem }
body { max-width: 66rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } th { text-align: left }
th, td { padding: .15rem .9rem .15rem 0; border-bottom: 1px solid #dde } td.kept { color: #176b3a }
td.broken { color: #b3261e; font-weight: 600 } img { width: 100% } pre { background: #f4f5f9; padding: .8rem }
"""


def bins(run: Run) -> NDArray[np.float64]:
    """Edges of equal spans of time of at least a second, (n + 1,) float64 seconds."""
    last = max((call.intended_s for call in run.calls), default=0.0)
    seconds = max(run.seconds, last, 1.0)
    return np.linspace(0.0, seconds, int(min(max(seconds, 1), MAX_BINS)) + 1)


def over_time(run: Run) -> str:
    """Pictures of latencies and of rates by time of the intended start."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    above, below = (figure.add_subplot(2, 1, place) for place in (1, 2))
    calls = [call for call in run.calls if call.kind == "score"]
    edges = bins(run)
    middles = (edges[:-1] + edges[1:]) / 2
    _draw_latencies(above, edges, middles, [call for call in calls if call.status == OK])
    _draw_rates(below, edges, middles, calls)
    above.set_ylabel("latency, ms")
    if any(call.status == OK for call in calls):
        above.set_yscale("log")
    below.set_ylabel("requests per second")
    below.set_xlabel("intended start, s since the run began")
    for axes in (above, below):
        axes.set_xlim(edges[0], edges[-1])
        axes.grid(alpha=0.25)
        axes.legend(loc="upper left", fontsize=8)
    return picture(figure, "Latency and rate over time")


def _draw_latencies(
    axes: Axes, edges: NDArray[np.float64], middles: NDArray[np.float64], good: Sequence[Call]
) -> None:
    places = np.digitize([call.intended_s for call in good], edges) - 1
    whole = np.array([call.latency_ms for call in good], np.float64)
    sent = np.array([1000 * ((c.done_s or 0.0) - (c.sent_s or 0.0)) for c in good], np.float64)
    for percent in PERCENTS:
        axes.plot(middles, _by_bin(whole, places, len(middles), percent), label=f"p{percent}")
    waits = _by_bin(sent, places, len(middles), PERCENTS[-1])
    axes.plot(middles, waits, "--", color="grey", label=f"p{PERCENTS[-1]} since sending")


def _by_bin(values: NDArray[np.float64], places: NDArray[np.intp], count: int, percent: float) -> list[float]:
    """A percentile of each span of time; NaN where it has no reply."""
    found = (percentile(values[places == place].tolist(), percent) for place in range(count))
    return [np.nan if value is None else value for value in found]


def _draw_rates(
    axes: Axes, edges: NDArray[np.float64], middles: NDArray[np.float64], calls: Sequence[Call]
) -> None:
    width = edges[1] - edges[0]
    starts = np.histogram([call.intended_s for call in calls], edges)[0] / width
    axes.plot(middles, starts, color="black", label="intended")
    good = [call.done_s for call in calls if call.status == OK and call.done_s is not None]
    axes.plot(middles, np.histogram(good, edges)[0] / width, label="answered 200")
    for status in sorted({call.status for call in calls} - {OK}):
        own = [call.intended_s for call in calls if call.status == status]
        name = str(status) if status else "no reply"
        axes.plot(middles, np.histogram(own, edges)[0] / width, label=name)


def distribution(run: Run) -> str:
    """Picture of the share of replies that took longer than a time, by profile."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for profile in sorted({call.profile for call in run.calls if call.kind == "score"}):
        own = [call.latency_ms for call in run.calls if call.status == OK and call.profile == profile]
        times = np.sort([ms for ms in own if ms is not None])
        axes.step(times, 1 - np.arange(len(times)) / max(len(times), 1), label=profile)
    if any(call.status == OK for call in run.calls):
        axes.set_xscale("log")
        axes.set_yscale("log")
    axes.set_xlabel("latency, ms")
    axes.set_ylabel("share that took longer")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    return picture(figure, "Share of replies that took longer than a time")


def picture(figure: Figure, text: str) -> str:
    """A figure inside the page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{data}">'


def cells(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of text."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    lines = ("".join(f"<td>{html.escape(str(value))}</td>" for value in row) for row in rows)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def verdict_table(verdicts: Sequence[Verdict]) -> str:
    """Objectives, those that are not kept marked."""
    marks = {True: ("kept", "kept"), False: ("broken", "not kept"), None: ("", "not judged")}
    lines = []
    for verdict in verdicts:
        style, word = marks[verdict.kept]
        measured = "-" if verdict.value is None else f"{verdict.value:.5g}"
        bound = f"{'at least' if verdict.better == 'more' else 'at most'} {verdict.limit:g}"
        plain = "".join(f"<td>{html.escape(text)}</td>" for text in (verdict.objective, measured, bound))
        lines.append(f'<tr>{plain}<td class="{style}">{word}</td><td>{html.escape(verdict.note)}</td></tr>')
    heads = "".join(f"<th>{name}</th>" for name in ("objective", "measured", "limit", "", ""))
    return f"<table><tr>{heads}</tr>{''.join(lines)}</table>"


def by(name: str, calls: Sequence[Call], key: Callable[[Call], str]) -> str:
    """Requests, errors and latencies by some property of calls."""
    groups: dict[str, list[Call]] = {}
    for call in calls:
        groups.setdefault(key(call), []).append(call)
    rows = []
    for value, own in sorted(groups.items()):
        good = [call for call in own if call.status == OK]
        times = [call.latency_ms for call in good if call.latency_ms is not None]
        shown = [percentile(times, percent) for percent in PERCENTS]
        latencies = ["-" if ms is None else f"{ms:.2f}" for ms in shown]
        candidates = sum(call.num_items for call in own) / len(own)
        degraded = sum(call.degraded for call in good)
        rows.append((value, len(own), f"{candidates:.1f}", len(own) - len(good), degraded, *latencies))
    heads = (name, "requests", "candidates each", "not 200", "degraded", *(f"p{p} ms" for p in PERCENTS))
    return cells(heads, rows)


def arm_of(call: Call) -> str:
    """As metrics name arms."""
    return "none" if call.arm is None else f"{call.experiment}/{call.arm}"


def page(run: Run, verdicts: Sequence[Verdict]) -> str:
    """The whole page."""
    scored = [call for call in run.calls if call.kind == "score"]
    fed_back = [call for call in run.calls if call.kind == "feedback"]
    loops = {"open": "starts were planned", "closed": "users waited for their replies"}
    statuses = Counter(call.status for call in scored)
    told = ", ".join(f"{status or 'no reply'}: {count}" for status, count in sorted(statuses.items()))
    about = (
        f"Begun {run.begun_at}, for {run.seconds:g} s; {loops[run.loop]}. {len(scored)} requests to /score "
        f"({told}), {len(fed_back)} to /feedback."
    )
    title = html.escape(f"Load run: {run.title}")
    plan = html.escape(yaml.safe_dump(run.plan, sort_keys=False))
    sections = (
        f"<h1>{title}</h1><p>{html.escape(about)}</p>",
        f"<h2>Objectives</h2>{verdict_table(verdicts)}",
        f"<h2>Over time</h2>{over_time(run)}",
        f"<h2>By profile</h2>{by('profile', scored, lambda call: call.profile)}{distribution(run)}",
        f"<h2>By domain</h2>{by('domain', scored, lambda call: call.domain)}",
        f"<h2>By arm</h2>{by('arm', scored, arm_of)}",
        f"<h2>Plan</h2><pre>{plan}</pre>",
    )
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(sections)}</body></html>\n'


def write_report(folder: Path, out: Path, slo: Path = SLO_FILE) -> list[Verdict]:
    """Judge a run and write its page; returns the verdicts.

    Raises:
        RunError: The folder holds no run.
        SloError: The objectives cannot be read.
    """
    run, verdicts = check(folder, read_objectives(slo))
    out.write_text(page(run, verdicts))
    return verdicts


def main() -> int:
    """Write the page; returns the exit status, which judges nothing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a load run")
    parser.add_argument("--out", type=Path, help="page to write")
    parser.add_argument("--slo", type=Path, default=SLO_FILE, help="objectives")
    chosen = parser.parse_args()
    out = chosen.out or chosen.run / "report.html"
    try:
        write_report(chosen.run, out, chosen.slo)
    except (RunError, SloError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(f"{out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
