"""The admin API of real services, of one process and of two workers, and SIGHUP."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

from service.contract.store import ModelStore
from tests.support.bundles import build_bundle
from tests.support.process import free_port, running

TOKEN = "0123456789abcdef-admin"  # noqa: S105 - of this test
BODY = {"domain": "home", "user": {"id": "u1"}, "items": {"id": ["i1", "i2"]}}
HEADERS = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A store with two bundles; ids by alias."""
    store = tmp_path_factory.mktemp("models")
    for seed, alias in enumerate(("stable", "canary")):
        build_bundle(store, alias=alias, seed=seed)
    return store, ModelStore(store).aliases()


@pytest.fixture
def admin(pair, tmp_path):
    """Starts a service with an admin API; gives the service and its base URL."""
    store, ids = pair
    tokens = tmp_path / "tokens.txt"
    tokens.write_text(f"# admins\n{TOKEN}\n")
    (store / "aliases.json").write_text(json.dumps(ids))
    port = free_port()
    options = ("--admin-tokens-file", str(tokens), "--admin-port", str(port), "--alias-poll-s", "0")

    def start(workers):
        return running(store, tmp_path, *options, "--workers", str(workers), "--drain-pause-s", "0")

    return start, f"http://127.0.0.1:{port}/admin"


def point(store, bundle_id):
    known = ModelStore(store).aliases()
    (store / "aliases.json").write_text(json.dumps({**known, "stable": bundle_id}))


def wait_for(condition):
    until = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < until
        time.sleep(0.05)
    return found


def state(url):
    return httpx.get(url + "/state", headers=HEADERS, timeout=30).json()["workers"]


def all_ready(url):
    try:
        return all(worker.get("state") == "ready" for worker in state(url))
    except httpx.TransportError:
        return False


def check_reload(service, url, store, ids, workers):
    """Reload to `canary`, once more, and to nothing; what is told each time."""
    before = state(url)
    point(store, ids["canary"])
    done = httpx.post(url + "/reload", headers=HEADERS, timeout=60)
    again = httpx.post(url + "/reload", headers=HEADERS, timeout=60)
    after = state(url)
    point(store, "0" * 64)
    refused = httpx.post(url + "/reload", headers=HEADERS, timeout=60)
    scored = {httpx.post(service.url + "/score", json=BODY).json()["model"]["bundle"] for _ in range(6)}
    last_good = state(url)

    assert [worker["worker"] for worker in before] == list(range(workers))
    assert len({worker["pid"] for worker in before}) == workers
    assert {worker["bundle"] for worker in before} == {ids["stable"]}
    assert {worker["aliases"]["canary"] for worker in before} == {ids["canary"]}
    assert (done.status_code, done.json()["result"]) == (200, "loaded")
    assert [worker["bundle"] for worker in done.json()["workers"]] == [ids["canary"]] * workers
    assert (again.status_code, again.json()["result"]) == (200, "unchanged")
    for worker in after:
        opened = [(one["bundle_id"], one["holders"], one["leases"]) for one in worker["open"]]
        assert opened == [(ids["canary"], ["default"], 0)]
        assert worker["open_bytes"] == worker["open"][0]["num_bytes"] > 0
        assert worker["reload"] == {"state": "current"}
    problem = refused.json()
    assert (refused.status_code, problem["code"]) == (409, "reload_refused")
    assert refused.headers["content-type"] == "application/problem+json"
    assert "worker 0 serves on as before: bundle 'stable' (000000000000)" in problem["detail"]
    assert [worker["result"] for worker in problem["workers"]] == ["refused"] * workers
    assert scored == {ids["canary"]}
    assert {worker["reload"]["state"] for worker in last_good} == {"last_good"}
    assert all(worker["last_reload"]["reason"] for worker in last_good)
    assert all(worker["last_failure"] == worker["last_reload"] for worker in last_good)
    assert {worker["last_failure"] for worker in after} == {None}


def test_one_process_answers_for_itself(pair, admin):
    store, ids = pair
    start, url = admin
    with start(1) as service:
        wait_for(lambda: all_ready(url))
        check_reload(service, url, store, ids, 1)
        open_port = httpx.get(service.url + "/admin/state", headers=HEADERS)
        assert open_port.status_code == 404
        assert httpx.get(url + "/state").status_code == 401
        assert service.terminate() == 0, service.log()


def test_two_workers_are_reloaded_together_by_request_and_by_signal(pair, admin):
    store, ids = pair
    start, url = admin
    with start(2) as service:
        wait_for(lambda: all_ready(url))
        check_reload(service, url, store, ids, 2)
        point(store, ids["stable"])
        service.process.send_signal(signal.SIGHUP)
        wait_for(lambda: {worker["bundle"] for worker in state(url)} == {ids["stable"]})

        os.kill(state(url)[1]["pid"], signal.SIGKILL)
        wait_for(lambda: "worker_died" in service.log())
        problem = httpx.post(url + "/reload", headers=HEADERS, timeout=60)
        assert (problem.status_code, problem.json()["code"]) == (503, "worker_silent")
        assert "worker 1 is starting" in problem.json()["detail"]
        # A signal that a starting worker cannot handle yet waits, instead of ending it.
        wait_for(lambda: service.log().count("worker_started") == 3)
        service.process.send_signal(signal.SIGHUP)
        wait_for(lambda: all_ready(url))
        assert service.log().count("worker_died") == 1
        assert service.terminate() == 0, service.log()


def test_a_taken_address_keeps_the_service_from_starting(pair, tmp_path):
    store, _ = pair
    tokens = tmp_path / "tokens.txt"
    tokens.write_text(TOKEN)
    command = [sys.executable, "-m", "service.cli", "run", "--store", str(store), "--port", str(free_port())]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command += ["--workers", "2", "--admin-tokens-file", str(tokens), "--admin-port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"admin API: cannot listen on 127.0.0.1:{port}: " in done.stderr
