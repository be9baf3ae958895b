"""Alert rules: their metrics, their thresholds, their runbook and their own unit tests."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from service.telemetry.metric_table import SECONDS
from tests.support.promql import problems

ROOT = Path(__file__).parents[3]
PROMETHEUS = ROOT / "docker" / "prometheus"
RULE_FILES = sorted((PROMETHEUS / "rules").glob("*.yaml"))
TEST_FILES = sorted((PROMETHEUS / "tests").glob("*.yaml"))
RULES = [
    rule
    for file in RULE_FILES
    for group in yaml.safe_load(file.read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
SLO = yaml.safe_load((ROOT / "loadtests" / "slo.yaml").read_text())
TESTS = [test for file in TEST_FILES for test in yaml.safe_load(file.read_text())["tests"]]

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool (apt-get install prometheus)"
)


def promtool(*arguments):
    return subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True)


def without_recorded(expr):
    """An expression with what other rules record left out, after a look at whether any does."""
    used = set(re.findall(r"\bctr:[a-z0-9_:]+", expr))
    assert used <= RECORDED
    return re.sub(r"\bctr:[a-z0-9_:]+", "vector", expr)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_every_rule_speaks_of_metrics_and_labels_of_the_table(rule):
    assert problems(without_recorded(rule["expr"])) == []


@pytest.mark.parametrize("name", sorted(ALERTS))
def test_every_alert_says_how_bad_it_is_and_what_to_do(name):
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
    path, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    headings = re.findall(r"^## (\w+)$", (ROOT / path).read_text(), re.MULTILINE)
    assert (name, name.lower()) in [(heading, anchor) for heading in headings]


def test_the_runbook_has_no_section_too_many_and_each_says_the_three_things():
    _, *sections = re.split(r"^## ", (PROMETHEUS / "RUNBOOK.md").read_text(), flags=re.MULTILINE)
    assert {section.split("\n", 1)[0] for section in sections} == set(ALERTS)
    for section in sections:
        assert all(word in section.lower() for word in ("**means**", "**look**", "**do**")), section


@pytest.mark.parametrize("name", sorted(ALERTS))
def test_every_alert_is_shown_to_fire_and_not_to_fire(name):
    asked = [one for test in TESTS for one in test.get("alert_rule_test", []) if one["alertname"] == name]
    assert {bool(one["exp_alerts"]) for one in asked} == {True, False}


def error_budget():
    return 1 - SLO["availability"]["min_ratio"]


@pytest.mark.parametrize(
    ("name", "burn", "short", "long"),
    [
        ("CtrAvailabilityBurnsFast", 14.4, "5m", "1h"),
        ("CtrAvailabilityBurns", 6, "30m", "6h"),
        ("CtrAvailabilityBurnsSlowly", 1, "6h", "3d"),
    ],
)
def test_burn_rates_are_those_of_the_objective(name, burn, short, long):
    """2 %, 5 % and 10 % of a 30-day budget within the long window: burn = share * 30 d / window."""
    hours = {"1h": 1, "6h": 6, "3d": 72}[long]
    share = {"1h": 0.02, "6h": 0.05, "3d": 0.1}[long]
    assert burn == pytest.approx(share * 24 * SLO["window_days"] / hours)
    found = re.findall(r"ratio_rate(\w+) > ([\d.]+) \* ([\d.]+)", ALERTS[name]["expr"])
    assert [window for window, _, _ in found] == [short, long]
    for _, factor, budget in found:
        assert float(factor) == burn
        assert float(budget) == pytest.approx(error_budget())


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("CtrLatencyHigh", SLO["latency_ms"]["all"]["p99"] / 1000),
        ("CtrSheds", SLO["shed"]["max_ratio"]),
        ("CtrDegradedReplies", SLO["degraded"]["max_ratio"]),
    ],
)
def test_thresholds_are_those_of_the_objectives(name, limit):
    (found,) = re.findall(r"> ([\d.]+)\s*$", ALERTS[name]["expr"])
    assert float(found) == limit


def test_the_latency_objective_is_a_bound_of_a_bucket():
    """Between bounds a percentile is a guess."""
    assert SLO["latency_ms"]["all"]["p99"] / 1000 in SECONDS


@needs_promtool
def test_promtool_finds_the_rules_well_formed():
    done = promtool("check", "rules", *RULE_FILES)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_runs_the_unit_tests():
    done = promtool("test", "rules", *TEST_FILES)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_notices_a_rule_that_no_longer_fires(tmp_path):
    """The unit tests are not empty: with another threshold they fail."""
    for folder in ("rules", "tests"):
        shutil.copytree(PROMETHEUS / folder, tmp_path / folder)
    rules = tmp_path / "rules" / "alerts.yaml"
    rules.write_text(rules.read_text().replace("} > 3\n", "} > 3000\n").replace(") > 3\n", ") > 3000\n"))
    done = promtool("test", "rules", tmp_path / "tests" / "content.yaml")
    assert done.returncode != 0
    assert "CtrReloadsFail" in done.stdout + done.stderr
