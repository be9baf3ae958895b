"""Load by users and by planned arrivals on a real service with two arms, judged and reported."""

import json
from collections import Counter

import pytest
import yaml

from loadtests.bench_serve.servers import service
from loadtests.campaign import CampaignError, Plan, load_by_users, main
from loadtests.rate_run import main as rate_main
from loadtests.record import read_run
from loadtests.slo import SLO_FILE
from tests.support.routing import build_three, experiment, write_routing

SECONDS = 3
USERS = 13  # one of them of the rarest kind


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("campaign")
    build_three(made / "store")
    write_routing(made / "routing.yaml", experiment(domains="all", unit="request"))
    slo = yaml.safe_load(SLO_FILE.read_text())
    # Of latencies a test machine that does other things as well says nothing.
    slo["latency_ms"] = {"all": {"p50": 2000, "p99": 5000}}
    (made / "slo.yaml").write_text(yaml.safe_dump(slo))
    return made


@pytest.fixture(scope="module")
def server(folder):
    variables = {
        "CTR_ROUTING_FILE": str(folder / "routing.yaml"),
        "CTR_EXPOSURE_DIR": str(folder / "exposures"),
        "CTR_FEEDBACK_DIR": str(folder / "feedback"),
        # A machine that does other things as well stalls at times; nothing is refused for that here.
        "CTR_DEADLINE_MS": "5000",
        "CTR_MAX_INFLIGHT": "1000",
    }
    with service(folder / "store", folder, workers=1, variables=variables) as started:
        yield started


@pytest.fixture(scope="module")
def campaign(folder, server):
    """Exit status of a whole campaign."""
    arguments = ["--store", folder / "store", "--routing", folder / "routing.yaml", "--port", server.port]
    arguments += ["--out", folder / "out", "--slo", folder / "slo.yaml", "--users", USERS]
    arguments += ["--user-seconds", SECONDS, "--rate", 90, "--rate-seconds", 2]
    return main([str(word) for word in arguments])


def score_calls(folder, name):
    return [call for call in read_run(folder / "out" / name).calls if call.kind == "score"]


def test_a_service_in_good_health_keeps_its_objectives(campaign, folder):
    assert campaign == 0
    for name in ("users", "arrivals"):
        run = read_run(folder / "out" / name)
        assert {call.status for call in run.calls} <= {200, 202}
        assert run.parity["num_rows"] > 100
        assert run.parity["max_abs_difference"] <= 1e-5
        assert "not kept" not in (folder / "out" / name / "report.html").read_text()


def test_users_of_every_kind_ask_in_every_domain_and_see_both_arms(campaign, folder):
    calls = score_calls(folder, "users")
    assert {call.profile for call in calls} == {"browse", "tiny", "heavy"}
    assert {call.domain for call in calls} == {"home", "sport", "music"}
    assert {(call.experiment, call.arm) for call in calls} == {("ab", "control"), ("ab", "treatment")}
    assert max(call.intended_s for call in calls) > 0.5 * SECONDS


def test_feedback_names_requests_that_were_scored_and_is_on_disk(campaign, folder):
    run = read_run(folder / "out" / "users")
    fed_back = [call.request_id for call in run.calls if call.kind == "feedback"]
    scored = {call.request_id for call in run.calls if call.kind == "score"}
    assert fed_back
    assert set(fed_back) <= scored
    lines = [
        json.loads(line) for file in (folder / "feedback").iterdir() for line in file.read_text().splitlines()
    ]
    assert {line["request_id"] for line in lines} == set(fed_back)


def test_planned_arrivals_came_at_their_rate(campaign, folder):
    """90 a second for 2 s at random: 180 with a deviation of 13."""
    calls = score_calls(folder, "arrivals")
    assert 110 < len(calls) < 250
    assert max(call.intended_s for call in calls) < 2
    assert all(call.sent_s >= call.intended_s - 1e-6 for call in calls)


def test_the_same_plan_asks_for_the_same(campaign, folder, server, monkeypatch, capsys):
    words = ["rate_run", "--store", folder / "store", "--port", server.port, "--rate", "90", "--seconds", "2"]
    monkeypatch.setattr("sys.argv", [*map(str, words), "--out", str(folder / "again")])
    assert rate_main() == 0
    assert capsys.readouterr().out.endswith(f"answered 200; {folder / 'again'}\n")

    def asked(run):
        return Counter((call.intended_s, call.domain, call.user, call.num_items) for call in run.calls)

    assert asked(read_run(folder / "again")) == asked(read_run(folder / "out" / "arrivals"))


def test_arms_that_are_not_those_of_the_file_fail_the_run(folder, server):
    """The service halves its requests; this file promises four to one."""
    arms = [{"name": "control", "share": 0.8}, {"name": "treatment", "share": 0.2}]
    wrong = write_routing(folder / "wrong.yaml", experiment(domains="all", unit="request", arms=arms))
    plan = Plan(users=USERS, user_seconds=SECONDS)
    (problem,) = load_by_users(folder / "store", server.port, wrong, plan, folder / "wrong")
    assert problem.startswith("users: experiment 'ab' has units {'control': ")
    assert problem.endswith(", at least 0.001")


def test_a_plan_that_is_none_is_told(folder, monkeypatch, capsys):
    words = ["rate_run", "--store", folder / "store", "--rate", "quick", "--out", folder / "none"]
    monkeypatch.setattr("sys.argv", [str(word) for word in words])
    assert rate_main() == 2
    assert "'quick' is no plan" in capsys.readouterr().err


def test_locust_that_leaves_no_run_is_told(folder, monkeypatch):
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(CampaignError, match=r"locust left no run; it ended with 1: "):
        load_by_users(folder / "store", 1, None, Plan(user_seconds=1), folder / "nothing")
