"""The measuring tools on a real service with two workers, and the whole bench in its quick form."""

import json
import shutil
import subprocess
import sys

import pytest

from loadtests.bench_serve.measure import at_rate, saturated, scrape
from loadtests.bench_serve.servers import ServerError, service
from loadtests.bench_serve.wrk import write_script
from loadtests.overload import stored_bodies
from tests.support.bundles import build_bundle

needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="needs wrk")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return build_bundle(tmp_path_factory.mktemp("store")).store


@pytest.fixture(scope="module")
def server(store, tmp_path_factory):
    with service(store, tmp_path_factory.mktemp("log")) as started:
        yield started


@pytest.fixture(scope="module")
def script(store, tmp_path_factory):
    return write_script(tmp_path_factory.mktemp("bodies"), stored_bodies(store, 5), "/score")


def test_a_fixed_rate_is_offered_and_answered(server, script):
    seen = at_rate(server, script.parent, 50, 2.0)
    assert (seen.rate, seen.num_other) == (50, 0)
    assert 0 < seen.p50_ms <= seen.p99_ms


@needs_wrk
def test_saturation_counts_requests_and_cpu_of_every_worker(server, script):
    before = server.answered_by_worker()
    run = saturated(server, script, 1.0)
    counted = sum(server.answered_by_worker().values()) - sum(before.values())
    assert len(before) == 2
    assert run.load.num_failed == 0
    assert run.load.num_requests <= counted <= run.load.num_requests + 16  # those on their way at the end
    assert run.load.rate == pytest.approx(run.load.num_requests / run.load.seconds)
    assert 0 < run.cpu_us < 1e5
    assert run.balance_requests >= 1


def test_a_scrape_is_timed(server):
    cost = scrape(server, repeats=2)
    assert cost.took_ms > 0
    assert cost.stop_ms >= 0


def test_a_service_that_ends_is_told_with_its_log(tmp_path, store):
    variables = {"CTR_MAX_INFLIGHT": "none"}
    with (
        pytest.raises(ServerError, match=r"did not come up, its process ended; its log ends: .*max_inflight"),
        service(store, tmp_path, variables=variables),
    ):
        pass


@needs_wrk
@pytest.mark.slow
def test_the_quick_bench_runs_and_writes_its_figures(tmp_path):
    out = tmp_path / "figures.json"
    command = [sys.executable, "-m", "loadtests.bench_serve", "--quick", "--work", str(tmp_path / "work")]
    done = subprocess.run([*command, "--json", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())["figures"]
    assert figures["small-100-ids"]["num_failed"] == 0
    assert 0 < figures["small-100-ids"]["of_bare"] < 1.5
