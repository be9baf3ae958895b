"""Workers share one truth; versions and domains stay bounded; a dead worker's gauges are forgotten."""

import asyncio
import time

import psutil
import pytest

from service.telemetry import worker_metrics
from service.telemetry.metrics import RETIRED_SHOWN, SLOTS_VARIABLE, Metrics, forget_worker, worker_file
from service.telemetry.worker_metrics import resident_bytes

READS = {"user_reads": (1, 0, 0, 0, 0), "item_reads": (1, 0, 0, 0, 0)}


def text_of(metrics):
    return metrics.render().decode()


def serve(metrics, version, arm="none"):
    mine = metrics.for_bundle(model="m", version=version, alias="stable", mean_scores={"home": 0.5}, arm=arm)
    mine.total.observe(0.001)
    mine.scored(domain="home", score_sum=0.5, num_items=1, **READS)


def answered(version, count, arm="none"):
    return f'ctr_score_requests_total{{arm="{arm}",outcome="ok",version="{version}"}} {float(count)}\n'


def test_whichever_worker_is_scraped_tells_of_all(tmp_path):
    first, second = (Metrics(file=tmp_path / f"worker-{number}") for number in range(2))
    serve(first, "v1")
    first.ready.set(1)
    assert answered("v1", 1) in text_of(second)
    serve(second, "v1")
    serve(second, "v2", arm="e/b")
    second.ready.set(1)
    assert sorted(text_of(first).splitlines()) == sorted(text_of(second).splitlines())
    for line in (answered("v1", 2), answered("v2", 1, "e/b"), "ctr_ready_workers 2.0\n"):
        assert line in text_of(first)
    assert 'ctr_score_duration_seconds_count{arm="e/b",stage="total",version="v2"} 1.0\n' in text_of(first)


def test_a_dead_workers_counters_stay_its_gauges_do_not_and_no_file_is_added(tmp_path):
    other = Metrics(file=tmp_path / "worker-1")
    for life in range(4):
        metrics = Metrics(file=tmp_path / "worker-0")
        assert "ctr_ready_workers 0.0\n" in text_of(other)
        serve(metrics, "v1")
        metrics.ready.set(1)
        metrics.inflight.inc()
        assert "ctr_ready_workers 1.0\n" in text_of(other)
        if life % 2:
            forget_worker(tmp_path / "worker-0")
            assert "ctr_ready_workers 0.0\n" in text_of(other)
            assert "ctr_inflight_requests 0.0\n" in text_of(other)
    assert answered("v1", 4) in text_of(other)
    assert len(list(tmp_path.iterdir())) == 4


def test_a_worker_that_never_counted_is_forgotten_without_a_trace(tmp_path):
    forget_worker(tmp_path / "worker-0")
    assert list(tmp_path.iterdir()) == []


def test_infer_counts_by_version_and_outcome():
    metrics = Metrics()
    metrics.infer.answered("v1", 0.002)
    metrics.infer.refused("v1", 422)
    metrics.infer.refused("v2", 503)
    metrics.infer.disconnected("v2")
    text = text_of(metrics)
    for outcome, version in (("ok", "v1"), ("rejected", "v1"), ("failed", "v2"), ("disconnected", "v2")):
        assert f'ctr_infer_requests_total{{outcome="{outcome}",version="{version}"}} 1.0\n' in text
    assert 'ctr_infer_duration_seconds_sum{version="v1"} 0.002\n' in text


def test_only_the_last_versions_that_were_retired_are_shown():
    metrics = Metrics()
    versions = [f"v{number}" for number in range(RETIRED_SHOWN + 3)]
    for version in versions:
        serve(metrics, version)
        metrics.retire_bundle(model="m", version=version, alias="stable")
    serve(metrics, "now")
    text = text_of(metrics)
    assert [version for version in [*versions, "now"] if answered(version, 1) in text] == [
        *versions[3:],
        "now",
    ]
    assert f'version="{versions[0]}"' not in text
    serve(metrics, versions[0])  # it serves again, and goes on counting
    assert answered(versions[0], 2) in text_of(metrics)


def test_a_version_is_retired_only_when_it_serves_under_no_alias():
    metrics = Metrics()
    for alias in ("stable", "canary"):
        metrics.for_bundle(model="m", version="v", alias=alias, mean_scores={})
    metrics.retire_bundle(model="m", version="v", alias="canary")
    for number in range(RETIRED_SHOWN + 1):
        serve(metrics, f"x{number}")
        metrics.retire_bundle(model="m", version=f"x{number}", alias="stable")
    text = text_of(metrics)
    assert 'ctr_bundle_info{alias="canary",model="m",version="v"} 0.0\n' in text
    assert 'ctr_bundle_info{alias="stable",model="m",version="v"} 1.0\n' in text


def test_a_series_goes_as_a_whole_so_that_no_rate_jumps(tmp_path):
    """One worker has dropped a version, the other has not: half a counter would look like a restart."""
    first, second = (Metrics(file=tmp_path / f"worker-{number}") for number in range(2))
    for metrics in (first, second):
        serve(metrics, "old")
    assert answered("old", 2) in text_of(second)
    first.retire_bundle(model="m", version="old", alias="stable")
    for number in range(RETIRED_SHOWN):
        serve(first, f"v{number}")
        first.retire_bundle(model="m", version=f"v{number}", alias="stable")
    assert 'version="old"' not in text_of(second)
    assert 'version="old"' not in text_of(first)


def test_the_cap_on_domains_holds_over_all_bundles():
    metrics = Metrics(max_domain_labels=3)
    for number in range(4):
        means = {f"d{number}-{domain}": 0.5 for domain in range(2)}
        mine = metrics.for_bundle(model="m", version=f"v{number}", alias="a", mean_scores=means)
        for domain in means:
            mine.scored(domain=domain, score_sum=0.5, num_items=1, **READS)
    shown = [
        line for line in text_of(metrics).splitlines() if line.startswith("ctr_domain_candidates_total{")
    ]
    assert len(shown) == 4
    assert 'ctr_domain_candidates_total{domain="other"} 5.0' in shown


def test_the_supervisor_names_a_workers_file(monkeypatch, tmp_path):
    monkeypatch.delenv(SLOTS_VARIABLE, raising=False)
    assert worker_file() is None
    monkeypatch.setenv(SLOTS_VARIABLE, str(tmp_path / "worker-3"))
    metrics = Metrics(file=worker_file())
    metrics.worker.configured(max_inflight=64, deadline_s=0.5, threads=2, cores=4)
    text = text_of(metrics)
    assert 'ctr_worker_start_time_seconds{worker="3"} ' in text
    lines = ["ctr_max_inflight_requests 64.0", "ctr_deadline_seconds 0.5", "ctr_graph_threads 2.0"]
    for line in (*lines, "ctr_cpu_quota_cores 4.0"):
        assert f"\n{line}\n" in text


def test_memory_cpu_time_and_lag_are_measured(monkeypatch):
    monkeypatch.setattr(worker_metrics, "TICK_S", 0.02)

    async def use():
        metrics = Metrics()
        metrics.worker.start()
        await asyncio.sleep(0.05)
        time.sleep(0.3)
        await asyncio.sleep(0.05)
        metrics.worker.stop()
        return text_of(metrics)

    values = dict(line.rsplit(" ", 1) for line in asyncio.run(use()).splitlines() if not line.startswith("#"))
    here = psutil.Process().memory_info().rss
    assert float(values['ctr_worker_resident_memory_bytes{worker="0"}']) == pytest.approx(here, rel=0.2)
    assert 0 < float(values['ctr_worker_cpu_seconds_total{worker="0"}']) <= time.process_time()
    slow = float(values["ctr_event_loop_lag_seconds_count"]) - float(
        values['ctr_event_loop_lag_seconds_bucket{le="0.25"}']
    )
    assert slow >= 1


def test_memory_is_unknown_where_the_system_does_not_tell(tmp_path):
    assert resident_bytes(tmp_path / "statm") == 0
