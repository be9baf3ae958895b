"""The rules of docker/prometheus/rules as one PrometheusRule for the Prometheus operator.

    python -m k8s.prometheus_rule        # after every change of the rules

Reads docker/prometheus/rules/*.yaml; writes k8s/components/monitoring/prometheusrule.yaml. Invariant: the
rules are written by hand in one place only, and a test holds the two equal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

K8S = Path(__file__).parent
RULES = K8S.parent / "docker" / "prometheus" / "rules"
TARGET = K8S / "components" / "monitoring" / "prometheusrule.yaml"
HEAD = "# Made by `python -m k8s.prometheus_rule` from docker/prometheus/rules: change it there.\n"


class _Dumper(yaml.SafeDumper):
    """Keeps expressions of several lines as they were written."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def groups() -> list[dict[str, Any]]:
    """All groups of rules, by file name and then in the file's order."""
    files = sorted(RULES.glob("*.yaml"))
    return [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]


def prometheus_rule() -> dict[str, Any]:
    """The object that the operator reads."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "ctr-serve", "labels": {"app.kubernetes.io/name": "ctr-serve"}},
        "spec": {"groups": groups()},
    }


def rendered() -> str:
    """The file's text."""
    return HEAD + yaml.dump(prometheus_rule(), Dumper=_Dumper, sort_keys=False, width=110)


if __name__ == "__main__":
    TARGET.write_text(rendered())
