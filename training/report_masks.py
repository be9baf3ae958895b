"""The report of masks: who uses what, density over updates, which domains are alike, how small ones fare.

Reads `masks/masks.npz` and the model of a run folder, its metrics and, where there are clusters, their
assignment; gives one section of the run's report. Invariant: nothing is measured anew; overlap is the shared
part of the edges that two masks have (Jaccard).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from training.clustering.arrays import FloatArray, IntArray
from training.clustering.assignment import ASSIGNMENT_FILE, load_assignment
from training.data.prepared import PreparedDataset
from training.engine import artefacts
from training.engine.artefacts import load_model
from training.masks.archive import MaskRecord, load_masks
from training.models.aread import Aread
from training.models.aread_cost import AreadSizes, folded_ratio, saved_ratio, served_cost
from training.models.mask import BoolArray, PyramidMask, PyramidShape, random_mask
from training.report_page import image, number, plot, table

SMALL_DOMAINS = 15
NUM_DRAWS = 4
"""Random masks per domain that an estimate is the mean of."""
TICK_LIMIT = 60
"""Domains up to which a picture names each."""


def mask_section(run: Path, metrics: Mapping[str, Any]) -> str:
    """The section, or nothing where the run has no masks.

    Args:
        run: The run folder.
        metrics: Content of its `metrics.json`.

    Raises:
        MaskSearchError: The masks cannot be read.
    """
    if "masks" not in metrics:
        return ""
    record = load_masks(run / "masks")
    labels = _labels(run, record)
    order = np.argsort(labels, kind="stable")
    parts = [
        "<h2>Masks</h2>",
        _facts(metrics["masks"]),
        image(_over_updates(record), "density and experts over updates") if len(record.history) else "",
        image(_edge_map(record, order, labels), "edges by domain"),
        image(_overlap_map(record, order, labels), "overlap of masks"),
        _note(labels),
        "<h3>Compute that masks could save</h3>",
        _savings(run, record),
        "<h3>Small domains, test rows</h3>",
        _small_domains(record, metrics),
    ]
    return "".join(parts)


def overlap(bits: BoolArray) -> FloatArray:
    """(D, D) edges that two masks share over edges that either has, from (D, X)."""
    counts = bits.astype(np.float64)
    both = counts @ counts.T
    own = counts.sum(axis=1)
    found: FloatArray = both / np.maximum(own[:, None] + own[None, :] - both, 1.0)
    return found


def _labels(run: Path, record: MaskRecord) -> IntArray:
    """(D,) cluster of each domain, 0 for all where there are no clusters."""
    folder = run / "clusters"
    if not (folder / ASSIGNMENT_FILE).is_file():
        return np.zeros(len(record.domains), dtype=np.int64)
    assignment = load_assignment(folder)
    return np.array([assignment.cluster_of(name) for name in record.domains], dtype=np.int64)


def _facts(masks: Mapping[str, Any]) -> str:
    levels = "/".join(map(str, masks["levels"]))
    how = f"method {masks['method']}" + (f", {masks['mode']}" if masks["method"] == "search" else "")
    return (
        f"<p>Pyramid of {levels} experts, {masks['num_edges']} edges; {how}; {masks['num_updates']} updates, "
        f"{sum(masks['seconds']):.1f} s in all; the best weights were trained after update "
        f"{masks['best_update']}. Unknown domains use every edge.</p>"
    )


def _note(labels: IntArray) -> str:
    if not labels.any():
        return "<p class='note'>Domains are in the order of the schema.</p>"
    return "<p class='note'>Domains go by cluster; lines part clusters.</p>"


def _over_updates(record: MaskRecord) -> Figure:
    figure, axes = plot(columns=2)
    steps = np.arange(1, len(record.history) + 1)
    searched = record.history[:, record.searched]
    share = searched.mean(axis=2)
    axes[0].plot(steps, share.mean(axis=1), "o-", label="mean")
    axes[0].fill_between(steps, share.min(axis=1), share.max(axis=1), alpha=0.2, label="all domains")
    axes[0].set(xlabel="update", ylabel="share of edges", ylim=(0, 1))
    axes[0].legend()
    used = np.array(
        [np.mean([PyramidMask(record.shape, bits).num_used for bits in masks], axis=0) for masks in searched]
    )
    for level, experts in enumerate(record.shape.levels):
        axes[1].plot(steps, used[:, level] / experts, "o-", label=f"level {level}: of {experts}")
    axes[1].set(xlabel="update", ylabel="share of experts in use", ylim=(0, 1.05))
    axes[1].legend()
    return figure


def _edge_map(record: MaskRecord, order: IntArray, labels: IntArray) -> Figure:
    figure = Figure(figsize=(11.0, max(3.0, 0.14 * len(order) + 1.2)), layout="constrained")
    axes = figure.add_subplot(1, 1, 1)
    axes.imshow(
        record.masks[:-1][order], aspect="auto", cmap="Greys", vmin=0, vmax=1, interpolation="nearest"
    )
    for span in record.shape.spans[1:]:
        axes.axvline(span.start - 0.5, color="tab:red", lw=0.8)
    _name_rows(axes, record, order, labels)
    axes.set(xlabel="edge; red lines part levels", title="edges in use (black)")
    return figure


def _overlap_map(record: MaskRecord, order: IntArray, labels: IntArray) -> Figure:
    figure = Figure(figsize=(9.0, 8.0), layout="constrained")
    axes = figure.add_subplot(1, 1, 1)
    shown = axes.imshow(overlap(record.masks[:-1][order]), cmap="viridis", vmin=0, vmax=1)
    figure.colorbar(shown, ax=axes, shrink=0.7)
    _name_rows(axes, record, order, labels)
    for edge in np.flatnonzero(np.diff(labels[order])):
        axes.axvline(edge + 0.5, color="white", lw=0.8)
    axes.set_title("overlap of masks: shared edges over edges of either", fontsize=10)
    return figure


def _name_rows(axes: Any, record: MaskRecord, order: IntArray, labels: IntArray) -> None:
    for edge in np.flatnonzero(np.diff(labels[order])):
        axes.axhline(edge + 0.5, color="tab:orange", lw=0.8)
    if len(order) <= TICK_LIMIT:
        axes.set_yticks(range(len(order)), [record.domains[d] for d in order], fontsize=6)


def _savings(run: Path, record: MaskRecord) -> str:
    """What graphs of single domains would leave out, by the model's own sizes."""
    model = load_model(artefacts.RunFolder(run).model, PreparedDataset.open(run / "prepared").schema)
    ranker = model.ranker
    if not isinstance(ranker, Aread):
        raise TypeError(f"masks of a {type(ranker).__name__}; only Aread has masks")
    sizes = AreadSizes.of(ranker)
    shares = [saved_ratio(sizes, record.mask(d)) for d in range(len(record.domains))]
    folded = folded_ratio(ranker, model.inputs.domain_dim)
    rows = [["masks of this run", *_spread(shares)]]
    if sizes.num_base_experts and not record.shape.base_width:
        told = "random masks as dense, were base experts masked too (estimate)"
        rows.append([told, *_spread(base_mask_shares(sizes, record))])
    rows.append(["domain embedding as a constant, whatever the mask", number(folded), "", ""])
    named = sorted(zip(record.domains, shares, strict=True), key=lambda pair: -pair[1])[:TICK_LIMIT]
    return (
        f"<p>Share of the {served_cost(sizes).total:,} multiply-adds of a row that a graph of one domain "
        "does without; a graph of all domains saves none of it.</p>"
        + table(["", "mean", "smallest", "largest"], rows)
        + table(["domain", "saved by its mask"], [[name, number(share)] for name, share in named])
    )


def base_mask_shares(sizes: AreadSizes, record: MaskRecord) -> list[float]:
    """What random masks save, as dense as each domain's own, where they choose among base experts too."""
    shape = PyramidShape(sizes.shape.widths, sizes.num_base_experts)
    wider = replace(sizes, shape=shape)
    rng = np.random.default_rng(0)
    return [
        float(np.mean([saved_ratio(wider, random_mask(shape, mask.density, rng)) for _ in range(NUM_DRAWS)]))
        for mask in map(record.mask, range(len(record.domains)))
    ]


def _spread(shares: Sequence[float]) -> tuple[str, str, str]:
    return number(float(np.mean(shares))), number(min(shares)), number(max(shares))


def _small_domains(record: MaskRecord, metrics: Mapping[str, Any]) -> str:
    tested = metrics["test"]["domains"]
    told = metrics["masks"]["domains"]
    searched = {record.domains[d] for d in record.searched}
    smallest = sorted(tested.items(), key=lambda item: item[1]["rows"])[:SMALL_DOMAINS]
    rows = [
        [
            name,
            f"{domain['rows']:,}",
            f"{domain['positives']:,}",
            number(domain["auc"]),
            "" if domain["auc"] is None else f"{domain['auc_low']:.3f} to {domain['auc_high']:.3f}",
            "yes" if name in searched else "every edge",
            number(told[name]["density"]) if name in told else "-",
            "/".join(map(str, told[name]["experts"])) if name in told else "-",
        ]
        for name, domain in smallest
    ]
    heads = ["domain", "rows", "clicks", "AUC", "95 % interval", "mask found", "density", "experts"]
    return table(heads, rows)
