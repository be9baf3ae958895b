"""Requests in one run get the scores they would get alone; errors, deadlines and row bounds hold for each."""

import asyncio
import time

import numpy as np
import pytest

from service.contract.encode import EncodedBlock
from service.contract.manifest import Graph
from service.errors import DeadlineExceeded, GraphRunError
from service.scoring.admission import CallerGone, Deadline
from service.scoring.clock import RunClock
from service.scoring.predictor import GraphRows
from service.scoring.runner import Runner

GRAPH = Graph(
    file="graphs/whole.onnx",
    output="score",
    inputs=(
        {"name": "u", "source": "user.floats", "dtype": "float32", "width": 1},
        {"name": "i", "source": "item.floats", "dtype": "float32", "width": 1},
        {"name": "r", "source": "request_index", "dtype": "int64", "width": 0},
    ),
)
SOON = 1000


class Sums:
    """score = user number + item number; fails where an item is negative."""

    graph = GRAPH

    def __init__(self, expected_ms=0.1):
        self.clock = RunClock()
        self.clock.record(1, expected_ms)
        self.runs = []

    def inputs(self, rows):
        return {"u": rows.user.floats, "i": rows.item.floats, "r": rows.request_index}

    def run(self, inputs):
        self.runs.append(len(inputs["i"]))
        if (inputs["i"] < 0).any():
            raise GraphRunError("an item is negative")
        return inputs["u"][inputs["r"], 0] + inputs["i"][:, 0]


def rows_of(user, items, index=None):
    users = np.atleast_1d(np.asarray(user, np.float32))
    empty = EncodedBlock(np.zeros((len(users), 0), np.int32), np.zeros((len(users), 0), np.float32))
    item = np.asarray(items, np.float32)[:, None]
    return GraphRows(
        user=EncodedBlock(empty.ints, users[:, None]),
        context=empty,
        item=EncodedBlock(np.zeros((len(item), 0), np.int32), item),
        domain=np.zeros(len(users), np.int64),
        request_index=np.zeros(len(item), np.int64) if index is None else np.asarray(index, np.int64),
    )


def ask(requests, *, batch_max_rows=100, predictor=None):
    """All at once; returns outcomes and the rows of each run."""
    graph = predictor or Sums()

    async def use():
        runner = Runner(inline_max_ms=3.0, num_threads=1, batch_max_rows=batch_max_rows)
        runs = [runner.run(graph, rows, deadline) for rows, deadline in requests]
        outcomes = await asyncio.gather(*runs, return_exceptions=True)
        assert runner.backlog.num_runs == 0
        runner.close()
        return outcomes

    return asyncio.run(use()), graph.runs


def test_what_is_queued_runs_at_once_and_each_gets_its_own_rows():
    several = rows_of([10, 20], [1, 2, 3], index=[1, 0, 1])  # one caller may ask for two requests
    outcomes, runs = ask(
        [(rows_of(100, [1, 2]), Deadline(SOON)), (several, Deadline(SOON)), (rows_of(7, [5]), Deadline(SOON))]
    )
    assert runs == [6]
    assert [scores.tolist() for scores in outcomes] == [[101, 102], [21, 12, 23], [12]]


@pytest.mark.parametrize(("bound", "expected"), [(3, [3, 2]), (1, [2, 1, 2]), (5, [5])])
def test_a_run_takes_so_many_rows_and_one_request_at_least(bound, expected):
    requests = [(rows_of(0, items), Deadline(SOON)) for items in ([1, 2], [3], [4, 5])]
    outcomes, runs = ask(requests, batch_max_rows=bound)
    assert runs == expected
    assert np.concatenate(outcomes).tolist() == [1, 2, 3, 4, 5]


def test_a_run_on_the_loop_stays_short():
    """One row is expected to take 1 ms, two and three take 2, four to seven take 4: three fit into 3 ms."""
    requests = [(rows_of(0, [n]), Deadline(SOON)) for n in range(8)]
    _, runs = ask(requests, predictor=Sums(expected_ms=1.0))
    assert (runs[0], sum(runs)) == (3, 8)


def test_a_slow_run_of_a_size_does_not_forbid_that_size_for_good():
    """Eight rows once took 50 ms, but one by one they are expected to take 0.8."""
    predictor = Sums(expected_ms=0.1)
    predictor.clock.record(8, 50.0)
    _, runs = ask([(rows_of(0, [n]), Deadline(SOON)) for n in range(8)], predictor=predictor)
    assert runs == [8]


def test_an_error_is_that_of_one_request():
    outcomes, runs = ask([(rows_of(1, items), Deadline(SOON)) for items in ([1], [-1], [3])])
    assert runs == [3, 1, 1, 1]
    assert (outcomes[0].tolist(), outcomes[2].tolist()) == ([2], [4])
    assert isinstance(outcomes[1], GraphRunError)
    assert "an item is negative" in str(outcomes[1])


def test_late_and_left_requests_are_not_run():
    late = Deadline(1)
    time.sleep(0.002)
    outcomes, runs = ask(
        [
            (rows_of(1, [1]), late),
            (rows_of(1, [2]), Deadline(SOON)),
            (rows_of(1, [3]), Deadline(SOON, gone=lambda: True)),
        ]
    )
    assert runs == [1]
    assert isinstance(outcomes[0], DeadlineExceeded)
    assert outcomes[1].tolist() == [3]
    assert isinstance(outcomes[2], CallerGone)


def test_an_unforeseen_error_reaches_all_who_wait():
    class Broken(Sums):
        def run(self, inputs):
            raise ZeroDivisionError

    outcomes, _ = ask([(rows_of(1, [1]), Deadline(SOON))] * 2, predictor=Broken())
    assert [type(error) for error in outcomes] == [ZeroDivisionError] * 2


def test_graphs_take_turns():
    first, second, order = Sums(), Sums(), []
    for graph in (first, second):
        graph.run = lambda inputs, graph=graph: order.append(graph) or inputs["i"][:, 0]

    async def use():
        runner = Runner(inline_max_ms=3.0, num_threads=1, batch_max_rows=1)
        graphs = [first, first, second, second]
        await asyncio.gather(*(runner.run(g, rows_of(0, [1]), Deadline(SOON)) for g in graphs))
        runner.close()

    asyncio.run(use())
    assert order == [first, second, first, second]
