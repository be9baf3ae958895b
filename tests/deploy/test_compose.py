"""`docker compose up`, and what a newcomer and an operator may expect of it.

One stack for all tests, which run from top to bottom: looking at it first, then hurting it.
"""

import json
import os
import signal
import time
from collections.abc import Iterator

import httpx
import pytest

from loadtests.parity import compare
from tests.deploy.dashboards import all_queries
from tests.deploy.kube_load import Load
from tests.deploy.stack import Stack, make_stack, wait_for
from training.data.source import open_data

REPLICAS = 2
ITEMS = 20
LIMIT = 1e-5  # of the difference between a served and an offline score
BACK_WITHIN_S = 120


@pytest.fixture(scope="module")
def stack(engine, images, figures) -> Iterator[Stack]:
    """The stack, up and healthy; removed with all its data at the end."""
    made = make_stack(engine, f"deploy-{os.getpid()}", DEMO_PRESET="small", DEMO_RATE="20")
    try:
        figures.add("compose_up_s", round(made.up(), 1))
        yield made
    except AssertionError as error:
        error.add_note(made.report())
        raise
    finally:
        made.down(forget=True)


def example(stack):
    """A request with ids of the served bundle."""
    items = [{"id": f"i{n}"} for n in range(ITEMS)]
    return {"domain": "d00", "user": {"id": "u1"}, "context": {"hour": 20, "device": "phone"}, "items": items}


def scores(stack):
    reply = httpx.post(
        f"{stack.url}/score", json=example(stack), headers={"x-ctr-arm": "control"}, timeout=10
    )
    assert reply.status_code == httpx.codes.OK, reply.text
    assert reply.json()["degraded"] == []
    return reply.json()


def restarts(stack):
    return [stack.engine.inspect(container)["RestartCount"] for container in stack.containers("service")]


def healthy(stack):
    states = [stack.engine.inspect(container)["State"] for container in stack.containers("service")]
    return sum(state.get("Health", {}).get("Status") == "healthy" for state in states) == REPLICAS


@pytest.mark.parametrize(("arm", "alias"), [("control", "stable"), ("treatment", "canary")])
def test_scores_through_the_published_port_are_those_of_the_offline_evaluation(
    stack, tmp_path, figures, arm, alias
):
    """Test rows, sent raw, get the probability that torch wrote to the run's predictions."""
    data = stack.copy("prepare", "/work/data", tmp_path / "data")
    run = stack.copy("prepare", f"/work/run-{alias}", tmp_path / "run")
    with httpx.Client(base_url=stack.url, headers={"x-ctr-arm": arm}, timeout=10) as client:
        worst = compare(run, open_data(data), client, num_rows=200, seed=0)
    figures.add(f"largest_score_difference_{alias}", float(f"{worst:.2g}"))
    assert worst <= LIMIT


def test_documents_are_published_and_numbers_of_one_replica_are_not(stack):
    assert httpx.get(f"{stack.url}/docs", timeout=10).status_code == httpx.codes.OK
    assert httpx.get(f"{stack.url}/metrics", timeout=10).status_code == httpx.codes.NOT_FOUND


def test_containers_of_ours_are_confined(stack):
    for service in ("service", "traffic", "gateway", "prepare"):
        for container in stack.containers(service):
            told = stack.engine.inspect(container)
            assert told["HostConfig"]["ReadonlyRootfs"], service
            assert told["HostConfig"]["CapDrop"] == ["ALL"], service
            assert "no-new-privileges:true" in told["HostConfig"]["SecurityOpt"], service
            assert told["Config"]["User"].split(":")[0] not in {"", "0", "root"}, service


def test_only_the_machine_itself_can_reach_what_is_published(stack):
    configured = json.loads(stack.compose("config", "--format", "json"))
    ports = [p for service in configured["services"].values() for p in service.get("ports", [])]
    assert ports
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}


def test_prometheus_sees_every_replica_and_takes_the_rules(stack):
    targets = wait_for(
        "targets that are up", lambda: stack.ask('up{job="ctr-service"} == 1') or None, timeout_s=60
    )
    wait_for("both", lambda: len(stack.ask('up{job="ctr-service"} == 1')) == REPLICAS, timeout_s=60)
    assert targets
    groups = httpx.get(f"{stack.prometheus}/api/v1/rules", timeout=10).json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert rules
    wait_for(
        "evaluation of all rules",
        lambda: all(
            rule["health"] == "ok"
            for group in httpx.get(f"{stack.prometheus}/api/v1/rules", timeout=10).json()["data"]["groups"]
            for rule in group["rules"]
        ),
        timeout_s=60,
    )


def test_every_query_of_every_dashboard_has_an_answer_under_load(stack, figures):
    """Quiet panels, which tell of what may not happen, need only be understood."""
    queries = all_queries()
    assert len(queries) > 50
    open_ones = [query for query in queries if not query.quiet]
    with Load(int(stack.url.rpartition(":")[2]), example(stack), threads=2, pause_s=0.05):
        end = time.monotonic() + 120
        while (unanswered := [q for q in open_ones if not stack.ask(q.expr)]) and time.monotonic() < end:
            time.sleep(2)
    silent = [query for query in queries if query.quiet and not stack.ask(query.expr)]
    figures.add(
        "dashboard_queries",
        {"all": len(queries), "answered": len(queries) - len(unanswered) - len(silent), "quiet": len(silent)},
    )
    assert [f"{query.where}: {query.expr}" for query in unanswered] == []


def test_a_replica_that_is_killed_fails_no_request_and_comes_back(stack, figures):
    port = int(stack.url.rpartition(":")[2])
    victim = stack.containers("service")[0]
    before = restarts(stack)
    with Load(port, example(stack), threads=4, pause_s=0.01) as load:
        time.sleep(2)
        begun = time.monotonic()
        # The process and not the container: to the engine this is a crash, after which it restarts it.
        os.kill(stack.engine.inspect(victim)["State"]["Pid"], signal.SIGKILL)
        wait_for("a restart", lambda: sum(restarts(stack)) == sum(before) + 1, timeout_s=BACK_WITHIN_S)
        wait_for("a healthy replica", lambda: healthy(stack), timeout_s=BACK_WITHIN_S)
        back_s = time.monotonic() - begun
        time.sleep(2)
    figures.add("replica_killed", {**load.tally.figures(), "back_after_s": round(back_s, 1)})
    assert dict(load.tally.failed) == {}
    assert load.tally.sent > 100


def test_a_restart_keeps_features_and_models_and_trains_nothing(stack, figures):
    before = scores(stack)
    line = {"entity": "item", "id": "fresh-1", "features": {"price": 3.5, "brand": "b1"}}
    streamed = stack.compose(
        *("run", "--rm", "-T", "--no-deps", "--entrypoint", "sh", "prepare", "-c"),
        f"echo '{json.dumps(line)}' | ctr-serve features stream",
    )
    assert "1 updates written" in streamed
    rows = int(stack.redis("dbsize"))
    before_s = time.time()

    stack.down(forget=False)
    figures.add("compose_up_again_s", round(stack.up(), 1))

    assert scores(stack)["scores"] == before["scores"]
    assert scores(stack)["model"] == before["model"]
    assert int(stack.redis("dbsize")) == rows
    told = stack.compose("logs", "prepare")
    assert "nothing to train" in told
    assert "0 of them by this run" in told
    assert "ctr-train" not in told
    # What Prometheus knew before the restart is older than its process.
    assert stack.ask(f"max_over_time(ctr_ready_workers[1h] @ {before_s:.0f}) > 0")
