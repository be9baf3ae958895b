"""Users that browse: they wait for replies, look at them for a while, and some of them click.

    locust -f loadtests/locustfile.py --headless -H http://127.0.0.1:8000 -u 20 -r 20 -t 1m --store STORE
    ... --routing routing.yaml --out RUN

Users of three kinds send requests of their profile (`loadtests.mix`), 8 : 4 : 1. After one in five replies a
user sends feedback under its request id, with a click on each of the best items by its score; a service
that keeps none (404) is asked once. Being a closed loop it slows down with the service: for latencies under
a given load see `loadtests.rate_run`. At the end it writes RUN, holds arms to the routing file, and exits
with 1 where they do not agree or a request failed.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from typing import Any

import gevent
from locust import between, events, task
from locust.argument_parser import LocustArgumentParser
from locust.contrib.fasthttp import FastHttpUser
from locust.env import Environment

from loadtests.arms import check_arms
from loadtests.mix import PROFILES, Mix, as_text, mix_of
from loadtests.recorder import Recorder
from loadtests.slo import SLO_FILE, read_objectives, routing_of

FEEDBACK_SHARE = 0.2
SHOWN = 10
FEEDBACK_OFF = 404
TIMEOUT_S = 5.0


class State:
    """Of the one run of this process; made when users start.

    Args:
        environment: With the parsed options.
    """

    def __init__(self, environment: Environment) -> None:
        options = environment.parsed_options
        self.mix: Mix = mix_of(options.store, options.alias, seed=options.seed)
        self.random = random.Random(options.seed)
        self.takes_feedback = True
        self.begun = time.perf_counter()
        plan = {"users": options.num_users, "seed": options.seed, "mix": as_text(self.mix)}
        self.recorder = Recorder(
            "closed",
            f"{options.num_users} users who wait for replies",
            seconds=float(options.run_time or 0),
            plan=plan,
            seed=options.seed,
        )

    def now(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self.begun


@events.init_command_line_parser.add_listener
def _add_options(parser: LocustArgumentParser) -> None:
    parser.add_argument("--store", type=Path, required=True, help="model store of the service")
    parser.add_argument("--alias", default="stable", help="whose users, items and domains are asked for")
    parser.add_argument("--routing", type=Path, help="routing file of the service, to check its arms")
    parser.add_argument("--seed", type=int, default=0, help="of users, items and clicks")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")


@events.init.add_listener
def _look_at_the_clock(**_: Any) -> None:
    """Timers go by the loop's own clock, which stands still while modules load: a run would be short."""
    gevent.get_hub().loop.update_now()


@events.test_start.add_listener
def _start(environment: Environment, **_: Any) -> None:
    environment.ctr = State(environment)


@events.quitting.add_listener
def _finish(environment: Environment, **_: Any) -> None:
    """Write the run and set the exit status."""
    options, state = environment.parsed_options, getattr(environment, "ctr", None)
    if state is None:
        return
    run = state.recorder.finish(options.out, store=options.store, routing=options.routing)
    failed = sum(call.status == 0 or call.status >= 500 for call in run.calls)
    problems = [f"{failed} of {len(run.calls)} requests failed"] if failed else []
    routing = routing_of(options.out)
    if routing is not None:
        least = read_objectives(SLO_FILE).arms.min_p_value
        checks = check_arms([call for call in run.calls if call.kind == "score"], routing)
        problems += [problem for found in checks for problem in found.problems(least)]
    for problem in problems:
        sys.stderr.write(f"load run failed: {problem}\n")
    environment.process_exit_code = 1 if problems or not run.calls else 0


class _Scoring(FastHttpUser):
    """What users of all kinds do."""

    abstract = True
    profile = ""
    network_timeout = connection_timeout = TIMEOUT_S

    @property
    def state(self) -> State:
        """Shared by all users."""
        state: State = self.environment.ctr
        return state

    @task
    def score(self) -> None:
        """Ask for scores, and perhaps say what came of them."""
        state = self.state
        ask = state.mix.draw(PROFILES[self.profile])
        sent = state.now()
        with self._post("/score", ask.body(), f"score {self.profile}") as response:
            done, status = state.now(), response.status_code or 0
            reply = state.recorder.scored(
                ask,
                intended_s=sent,
                sent_s=sent,
                done_s=done if status else None,
                status=status,
                body=response.content or b"",
            )
            if reply is None:
                response.failure(f"answered {status}")
        if reply is not None and state.takes_feedback and state.random.random() < FEEDBACK_SHARE:
            self._feed_back(reply["request_id"], list(ask.items), reply["scores"])

    def _feed_back(self, request_id: str, items: list[str], scores: list[float]) -> None:
        """Tell of the best items, each clicked with the chance that its score gives."""
        state = self.state
        shown = sorted(zip(scores, items, strict=True), reverse=True)[:SHOWN]
        told = [{"id": item, "click": int(state.random.random() < score)} for score, item in shown]
        sent = state.now()
        with self._post("/feedback", {"request_id": request_id, "items": told}, "feedback") as response:
            done, status = state.now(), response.status_code or 0
            if status == FEEDBACK_OFF:
                state.takes_feedback = False
                response.success()
                return
            state.recorder.fed_back(
                len(told),
                sent_s=sent,
                done_s=done if status else None,
                status=status,
                request_id=request_id,
            )

    def _post(self, path: str, body: bytes | dict[str, Any], name: str) -> Any:
        json = body if isinstance(body, dict) else None
        data = body if isinstance(body, bytes) else None
        headers = {"content-type": "application/json"}
        return self.client.post(path, data=data, json=json, headers=headers, name=name, catch_response=True)


class Browser(_Scoring):
    """Scrolls: a page of 10 to 100 candidates every half a second."""

    profile = "browse"
    weight = int(PROFILES["browse"].weight)
    wait_time = between(0.3, 0.7)


class Glancer(_Scoring):
    """Looks at a slot or two."""

    profile = "tiny"
    weight = int(PROFILES["tiny"].weight)
    wait_time = between(0.15, 0.35)


class Bulk(_Scoring):
    """Ranks a whole shelf."""

    profile = "heavy"
    weight = int(PROFILES["heavy"].weight)
    wait_time = between(0.6, 1.4)
