"""The report of a run: one self-contained HTML page.

Reads a finished run folder (`metrics.json`, `log.jsonl`, `calibration.json`, predictions, config); writes
`report.html` with its plots inside. Invariant: every figure comes from the run folder, none is computed anew
except the reliability curves, which are read off the stored predictions.
"""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from training.engine.artefacts import RunFolder, load_json
from training.engine.files import write_text
from training.engine.platt import sigmoid
from training.metrics import HEADLINE, reliability_curve
from training.report_clusters import CLUSTER_REPORT, write_cluster_report
from training.report_masks import mask_section
from training.report_page import image, number, page, plot, table
from training.report_routing import routing_section
from training.track import read_log


def write_report(run: Path) -> Path:
    """Write `report.html` into a finished run folder and give its path.

    Raises:
        RunError: The folder holds no finished run.
    """
    folder = RunFolder(run)
    folder.require_finished()
    metrics = load_json(folder.metrics)
    events = read_log(folder.log)
    of_parts = "clusters" in metrics  # a model per cluster: curves and calibrators are in the parts' reports
    sections = [
        _summary(metrics),
        _cluster_note(metrics),
        _part_table(metrics["clusters"])
        if of_parts
        else "<h2>Learning curves</h2>" + image(_learning_curves(events), "learning curves"),
        "<h2>Reliability on test rows</h2>" + image(_reliability(folder), "reliability"),
        "" if of_parts else _calibration_note(load_json(folder.calibration)),
        "<h2>Domains, test rows</h2>" + image(_domain_plot(metrics), "AUC by domain size"),
        _domain_table(metrics),
        mask_section(run, metrics),
        routing_section(metrics),
        f"<h2>Config</h2><pre>{html.escape(folder.config.read_text(encoding='utf-8'))}</pre>",
    ]
    for part in folder.parts:
        write_report(part.root)
    if "clustering" in metrics:
        write_cluster_report(folder.clusters, metrics)
    write_text(folder.report, page(metrics["name"], sections))
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
    rows = [[name, *(number(column[name]) for column in columns.values())] for name in (*HEADLINE, "rows")]
    facts = (
        f"seed {metrics['seed']}, best at epoch {metrics['best_epoch']:.2f} (step {metrics['best_step']} of "
        f"{metrics['steps']}), {metrics['seconds']:.0f} s, {metrics['rows_per_s']:,.0f} training rows/s, "
        f"weights {metrics['digests']['weights'][:12]}"
    )
    note = "The calibrator is fitted on valid, so the calibrated column of valid flatters it; judge on test."
    return table(["metric", *columns], rows) + f"<p>{facts}</p><p class='note'>{note}</p>"


def _cluster_note(metrics: Mapping[str, Any]) -> str:
    if "clustering" not in metrics:
        return ""
    made = metrics["clustering"]
    note = (
        "<p class='note'>Total AUC is over separate models, made comparable by calibration alone.</p>"
        if metrics.get("separate_models")
        else ""
    )
    return (
        f"<p>{made['num_clusters']} clusters by {html.escape(made['method'])}, version "
        f"{html.escape(made['version'])}: <a href='clusters/{CLUSTER_REPORT}'>clusters</a></p>{note}"
    )


def _part_table(parts: Sequence[Mapping[str, Any]]) -> str:
    heads = ["cluster", "domains", "trained on", "best epoch", "steps", "test rows", "domain AUC", "logloss"]
    rows = [
        [
            f"cluster {part['cluster']}",
            str(part["domains"]),
            str(part["sources"]),
            number(part["best_epoch"]),
            number(part["steps"]),
            number(part["test_rows"]),
            number(part["test_domain_auc"]),
            number(part["test_logloss"]),
        ]
        for part in parts
    ]
    return "<h2>Models</h2>" + table(heads, rows)


def _learning_curves(events: Sequence[Mapping[str, Any]]) -> Figure:
    train = [e for e in events if e["event"] == "train"]
    checks = [e for e in events if e["event"] == "evaluate"]
    figure, axes = plot(columns=2)
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
    figure, axes = plot(columns=1)
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
    figure, axes = plot(columns=1)
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
                number(domain["auc"]),
                interval,
                number(domain["logloss"]),
                number(domain["ece"]),
                number(raw["ece"]),
                number(domain["calibration_ratio"]),
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
    return table(heads, rows)


def _calibration_note(calibration: Mapping[str, Any]) -> str:
    strength = calibration["strength"]
    pull = "one line for all domains" if strength is None else f"pull of {strength:g} rows to the global line"
    line = calibration["fallback"]
    return (
        f"<p>Calibrator: {pull}; global scale {line['scale']:.3f}, bias {line['bias']:.3f}. "
        f"{len(calibration['domains'])} domains.</p>"
    )
