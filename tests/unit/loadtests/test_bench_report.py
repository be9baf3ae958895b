"""Figures of hand-made rounds: medians, ratios of medians, worst balance, verdicts; wrk that is not there."""

import os

import numpy as np
import pytest

from loadtests.bench_serve.bare import Bare
from loadtests.bench_serve.host import Meter, Noise, cpu_s, tree
from loadtests.bench_serve.measure import AtRate, Run
from loadtests.bench_serve.report import balance_figures, case_figures, rate_figures, verdicts
from loadtests.bench_serve.wrk import Saturated, WrkMissingError, require_wrk
from loadtests.open_loop import Seen, summary

QUIET = Noise(foreign_cores=0.1, load_average=1.0)


def run(rate, cpu_us, *, cpu=1.0, requests=1.0, failed=0):
    load = Saturated(rate=rate, num_requests=100, num_failed=failed, seconds=1.0, p50_ms=1.0, p99_ms=2.0)
    return Run(load, cpu_us, balance_cpu=cpu, balance_requests=requests, noise=QUIET)


def test_case_figures_are_ratios_of_medians():
    bare = [Bare(rate=r, cpu_us=c) for r, c in ((100, 10), (200, 20), (400, 30))]
    runs = [run(90, 60), run(120, 50), run(50, 90, failed=2)]
    figures = case_figures(bare, runs, [run(30, 200)], [run(99, 40)])
    assert (figures["of_bare"], figures["overhead_us"], figures["of_baseline"]) == (
        90 / 200,
        60 - 20,
        90 / 30,
    )
    assert (figures["num_failed"], figures["batched_rate"], figures["foreign_cores"]) == (2, 99, 0.1)


def test_rate_and_balance_figures():
    rates = [AtRate(50, p50, p99, 1, QUIET) for p50, p99 in ((1, 4), (2, 5), (3, 9))]
    assert rate_figures(rates)["p99_over_p50"] == 5 / 2
    assert rate_figures(rates)["num_other"] == 3
    worst = balance_figures([run(1, 1, cpu=1.5, requests=1.2), run(1, 1, cpu=1.1, requests=3.0)])
    assert (worst["worst_cpu"], worst["worst_requests"], worst["num_runs"]) == (1.5, 3.0, 2)


def test_verdicts_cover_what_was_measured_and_no_more():
    judged = verdicts({"small-100-ids": {"of_bare": 0.46, "overhead_us": 151.0}})
    assert [(entry["figure"], entry["passed"]) for entry in judged] == [
        ("small-100-ids.of_bare", True),
        ("small-100-ids.overhead_us", False),
    ]


def test_latencies_of_good_replies_count_from_the_intended_start():
    seen = Seen(replies=[(200, 0.2, 0.1), (200, 0.4, 0.1), (429, 9.0, 9.0)], num_broken=1, no_retry_after=1)
    figures = summary(seen, seconds=2.0)
    assert figures["statuses"] == {"200": 2, "429": 1}
    assert (figures["good_rate"], figures["latency_ms"]["p50"]) == (1.0, 300)
    assert figures["since_sent_ms"]["p50"] == 100
    assert (figures["num_broken"], figures["no_retry_after"]) == (1, 1)
    assert np.isnan(summary(Seen(), 1.0)["latency_ms"]["p99"])


def test_cpu_of_this_process_is_seen():
    meter = Meter(tree(os.getpid()))
    while sum(meter.stop(1.0)[0].values()) < 0.05:
        pass
    assert cpu_s([os.getpid()]) > 0
    assert cpu_s([2**22 + 1]) == 0  # nobody has this pid


def test_without_wrk_the_bench_says_how_to_get_it(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(WrkMissingError, match=r"wrk is not on PATH; install it .*apt-get install wrk"):
        require_wrk()
