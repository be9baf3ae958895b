"""The report of a run: one self-contained HTML page.

Reads a finished run folder (`metrics.json`, `log.jsonl`, `calibration.json`, predictions, config); writes
`report.html` with its plots inside. Invariant: every figure comes from the run folder, none is computed anew
except the reliability curves, which are read off the stored predictions.
"""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training.engine.artefacts import RunFolder, load_json
from training.engine.files import write_text
from training.engine.platt import sigmoid
from training.metrics import reliability_curve
from training.track import read_log

HEADLINE = (
    "total_auc",
    "domain_auc",
    "major5_auc",
    "minor10_auc",
    "gauc",
    "logloss",
    "ece",
    "calibration_ratio",
)
"""Metrics of the summary table, in order."""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem;
  color: #1c2733; }
table { border-collapse: collapse; margin: 1rem 0; } th, td { padding: .2rem .7rem; text-align: right; }
th:first-child, td:first-child { text-align: left; } tr:nth-child(even) { background: #f2f5f8; }
thead th { border-bottom: 2px solid #8aa0b4; } img { max-width: 100%; } .note { color: #5a6b7b; }
pre { background: #f2f5f8; padding: 1rem; overflow-x: auto; }
"""


def write_report(run: Path) -> Path:
    """Write `report.html` into a finished run folder and give its path.

    Raises:
        RunError: The folder holds no finished run.
    """
    folder = RunFolder(run)
    folder.require_finished()
    metrics = load_json(folder.metrics)
    events = read_log(folder.log)
    sections = [
        f"<h1>{html.escape(metrics['name'])}</h1>",
        _summary(metrics),
        "<h2>Learning curves</h2>" + _image(_learning_curves(events), "learning curves"),
        "<h2>Reliability on test rows</h2>" + _image(_reliability(folder), "reliability"),
        _calibration_note(load_json(folder.calibration)),
        "<h2>Domains, test rows</h2>" + _image(_domain_plot(metrics), "AUC by domain size"),
        _domain_table(metrics),
        f"<h2>Config</h2><pre>{html.escape(folder.config.read_text(encoding='utf-8'))}</pre>",
    ]
    page = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        f"<title>{html.escape(metrics['name'])}</title>"
        f"<style>{_STYLE}</style></head><body>{''.join(sections)}</body></html>\n"
    )
    write_text(folder.report, page)
    return folder.report


def _summary(metrics: Mapping[str, Any]) -> str:
    columns: dict[str, Mapping[str, Any]] = {
        "test": metrics["test"],
        "test, raw": metrics["raw"]["test"],
        "valid": metrics["valid"],
        "valid, raw": metrics["raw"]["valid"],
    }
    if "oracle" in metrics:
        columns["test, truth"] = metrics["oracle"]["test"]
    rows = [[name, *(_number(column[name]) for column in columns.values())] for name in (*HEADLINE, "rows")]
    facts = (
        f"seed {metrics['seed']}, best at epoch {metrics['best_epoch']:.2f} (step {metrics['best_step']} of "
        f"{metrics['steps']}), {metrics['seconds']:.0f} s, {metrics['rows_per_s']:,.0f} training rows/s, "
        f"weights {metrics['digests']['weights'][:12]}"
    )
    note = "The calibrator is fitted on valid, so the calibrated column of valid flatters it; judge on test."
    return _table(["metric", *columns], rows) + f"<p>{facts}</p><p class='note'>{note}</p>"


def _learning_curves(events: Sequence[Mapping[str, Any]]) -> Figure:
    train = [e for e in events if e["event"] == "train"]
    checks = [e for e in events if e["event"] == "evaluate"]
    figure, axes = _figure(columns=2)
    axes[0].plot([e["epoch"] for e in train], [e["loss"] for e in train], lw=1, label="train")
    axes[0].plot([e["epoch"] for e in checks], [e["logloss"] for e in checks], "o-", label="valid")
    axes[0].set(xlabel="epochs", ylabel="logloss, nats per row")
    for name in ("total_auc", "domain_auc"):
        values = [np.nan if e[name] is None else e[name] for e in checks]
        axes[1].plot([e["epoch"] for e in checks], values, "o-", label=f"valid {name}")
    best = [e["epoch"] for e in checks if e["best"]]
    if best:
        axes[1].axvline(best[-1], color="grey", ls=":", label="best")
    axes[1].set(xlabel="epochs", ylabel="AUC")
    for axis in axes:
        axis.legend()
    return figure


def _reliability(folder: RunFolder) -> Figure:
    frame = pl.read_parquet(folder.predictions("test"), columns=["label", "logit", "score"])
    labels = frame["label"].to_numpy()
    figure, axes = _figure(columns=1)
    for name, scores in (
        ("raw", sigmoid(frame["logit"].to_numpy())),
        ("calibrated", frame["score"].to_numpy()),
    ):
        curve = reliability_curve(labels, scores)
        axes[0].plot(curve.mean_score, curve.mean_label, "o-", ms=4, label=f"{name}, ECE {curve.ece:.4f}")
    top = max(axes[0].get_xlim()[1], axes[0].get_ylim()[1])
    axes[0].plot([0, top], [0, top], color="grey", ls=":")
    axes[0].set(xlabel="predicted click rate", ylabel="observed click rate")
    axes[0].legend()
    return figure


def _domain_plot(metrics: Mapping[str, Any]) -> Figure:
    domains = [d for d in metrics["test"]["domains"].values() if d["auc"] is not None]
    figure, axes = _figure(columns=1)
    rows = np.array([d["rows"] for d in domains], dtype=float)
    auc, low, high = (
        np.array([d[key] for d in domains], dtype=float) for key in ("auc", "auc_low", "auc_high")
    )
    axes[0].errorbar(rows, auc, yerr=np.stack([auc - low, high - auc]), fmt="o", ms=4, lw=1, capsize=2)
    if len(rows):
        axes[0].set_xscale("log")
    axes[0].axhline(0.5, color="grey", ls=":")
    axes[0].set(xlabel="test rows of the domain", ylabel="AUC with 95 % interval")
    return figure


def _domain_table(metrics: Mapping[str, Any]) -> str:
    domains = sorted(metrics["test"]["domains"].items(), key=lambda item: -item[1]["rows"])
    rows = []
    for name, domain in domains:
        raw = metrics["raw"]["test"]["domains"][name]
        interval = "" if domain["auc"] is None else f"{domain['auc_low']:.3f} to {domain['auc_high']:.3f}"
        rows.append(
            [
                name,
                f"{domain['rows']:,}",
                f"{domain['positives']:,}",
                _number(domain["auc"]),
                interval,
                _number(domain["logloss"]),
                _number(domain["ece"]),
                _number(raw["ece"]),
                _number(domain["calibration_ratio"]),
            ]
        )
    heads = [
        "domain",
        "rows",
        "clicks",
        "AUC",
        "95 % interval",
        "logloss",
        "ECE",
        "ECE raw",
        "predicted/observed",
    ]
    return _table(heads, rows)


def _calibration_note(calibration: Mapping[str, Any]) -> str:
    strength = calibration["strength"]
    pull = "one line for all domains" if strength is None else f"pull of {strength:g} rows to the global line"
    line = calibration["fallback"]
    return (
        f"<p>Calibrator: {pull}; global scale {line['scale']:.3f}, bias {line['bias']:.3f}. "
        f"{len(calibration['domains'])} domains.</p>"
    )


def _figure(*, columns: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(6.0 * columns, 4.0), layout="constrained")
    axes = [figure.add_subplot(1, columns, place + 1) for place in range(columns)]
    for axis in axes:
        axis.grid(alpha=0.3)
    return figure, axes


def _image(figure: Figure, text: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f"<img alt='{text}' src='data:image/png;base64,{data}'>"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
