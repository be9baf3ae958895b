"""Dashboards are what their descriptions give, and ask for nothing that the service does not tell."""

import json
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from service.telemetry.metric_table import TABLE
from tests.support.promql import names, problems

GRAFANA = Path(__file__).parents[3] / "docker" / "grafana"
RENDER = runpy.run_path(str(GRAFANA / "render.py"))
DASHBOARDS = {file.stem: json.loads(file.read_text()) for file in (GRAFANA / "dashboards").glob("*.json")}
QUERIES = [
    (f"{name}: {panel['title']}", target["expr"])
    for name, board in DASHBOARDS.items()
    for panel in board["panels"]
    for target in panel.get("targets", [])
]


def test_what_is_committed_is_what_the_descriptions_give():
    there = {file: file.read_text() for file in (GRAFANA / "dashboards").glob("*.json")}
    assert RENDER["rendered"]() == there


def test_the_dashboards_that_are_promised_are_there():
    expected = {"traffic", "latency", "arms", "features", "calibration", "saturation", "models"}
    assert set(DASHBOARDS) == expected
    assert len({board["uid"] for board in DASHBOARDS.values()}) == len(DASHBOARDS)


@pytest.mark.parametrize(("panel", "expr"), QUERIES)
def test_every_query_speaks_of_metrics_and_labels_of_the_table(panel, expr):
    assert problems(expr) == []
    assert names(expr)


@pytest.mark.parametrize(("panel", "expr"), QUERIES)
def test_every_query_follows_the_choices_above_the_dashboard(panel, expr):
    for selector in re.findall(r"ctr_[a-z_]+(\{[^}]*\})?", expr):
        assert 'job=~"$job", instance=~"$instance"' in selector
    chosen = set(re.findall(r'"\$([a-z]+)"', expr))
    board = DASHBOARDS[panel.partition(":")[0]]
    assert chosen <= {variable["name"] for variable in board["templating"]["list"]}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (apt-get install prometheus)")
def test_every_query_is_one_that_prometheus_understands(tmp_path):
    """As rules that record it, which promtool reads."""
    filled = [re.sub(r"\$[a-z]+\b", ".*", expr.replace("$__rate_interval", "1m")) for _, expr in QUERIES]
    rules = [{"record": f"query_{number}", "expr": expr} for number, expr in enumerate(filled)]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    command = ["promtool", "check", "rules", tmp_path / "rules.yaml"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert f"{len(QUERIES)} rules found" in done.stdout, done.stdout + done.stderr


def test_objectives_on_dashboards_are_those_of_the_file():
    slo = yaml.safe_load((GRAFANA.parents[1] / "loadtests" / "slo.yaml").read_text())
    limit_s = slo["latency_ms"]["all"]["p99"] / 1000
    drawn = {
        step["value"]
        for name in ("latency", "arms")
        for panel in DASHBOARDS[name]["panels"]
        if panel["title"].startswith(("Time of requests", "Slowest"))
        for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"][1:]
    }
    assert drawn == {limit_s}
    within = [expr for panel, expr in QUERIES if panel == "latency: Requests within the objective"]
    assert all(f'le="{limit_s}"' in expr for expr in within)
    reds = {
        panel["title"]: panel["fieldConfig"]["defaults"]["thresholds"]["steps"][-1]["value"]
        for panel in DASHBOARDS["traffic"]["panels"]
        if panel["type"] == "stat"
    }
    assert reds["Slowest of a hundred"] == limit_s
    assert reds["Failed"] == pytest.approx(1 - slo["availability"]["min_ratio"])
    assert reds["Refused for want of room"] == slo["shed"]["max_ratio"]


def test_every_metric_is_shown_somewhere():
    """`ctr_deadline_seconds` and the like too: what nobody shows, nobody looks at."""
    shown = set().union(*(names(expr) for _, expr in QUERIES))
    assert shown == {row.name for row in TABLE}


@pytest.mark.parametrize("name", sorted(DASHBOARDS))
def test_panels_say_what_they_show_and_do_not_overlap(name):
    taken = set()
    ids = [panel["id"] for panel in DASHBOARDS[name]["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in DASHBOARDS[name]["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not taken & cells, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["description"].endswith(".")
            assert panel["fieldConfig"]["defaults"]["unit"]


def test_choices_ask_for_labels_that_metrics_have():
    for name, (metric, label) in RENDER["LABELS"].items():
        expr = f"count by ({label}) (rate({metric}[1m]))" if "_total" in metric else metric
        assert problems(expr) == []
        assert name == label


def test_a_metric_is_narrowed_whether_it_has_a_selector_or_not():
    expr = 'sum by (arm) (rate(ctr_a_total{arm="x"}[5m])) / ctr_b'
    chosen = 'job=~"$job", instance=~"$instance"'
    assert RENDER["narrowed"](expr) == (
        f'sum by (arm) (rate(ctr_a_total{{arm="x", {chosen}}}[5m])) / ctr_b{{{chosen}}}'
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "red"}, "panel 'P' has the key 'colour'; panels have .*'description'"),
        ({"description": ""}, "panel 'P' lacks 'description'"),
        ({"kind": "pie"}, "panel 'P' is of kind 'pie', which is none of .*'stat'"),
    ],
)
def test_a_description_with_a_mistake_is_refused(change, message):
    described = {"title": "P", "description": "D.", "queries": [{"expr": "ctr_b"}]} | change
    with pytest.raises(RENDER["DescriptionError"], match=message):
        RENDER["panel"](described, 1, {"x": 0, "y": 0, "w": 1, "h": 1})


def test_the_check_names_what_differs(tmp_path):
    """The command itself, on a copy with one description changed."""
    for folder in ("panels", "dashboards"):
        (tmp_path / folder).mkdir()
    (tmp_path / "render.py").write_text((GRAFANA / "render.py").read_text())
    described = yaml.safe_load((GRAFANA / "panels" / "models.yaml").read_text())
    (tmp_path / "panels" / "models.yaml").write_text(yaml.safe_dump(described | {"title": "Other"}))
    (tmp_path / "dashboards" / "models.json").write_text(json.dumps(DASHBOARDS["models"], indent=1) + "\n")
    copied = runpy.run_path(str(tmp_path / "render.py"))
    (file,) = copied["rendered"]()
    assert file.name == "models.json"
    assert json.loads(copied["rendered"]()[file])["title"] == "Scoring: Other"
