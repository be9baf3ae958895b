"""Ten times more requests than the service can do: it does what it can, and refuses the rest at once."""

import pytest

from loadtests.bench_serve.servers import service
from loadtests.overload import Outcome, overload, stored_bodies
from tests.support.bundles import build_bundle

DEADLINE_MS = 1000


@pytest.mark.slow
def test_ten_times_its_capacity_leaves_a_service_at_work(tmp_path):
    """Runs take some 20 ms here, so that the generator and refusals on the same cores are a small part."""
    store = tmp_path / "store"
    build_bundle(store, ballast=60)
    with service(store, tmp_path, workers=1, variables={"CTR_DEADLINE_MS": str(DEADLINE_MS)}) as server:
        outcome = overload(
            server,
            stored_bodies(store, 100),
            tmp_path / "bodies",
            deadline_ms=DEADLINE_MS,
            seconds=6.0,
            capacity_s=2.0,
        )
    assert outcome.failures() == [], outcome


def test_each_broken_promise_is_told():
    bad = Outcome(
        capacity=100,
        offered=1000,
        good=79,
        p99_ms=501,
        deadline_ms=500,
        statuses={"200": 10, "500": 1},
        num_broken=2,
        no_retry_after=3,
    )
    assert bad.failures() == [
        "good replies 79.0/s, capacity 100.0/s",
        "p99 501 ms, deadline 500 ms",
        "statuses ['500']",
        "nothing was refused, so it was no overload",
        "2 connections broke",
        "3 refusals without Retry-After",
    ]
