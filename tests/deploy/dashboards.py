"""Every query of every dashboard, as Grafana would send it with all jobs, instances, arms and domains chosen.

Reads docker/grafana/dashboards/*.json. A panel that has a text for "no value" is quiet: it tells of things
that may not happen, such as errors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.deploy.engine import ROOT

FOLDER = ROOT / "docker" / "grafana" / "dashboards"
BUILT_IN = {"__rate_interval": "1m", "__interval": "15s", "__range": "5m"}
_VARIABLE = re.compile(r"\$\{?(\w+)(?::\w+)?\}?")


@dataclass(frozen=True)
class Query:
    """One query.

    Attributes:
        where: Dashboard and panel.
        expr: PromQL without variables.
        quiet: Whether it may have nothing to tell.
    """

    where: str
    expr: str
    quiet: bool


def panels(described: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All panels, those inside rows too."""
    for panel in described.get("panels", []):
        yield panel
        yield from panels(panel)


def filled(expr: str, values: dict[str, str]) -> str:
    """An expression with its variables replaced.

    Raises:
        KeyError: A variable that the dashboard does not have.
    """
    return _VARIABLE.sub(lambda found: values[found[1]], expr)


def queries_of(path: Path) -> list[Query]:
    """All queries of one dashboard."""
    dashboard = json.loads(path.read_text())
    values = dict(BUILT_IN)
    for variable in dashboard["templating"]["list"]:
        values[variable["name"]] = variable.get("allValue") or ".*"
    return [
        Query(
            where=f"{dashboard['title']} / {panel['title']}",
            expr=filled(target["expr"], values),
            quiet="noValue" in panel.get("fieldConfig", {}).get("defaults", {}),
        )
        for panel in panels(dashboard)
        for target in panel.get("targets", [])
    ]


def all_queries() -> list[Query]:
    """Those of all dashboards."""
    return [query for path in sorted(FOLDER.glob("*.json")) for query in queries_of(path)]
