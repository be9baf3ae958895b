"""Dashboards from their descriptions.

    python docker/grafana/render.py [--check]

Reads `panels/*.yaml` beside this file and writes `dashboards/*.json`, which Grafana's provisioning takes as
they are; `--check` only compares, and exits with 1 where they differ. A description says what is asked and
why; places, colours, data sources and the selection of job and instance are added here, the same everywhere.
Invariant: every selector of a metric of ours is narrowed by `$job` and `$instance`.

A panel has `title`, `description` and `queries` (`expr`, `legend`), and may have `kind` (timeseries, stat,
table or heatmap), `unit` (as Grafana calls it), `width` (of 24), `stacked`, `thresholds` (colour by value)
and `quiet`: with nothing to tell of until something happens, such as an error; Grafana then says so.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
PANELS, DASHBOARDS = HERE / "panels", HERE / "dashboards"
WIDTH, HEIGHT, STAT_HEIGHT = 24, 8, 4
QUIET = "nothing so far"
SELECTION = 'job=~"$job", instance=~"$instance"'
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
LABELS = {
    "job": ("ctr_ready_workers", "job"),
    "instance": ('ctr_ready_workers{job=~"$job"}', "instance"),
    "arm": ('ctr_score_requests_total{job=~"$job"}', "arm"),
    "domain": ('ctr_domain_candidates_total{job=~"$job"}', "domain"),
}
PANEL_KEYS = {"title", "description", "queries", "kind", "unit", "width", "stacked", "thresholds", "quiet"}
KINDS = ("timeseries", "stat", "table", "heatmap")
_SELECTOR = re.compile(r"\b(ctr_[a-z_]+)(?:\{([^}]*)\})?")


class DescriptionError(ValueError):
    """A description that cannot be rendered."""


def narrowed(expr: str) -> str:
    """An expression whose metrics are those of the chosen jobs and instances."""

    def narrow(found: re.Match[str]) -> str:
        inside = ", ".join(part for part in (found[2], SELECTION) if part)
        return f"{found[1]}{{{inside}}}"

    return _SELECTOR.sub(narrow, expr)


def variable(name: str) -> dict[str, Any]:
    """A choice above the dashboard, of all values of a label; any number of them at once."""
    metric, label = LABELS[name]
    query = f"label_values({metric}, {label})"
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": SOURCE,
        "definition": query,
        "query": {"query": query, "refId": "values"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def source_variable() -> dict[str, Any]:
    """The choice of the Prometheus that is asked."""
    return {
        "name": "datasource",
        "label": "Source",
        "type": "datasource",
        "query": "prometheus",
        "current": {},
    }


def steps(thresholds: dict[Any, str]) -> dict[str, Any]:
    """Colours from given values on; `base` is the one below them, green unless given."""
    above = sorted((float(value), colour) for value, colour in thresholds.items() if value != "base")
    base = {"color": thresholds.get("base", "green"), "value": None}
    return {"mode": "absolute", "steps": [base, *({"color": c, "value": v} for v, c in above)]}


def target(query: dict[str, str], place: int, kind: str) -> dict[str, Any]:
    """One query of a panel."""
    made: dict[str, Any] = {
        "refId": chr(ord("A") + place),
        "datasource": SOURCE,
        "editorMode": "code",
        "expr": narrowed(query["expr"]),
        "legendFormat": query.get("legend", "__auto"),
        "range": kind in ("timeseries", "heatmap"),
        "instant": kind in ("stat", "table"),
    }
    if kind in ("table", "heatmap"):
        made["format"] = kind
    return made


def options(kind: str) -> dict[str, Any]:
    """How a panel of a kind shows its values."""
    return {
        "timeseries": {
            "legend": {"displayMode": "table", "placement": "right", "calcs": ["lastNotNull", "max"]},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "stat": {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "none"},
        "table": {"showHeader": True},
        "heatmap": {
            "calculate": False,
            "cellGap": 1,
            "color": {"mode": "scheme", "scheme": "Blues", "steps": 64},
            "yAxis": {"unit": "s"},
        },
    }[kind]


def panel(described: dict[str, Any], number: int, place: dict[str, int]) -> dict[str, Any]:
    """One panel.

    Raises:
        DescriptionError: A key or kind is none that panels have, or one is missing.
    """
    title = described.get("title", f"number {number}")
    if odd := sorted(set(described) - PANEL_KEYS):
        raise DescriptionError(f"panel '{title}' has the key '{odd[0]}'; panels have {sorted(PANEL_KEYS)}")
    if lacking := [key for key in ("title", "description", "queries") if not described.get(key)]:
        raise DescriptionError(f"panel '{title}' lacks '{lacking[0]}'")
    kind = described.get("kind", "timeseries")
    if kind not in KINDS:
        raise DescriptionError(f"panel '{title}' is of kind '{kind}', which is none of {list(KINDS)}")
    thresholds = described.get("thresholds", {})
    custom: dict[str, Any] = {}
    if kind == "timeseries":
        stacking = "normal" if described.get("stacked") else "none"
        custom = {
            "fillOpacity": 25 if described.get("stacked") else 5,
            "showPoints": "never",
            "stacking": {"mode": stacking, "group": "A"},
            "thresholdsStyle": {"mode": "dashed" if thresholds else "off"},
        }
    defaults = {"unit": described.get("unit", "short"), "thresholds": steps(thresholds), "custom": custom}
    if described.get("quiet"):
        defaults["noValue"] = QUIET
    return {
        "id": number,
        "type": kind,
        "title": title,
        "description": described["description"],
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options(kind),
        "targets": [target(query, place, kind) for place, query in enumerate(described["queries"])],
    }


def panels(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of panels, laid out from left to right and from top to bottom."""
    made: list[dict[str, Any]] = []
    top = 0
    for row in rows:
        heading = {"type": "row", "title": row["title"], "panels": []}
        heading["gridPos"] = {"x": 0, "y": top, "w": WIDTH, "h": 1}
        made.append({"id": len(made) + 1, **heading})
        top, left, height = top + 1, 0, 0
        for described in row["panels"]:
            width = described.get("width", WIDTH // 2)
            if left + width > WIDTH:
                top, left, height = top + height, 0, 0
            size = STAT_HEIGHT if described.get("kind") == "stat" else HEIGHT
            place = {"x": left, "y": top, "w": width, "h": size}
            made.append(panel(described, len(made) + 1, place))
            left, height = left + width, max(height, size)
        top += height
    return made


def dashboard(described: dict[str, Any], name: str) -> dict[str, Any]:
    """A whole dashboard of a description."""
    choices = ["job", "instance", *described["variables"]]
    return {
        "uid": f"ctr-{name}",
        "title": f"Scoring: {described['title']}",
        "description": described["description"],
        "tags": ["ctr"],
        "timezone": "browser",
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "links": [
            {"type": "dashboards", "tags": ["ctr"], "title": "Scoring", "asDropdown": True, "keepTime": True}
        ],
        "templating": {"list": [source_variable(), *map(variable, choices)]},
        "annotations": {"list": []},
        "panels": panels(described["rows"]),
    }


def rendered() -> dict[Path, str]:
    """Every dashboard's file and text."""
    return {
        DASHBOARDS / f"{file.stem}.json": json.dumps(
            dashboard(yaml.safe_load(file.read_text()), file.stem), indent=1
        )
        + "\n"
        for file in sorted(PANELS.glob("*.yaml"))
    }


def main() -> int:
    """Write or compare; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, exit with 1 on a difference")
    check = parser.parse_args().check
    wanted = rendered()
    there = {file: file.read_text() for file in DASHBOARDS.glob("*.json")}
    odd = sorted(file.name for file in wanted.keys() | there.keys() if wanted.get(file) != there.get(file))
    if check:
        for name in odd:
            sys.stdout.write(f"{name} is not what its description gives; run docker/grafana/render.py\n")
        return 1 if odd else 0
    for file in there.keys() - wanted.keys():
        file.unlink()
    for file, text in wanted.items():
        file.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
