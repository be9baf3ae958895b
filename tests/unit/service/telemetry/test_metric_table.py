"""The table keeps Prometheus' naming rules, and the page beside it says what it says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from service.settings import Settings
from service.telemetry import metric_table
from service.telemetry.metric_table import STAGES, TABLE, page

PAGE = Path(metric_table.__file__).parent / "README.md"
UNITS = ("seconds", "bytes", "ratio", "cores", "info")
THINGS = ("requests", "request", "candidates", "workers", "breakers", "threads", "difference")
IDS = {
    "user",
    "user_id",
    "item",
    "item_id",
    "id",
    "request",
    "request_id",
    "session",
    "unit",
    "trace_id",
    "pid",
}


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_a_metric_is_named_as_prometheus_asks(row):
    assert re.fullmatch(r"ctr_[a-z]+(_[a-z]+)+", row.name)
    assert (row.kind == "counter") == row.name.endswith("_total")
    assert row.kind == "counter" or row.name.endswith(tuple(f"_{end}" for end in UNITS + THINGS))
    assert not re.search(r"_(ms|us|millis|minutes|kb|mb|percent)(_|$)", row.name)
    assert row.help[0].isupper() or row.help[0].isdigit()
    assert row.help.endswith(".")
    assert not set(row.labels) & IDS
    assert not {"le", "quantile"} & set(row.labels)
    assert all(re.fullmatch(r"[a-z]+", label) for label in row.labels)
    assert len(row.labels) <= 3


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_buckets_rise_and_belong_to_histograms(row):
    assert bool(row.buckets) == (row.kind == "histogram")
    assert list(row.buckets) == sorted(set(row.buckets))
    assert row.across_workers == "sum" or row.kind == "gauge"
    if row.name.endswith("_info"):
        assert row.across_workers == "max"


def test_names_are_unique():
    assert len({row.name for row in TABLE}) == len(TABLE)


def test_the_page_shows_the_table_as_it_is():
    text = PAGE.read_text()
    begin, end = "<!-- metrics: python -m service.telemetry.metric_table -->\n", "<!-- end -->"
    shown = text[text.index(begin) + len(begin) : text.index(end)]
    assert shown == page(), "print the table with that command and put it there"


def test_the_command_that_the_page_names_prints_the_table():
    command = [sys.executable, "-m", "service.telemetry.metric_table"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=PAGE.parents[2])
    assert done.stdout == page(), done.stderr


def test_the_page_names_only_metrics_labels_stages_and_settings_that_exist():
    text = PAGE.read_text()
    suffixed = {
        f"{row.name}_{part}"
        for row in TABLE
        if row.kind == "histogram"
        for part in ("bucket", "sum", "count")
    }
    assert set(re.findall(r"\bctr_\w+", text)) <= {row.name for row in TABLE} | suffixed
    assert set(re.findall(r"\bCTR_\w+", text)) <= {f"CTR_{name}".upper() for name in Settings.model_fields}
    assert set(re.findall(r'stage="(\w+)"', text)) <= set(STAGES)
    labels = {row.name: {*row.labels, "le"} for row in TABLE}
    for name, matchers in re.findall(r"\b(ctr_\w+?)(?:_bucket)?\{([^}]*)\}", text):
        assert set(re.findall(r"(\w+)[=!]", matchers)) <= labels[name], name
