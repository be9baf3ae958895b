"""What a run takes down, which replies it puts aside, and how it scores them again."""

import json

import numpy as np
import pytest

from loadtests.graph_parity import GraphParity
from loadtests.mix import Ask
from loadtests.record import read_run
from loadtests.recorder import MAX_COMPARED, Recorder
from tests.support.bundles import build_bundle

ITEMS = ("i3", "nobody", "i7")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return build_bundle(tmp_path_factory.mktemp("store"))


def ask(user="u2", domain="music"):
    return Ask("tiny", domain, user, "s", {"hour": "7"}, ITEMS)


def reply(small, scores, **changes):
    model = {"bundle": small.bundle.bundle_id, "alias": "stable", "cluster": 1, "graph": "cluster-1"}
    known = {
        "request_id": "r",
        "scores": scores,
        "model": model,
        "experiment": None,
        "arm": None,
        "degraded": [],
    }
    return known | changes


def right(small):
    """Scores by the formula of the small bundle: stored rows, and default rows where there are none."""
    return small.expected_stored("music", 2, [3, None, 7])


def test_scores_of_the_service_are_those_of_the_graph(small):
    plain = Ask("tiny", "music", "u2", "s", {}, ITEMS)
    parity = GraphParity(small.store)
    parity.compare(plain, reply(small, right(small).tolist()))
    assert parity.figures()["num_rows"] == 3
    assert parity.max_abs_difference < 1e-6


def test_a_score_that_differs_is_found_and_the_largest_is_kept(small):
    plain = Ask("tiny", "music", "u2", "s", {}, ITEMS)
    parity = GraphParity(small.store)
    for shift in (0.0, 0.25, 0.1):
        parity.compare(plain, reply(small, (right(small) + np.array([0, shift, 0])).tolist()))
    assert parity.figures() == {"num_rows": 9, "max_abs_difference": pytest.approx(0.25, abs=1e-6)}


def test_context_counts(small):
    """The graph is told the hour, so the score of a request without it is another one."""
    parity = GraphParity(small.store)
    parity.compare(ask(), reply(small, right(small).tolist()))
    assert parity.max_abs_difference > 1e-3


def test_replies_that_cannot_be_compared_are_passed_over(small):
    parity = GraphParity(small.store)
    parity.compare(ask(), reply(small, [0.0] * 3, degraded=["user_features"]))
    blended = reply(small, [0.0] * 3)
    blended["model"]["blend"] = {"bundle": "b", "alias": "hier", "weight": 0.5}
    parity.compare(ask(), blended)
    assert parity.figures() == {}


def taken(recorder, number, status, body=b""):
    return recorder.scored(
        ask(f"u{number}"), intended_s=-number, sent_s=-number, done_s=0.0, status=status, body=body
    )


def test_every_end_is_taken_down_in_the_order_of_starts(tmp_path):
    recorder = Recorder("open", "made by hand", seconds=1.0, plan={}, seed=0)
    good = {"request_id": "r0", "experiment": "ab", "arm": "control", "degraded": ["item_features"]}
    assert taken(recorder, 0, 200, json.dumps(good).encode()) == good
    assert taken(recorder, 1, 429, b'{"code": "overloaded"}') is None
    assert taken(recorder, 2, 0) is None
    recorder.fed_back(3, sent_s=-3.0, done_s=None, status=0, request_id="r0")
    recorder.finish(tmp_path)
    calls = read_run(tmp_path).calls
    assert [(call.kind, call.status) for call in calls] == [
        ("feedback", 0),
        ("score", 0),
        ("score", 429),
        ("score", 200),
    ]
    assert (calls[3].request_id, calls[3].arm, calls[3].degraded) == ("r0", "control", True)
    assert (calls[0].num_items, calls[0].latency_ms, calls[3].latency_ms) == (3, None, 0.0)


def test_replies_put_aside_are_a_fair_sample_of_bounded_size():
    """Of 1,000 replies 200 are kept; those of the later half are about half of them."""
    recorder = Recorder("open", "made by hand", seconds=1.0, plan={}, seed=1)
    for number in range(5 * MAX_COMPARED):
        taken(recorder, number, 200, b'{"degraded": []}')
    kept = [int(asked.user[1:]) for asked, _ in recorder._compared]
    assert len(set(kept)) == MAX_COMPARED
    late = sum(number >= 2.5 * MAX_COMPARED for number in kept)
    assert 0.35 * MAX_COMPARED < late < 0.65 * MAX_COMPARED
