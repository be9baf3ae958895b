"""The app without logs, with a full disk, and the check of folders."""

import asyncio
import errno
import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner
from xxhash import xxh3_64_hexdigest

from service.api.expose import exposure_of
from service.app import create_app
from service.cli import app as cli
from service.contract.encode import EncodedBlock
from service.errors import StartupError
from service.events import EventLogs, check_folders
from service.features.source import StoredRows
from service.routing.assign import Assignment
from service.routing.table import Choice
from service.scoring.query import Query
from service.scoring.scorer import Scored
from service.settings import Settings
from service.telemetry.metrics import Metrics

SCORE = {"domain": "home", "items": [{"id": "i1"}]}
FEEDBACK = {"request_id": "r", "items": [{"id": "i1", "click": 1}]}


def test_the_record_names_the_arm_of_the_unit(small_loaded_with_check):
    rows = EncodedBlock(np.zeros((1, 2), np.int32), np.zeros((1, 1), np.float32))
    stored = StoredRows(rows, np.ones(1, np.bool_))
    route = next(iter(small_loaded_with_check.routes.values()))
    scored = Scored(np.array([0.25], np.float32), route, stored, stored, ("user_features",), 0.0, 0.0)
    query = Query("home", "u1", {}, None, {"hour": 7}, ["i1"], {}, by_column=False)
    choice = Choice(None, Assignment("e", "treatment", "u1", 0.5, "override"), None)
    scorer = SimpleNamespace(loaded=small_loaded_with_check)
    record = exposure_of("r", query, scored, scorer, choice)
    assert (record.experiment, record.arm, record.unit, record.reason) == ("e", "treatment", "u1", "override")
    assert (record.scores, record.degraded, record.user) == ([0.25], ["user_features"], "u1")
    assert record.features == xxh3_64_hexdigest(bytes(4 * 2 + 4) * 2)


async def post(app, path, body):
    """One request through the whole app; returns status and JSON."""
    raw, sent = json.dumps(body).encode(), []

    async def receive():
        return {"type": "http.request", "body": raw, "more_body": False}

    async def send(message):
        sent.append(message)

    head = [(b"content-type", b"application/json")]
    await app({"type": "http", "method": "POST", "path": path, "headers": head}, receive, send)
    return sent[0]["status"], json.loads(sent[1]["body"])


def with_app(settings, use):
    """Runs `use(app, logs)` within the life of the logs."""

    async def whole():
        app = create_app(settings)
        logs = app.events
        await logs.start()
        await app.serving.load()
        try:
            return await use(app, logs)
        finally:
            await logs.close()
            app.serving.close()

    return asyncio.run(whole())


def test_off_by_default(small):
    async def use(app, logs):
        assert (logs.exposures, logs.feedback, app.events.exposures) == (None, None, None)
        return await post(app, "/score", SCORE), await post(app, "/feedback", FEEDBACK)

    scored, (status, problem) = with_app(Settings(store=small.store), use)
    assert scored[0] == 200
    assert (status, problem["code"]) == (404, "not_found")
    assert "CTR_FEEDBACK_DIR names a folder" in problem["detail"]


def test_a_full_disk_still_scores_and_refuses_feedback(small, tmp_path, monkeypatch):
    def full(fd, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("service.telemetry.segments.os.write", full)
    settings = Settings(
        store=small.store, exposure_dir=tmp_path / "e", feedback_dir=tmp_path / "f", exposure_flush_s=0.01
    )

    async def use(app, logs):
        scored = await post(app, "/score", SCORE)
        await asyncio.sleep(0.2)
        return scored, await post(app, "/feedback", FEEDBACK), app.serving.metrics.render().decode()

    scored, (status, problem), text = with_app(settings, use)
    assert scored[0] == 200
    assert (status, problem["code"]) == (503, "feedback_unavailable")
    assert "No space" not in json.dumps(problem)
    assert 'ctr_exposures_total{outcome="write_failed"} 1.0' in text
    assert 'ctr_feedback_requests_total{outcome="failed"} 1.0' in text


def test_feedback_is_taken_before_a_bundle_is_there(small, tmp_path):
    async def whole():
        app = create_app(Settings(store=small.store, feedback_dir=tmp_path))
        logs = app.events
        await logs.start()
        answer = await post(app, "/feedback", FEEDBACK)
        await logs.close()
        app.serving.close()
        return answer

    assert asyncio.run(whole())[0] == 202


def test_a_disk_slower_than_the_deadline_is_504(small, tmp_path, monkeypatch):
    def slow(fd):
        time.sleep(0.3)

    monkeypatch.setattr("service.telemetry.segments.os.fdatasync", slow)
    settings = Settings(store=small.store, feedback_dir=tmp_path, deadline_ms=100)
    status, problem = with_app(settings, lambda app, logs: post(app, "/feedback", FEEDBACK))
    assert (status, problem["code"]) == (504, "deadline_exceeded")
    assert "at stage 'feedback'" in problem["detail"]


def test_a_folder_that_cannot_be_used_is_named(small, tmp_path):
    (tmp_path / "file").write_text("")
    check_folders(Settings(exposure_dir=tmp_path / "new"))
    with pytest.raises(StartupError, match=r"feedback_dir: .*file cannot be written to: File exists"):
        check_folders(Settings(feedback_dir=tmp_path / "file"))
    done = CliRunner().invoke(
        cli, ["check", "--store", str(small.store)], env={"CTR_EXPOSURE_DIR": str(tmp_path / "file")}
    )
    assert done.exit_code == 1
    assert "exposure_dir:" in done.output


def test_a_folder_lost_later_does_not_stop_the_start(tmp_path):
    (tmp_path / "file").write_text("")

    async def use():
        logs = EventLogs(Settings(feedback_dir=tmp_path / "file"), Metrics().events)
        await logs.start()
        await logs.close()

    asyncio.run(use())
