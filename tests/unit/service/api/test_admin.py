"""The admin API over a fleet that answers as told: tokens, routes, and what counts as success."""

import asyncio
import json

import pytest
from structlog.testing import capture_logs

from service.api.admin import AdminApp
from service.api.auth import Tokens

TOKEN = b"0123456789abcdef-admin"
AUTHORIZED = [(b"authorization", b"Bearer " + TOKEN)]


class Answers:
    """A fleet of given answers, which notes what it is asked."""

    def __init__(self, *answers):
        self.answers = [{"worker": number, **answer} for number, answer in enumerate(answers)]
        self.asked = []

    async def ask(self, command, timeout_s):
        self.asked.append(command)
        return self.answers


@pytest.fixture
def call(tmp_path):
    """One request to an app over a fleet; returns status, headers and JSON."""
    file = tmp_path / "tokens"
    file.write_bytes(TOKEN)

    def call(fleet, method, path, headers=AUTHORIZED):
        sent = []

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": method, "path": path, "headers": headers}
        asyncio.run(AdminApp(fleet, Tokens.read(file))(scope, None, send))
        return sent[0]["status"], dict(sent[0]["headers"]), json.loads(sent[1]["body"])

    return call


GOOD = {"result": "loaded", "bundle": "b", "reason": ""}
SAME = {"result": "unchanged", "bundle": "b", "reason": "", "routing": {"state": "current"}}


@pytest.mark.parametrize(
    ("answers", "result"), [((GOOD, GOOD), "loaded"), ((SAME,), "unchanged"), ((SAME, GOOD), "loaded")]
)
def test_a_reload_is_a_success_when_all_serve_what_is_there(call, answers, result):
    fleet = Answers(*answers)
    status, _, reply = call(fleet, "POST", "/admin/reload")
    assert (status, reply["result"], fleet.asked) == (200, result, ["reload"])
    assert reply["workers"] == fleet.answers


FAILURES = {
    "refused": ((GOOD, {**GOOD, "result": "refused", "reason": "why"}), 409, "reload_refused", "worker 1"),
    "routing": (
        ({**SAME, "routing": {"state": "last_good", "reason": "why"}},),
        409,
        "reload_refused",
        "worker 0 serves on as before: why",
    ),
    "silent": ((GOOD, {"error": "has ended"}), 503, "worker_silent", "worker 1 has ended"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_reload_that_one_worker_did_not_take_up_is_a_problem(call, name):
    answers, wanted, code, detail = FAILURES[name]
    status, headers, problem = call(Answers(*answers), "POST", "/admin/reload")
    assert (status, problem["status"], problem["code"]) == (wanted, wanted, code)
    assert detail in problem["detail"]
    assert headers[b"content-type"] == b"application/problem+json"
    assert len(problem["workers"]) == len(answers)


def test_state_is_what_the_workers_tell_also_where_one_does_not(call):
    fleet = Answers({"state": "ready"}, {"error": "is starting"})
    status, _, reply = call(fleet, "GET", "/admin/state")
    assert (status, reply, fleet.asked) == (200, {"workers": fleet.answers}, ["state"])


@pytest.mark.parametrize("headers", [[], [(b"authorization", b"Bearer wrong")], [(b"authorization", TOKEN)]])
@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/admin/state"), ("POST", "/admin/reload"), ("GET", "/x")]
)
def test_without_a_token_nothing_is_told_or_done(call, headers, method, path):
    fleet = Answers(GOOD)
    status, answered, problem = call(fleet, method, path, headers)
    assert (status, problem["code"], fleet.asked) == (401, "unauthorized", [])
    assert answered[b"www-authenticate"] == b"Bearer"


def test_other_paths_and_methods_are_problems(call):
    named = [*AUTHORIZED, (b"x-request-id", b"r-7")]
    status, headers, problem = call(Answers(), "GET", "/admin/nothing", named)
    assert (status, problem["code"], problem["request_id"]) == (404, "not_found", "r-7")
    assert "/admin/reload, /admin/state" in problem["detail"]
    assert headers[b"x-request-id"] == b"r-7"
    status, headers, problem = call(Answers(), "GET", "/admin/reload")
    assert (status, problem["code"], headers[b"allow"]) == (405, "method_not_allowed", b"POST")


def test_a_crash_is_500_without_its_text(call):
    class Crashes:
        async def ask(self, command, timeout_s):
            raise ZeroDivisionError("secret")

    with capture_logs() as records:
        status, _, problem = call(Crashes(), "GET", "/admin/state")
    assert (status, problem["code"]) == (500, "internal")
    assert "secret" not in json.dumps(problem)
    assert "admin_failed" in {record["event"] for record in records}
