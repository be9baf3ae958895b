"""The report of routing: load of experts, information between expert and domain, agreement, masks of experts.

Reads the `routing` part of a run's metrics; gives one section of the run's report. Invariant: nothing is
measured anew.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from training.report_page import image, number, table

TICK_LIMIT = 60
"""Domains up to which a picture names each."""


def routing_section(metrics: Mapping[str, Any]) -> str:
    """The section, or nothing where rows do not choose among experts.

    Args:
        metrics: Content of a run's `metrics.json`.
    """
    routing = metrics.get("routing")
    if routing is None:
        return ""
    return "".join(
        [
            "<h2>Routing</h2>",
            _facts(routing),
            image(_load_map(routing), "load of experts by domain"),
            _mask_note(routing),
            _domain_table(routing),
        ]
    )


def _facts(routing: Mapping[str, Any]) -> str:
    k, E, shared = routing["top_k"], routing["num_experts"], routing["num_shared"]
    bound = min(routing["domain_entropy"], float(np.log(E)))
    loads = ", ".join(f"{share:.3f}" for share in routing["load"])
    return (
        f"<p>Each row runs {k + shared} of {E + shared} experts, {shared} of them shared. On "
        f"{routing['rows']:,} validation rows expert and domain share {routing['information']:.4f} nats "
        f"(prior {html.escape(routing['prior'])}; at most {bound:.4f}); entropy of experts "
        f"{routing['expert_entropy']:.4f}, of domains {routing['domain_entropy']:.4f}. The information loss "
        f"counted from step {routing['warmup_steps']} on.</p><p>Load of experts: {loads}.</p>"
    )


def _mask_note(routing: Mapping[str, Any]) -> str:
    cost = routing["allowed"]
    return (
        f"<p class='note'>Allowed: the fewest experts that hold {routing['routing_mass']:.0%} of a domain's "
        f"routing. With each domain held to its own, {cost['changed_ratio']:.2%} of rows lose an expert they "
        f"wanted; AUC changes by {number(cost['total_auc'])} total, {number(cost['domain_auc'])} domain, "
        "without training again. Static: one set with constant weights, looked at where rows agree.</p>"
    )


def _load_map(routing: Mapping[str, Any]) -> Figure:
    domains = {name: own for name, own in routing["domains"].items() if own["rows"]}
    figure = Figure(figsize=(9.0, max(3.0, 0.16 * len(domains) + 1.2)), layout="constrained")
    axes = figure.add_subplot(1, 1, 1)
    load = np.array([own["load"] for own in domains.values()]).reshape(-1, routing["num_experts"])
    shown = axes.imshow(load, aspect="auto", cmap="viridis", vmin=0, interpolation="nearest")
    figure.colorbar(shown, ax=axes, shrink=0.7)
    axes.set_xticks(range(routing["num_experts"]))
    if len(domains) <= TICK_LIMIT:
        axes.set_yticks(range(len(domains)), list(domains), fontsize=6)
    axes.set(xlabel="expert", title="share of a domain's choices")
    return figure


def _domain_table(routing: Mapping[str, Any]) -> str:
    heads = [
        "domain",
        "rows",
        "agreement",
        "modal set",
        "allowed",
        "rows changed",
        "AUC, masked less plain",
        "AUC, static less plain",
    ]
    domains = sorted(routing["domains"].items(), key=lambda item: -item[1]["rows"])
    rows = [
        [
            name,
            f"{own['rows']:,}",
            number(own["agreement"]),
            " ".join(map(str, own["modal"])),
            " ".join(map(str, own["allowed"])),
            number(own["changed_ratio"]),
            number(own["auc_change"]),
            number(own["static_auc_change"]),
        ]
        for name, own in domains
    ]
    return table(heads, rows)
