"""Start, refusal, drain and several workers: real processes and signals."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time

import httpx
import numpy as np
import pytest

from service.contract.events import decode_exposure
from tests.support.bundles import build_bundle
from tests.support.process import running

BODY = {"domain": "home", "user": {"id": "u1"}, "items": {"id": [f"i{n}" for n in range(50)]}}


def shift_one_score(golden):
    inputs, expected = golden["whole"]
    changed = expected.copy()
    changed[2] += 0.01
    golden["whole"] = inputs, changed


def test_wrong_golden_rows_never_become_ready_and_say_why(tmp_path):
    build_bundle(tmp_path / "store", change_golden=shift_one_score)
    with running(tmp_path / "store", tmp_path, "--drain-pause-s", "0") as service:
        service.wait_until("/health/live", 200)
        reason = "graph 'whole': golden row 2"
        deadline = time.monotonic() + 30
        while reason not in (answer := httpx.get(service.url + "/health/ready")).text:
            assert time.monotonic() < deadline, answer.text
            time.sleep(0.05)
        assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
        assert httpx.get(service.url + "/health/startup").status_code == 503
        scored = httpx.post(service.url + "/score", json=BODY)
        assert (scored.status_code, scored.json()["code"]) == (503, "not_ready")
        assert "bundle_refused" in service.log()
        assert reason in service.log()
        assert service.terminate() == 0


async def load_until_stopped(url, state):
    """Keep posting on kept-alive connections; a refused connection means the service has stopped."""
    async with httpx.AsyncClient(base_url=url, timeout=20) as client:
        while True:
            try:
                response = await client.post("/score", json=BODY)
            except httpx.ConnectError:
                return
            except httpx.TransportError as error:
                state["failed"].append(repr(error))
                return
            state["codes"][response.status_code] = state["codes"].get(response.status_code, 0) + 1


async def drain_under_load(service, pause_s):
    state = {"codes": {}, "failed": []}
    clients = [asyncio.create_task(load_until_stopped(service.url, state)) for _ in range(8)]
    async with asyncio.timeout(60):
        while sum(state["codes"].values()) < 50:
            await asyncio.sleep(0.05)
    before = sum(state["codes"].values())
    async with httpx.AsyncClient() as probe:  # made before the signal: on a busy machine it takes a while
        service.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(pause_s / 4)
        ready = await probe.get(service.url + "/health/ready")
        live = await probe.get(service.url + "/health/live")
    await asyncio.gather(*clients)
    return state, before, ready, live


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_under_load_fails_no_request_and_loses_no_exposure(small, tmp_path, workers):
    options = ("--drain-pause-s", "2", "--workers", str(workers))
    events = {"CTR_EXPOSURE_DIR": str(tmp_path / "exposures"), "CTR_EXPOSURE_QUEUE": "100000"}
    with running(small.store, tmp_path, *options, **events) as service:
        service.wait_until("/health/ready", 200)
        state, before, ready, live = asyncio.run(drain_under_load(service, 2.0))
        exit_code = service.process.wait(30)

        assert (exit_code, state["failed"], set(state["codes"])) == (0, [], {200}), service.log()
        assert "listener_closes_unfiltered" not in service.log()
        assert sum(state["codes"].values()) > before
        assert (ready.status_code, ready.json()["detail"]) == (503, "the process is draining")
        assert ready.headers["connection"] == "close"
        assert live.status_code == 200

    files = list((tmp_path / "exposures").iterdir())
    assert not [file.name for file in files if file.name.endswith(".open")]
    lines = [line for file in files for line in file.read_bytes().splitlines()]
    assert len({decode_exposure(line).request_id for line in lines}) == len(lines) == state["codes"][200]


def test_two_workers_share_the_load_and_the_metrics(small, tmp_path):
    with running(small.store, tmp_path, "--workers", "2", "--drain-pause-s", "0") as service:
        service.wait_until("/health/ready", 200)
        until = time.monotonic() + 30
        while "ctr_ready_workers 2.0" not in (text := httpx.get(service.url + "/metrics").text):
            assert time.monotonic() < until, text
            time.sleep(0.1)
        for _ in range(40):  # a connection each, so that the kernel spreads them
            reply = httpx.post(service.url + "/score", json=BODY)
            np.testing.assert_allclose(
                reply.json()["scores"], small.expected_stored("home", 1, list(range(50))), atol=1e-6
            )
        counts = {scrape(service.url) for _ in range(8)}
        assert counts == {40.0}

        first = worker_pids(service)[0]
        os.kill(first, signal.SIGKILL)
        until = time.monotonic() + 30
        while len(worker_pids(service)) < 3:
            assert time.monotonic() < until, service.log()
            time.sleep(0.1)
        assert "worker_died" in service.log()
        assert {scrape(service.url) for _ in range(4)} == {40.0}
        service.wait_until("/health/ready", 200)
        assert service.terminate() == 0, service.log()


def scrape(url):
    """Answered requests, as one scrape on a fresh connection tells."""
    until = time.monotonic() + 10
    while True:
        try:
            text = httpx.get(url + "/metrics").text
            break
        except httpx.TransportError:
            assert time.monotonic() < until
    lines = [line for line in text.splitlines() if 'outcome="ok"' in line and not line.startswith("#")]
    return sum(float(line.split()[-1]) for line in lines)


def worker_pids(service):
    records = [json.loads(line) for line in service.log().splitlines() if line.startswith("{")]
    return [record["pid"] for record in records if record["event"] == "worker_started"]


def test_check_command_tells_good_from_bad(small, tmp_path):
    command = [sys.executable, "-m", "service.cli", "check", "--store"]
    good = subprocess.run([*command, str(small.store)], capture_output=True, text=True)
    assert good.returncode == 0, good.stderr
    assert "cluster-1" in good.stdout
    bad = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True)
    assert bad.returncode == 1
    assert "has no bundle 'stable'" in bad.stderr


def test_unknown_variable_and_bad_option_are_refused():
    command = [sys.executable, "-m", "service.cli", "run"]
    typo = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "CTR_PROT": "1"})
    assert (typo.returncode, "unknown variables CTR_PROT" in typo.stderr) == (1, True)
    bad = subprocess.run([*command, "--workers", "0"], capture_output=True, text=True)
    assert bad.returncode == 1
    assert "setting workers: Input should be greater than or equal to 1, got 0" in bad.stderr


def test_openapi_command_prints_the_document(small):
    command = [sys.executable, "-m", "service.cli", "openapi", "--store", str(small.store)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "/score" in json.loads(done.stdout)["paths"]


def test_service_imports_without_offline_packages():
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'polars', 'pyarrow', 'sklearn', 'matplotlib'):\n"
        "    sys.modules[name] = None\n"
        "import service.cli, service.server, service.supervisor, service.scoring.golden\n"
        "import os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "1"), done.stderr


def test_missing_runtime_names_the_extras(small):
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        f"sys.argv = ['ctr-serve', 'check', '--store', {str(small.store)!r}]\n"
        "from service.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "install the extra `cpu`" in done.stderr
    assert "`gpu`" in done.stderr
