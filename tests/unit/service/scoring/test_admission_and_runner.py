"""Admission bounds, deadlines end waiting, and the runner places runs by their expected time."""

import asyncio
import threading
import time

import numpy as np
import pytest

from service.contract.encode import EncodedBlock
from service.errors import DeadlineExceeded, Overloaded
from service.scoring.admission import Admission, Backlog, CallerGone, Deadline
from service.scoring.clock import RunClock
from service.scoring.predictor import GraphRows
from service.scoring.runner import Runner, Turnstile

ITEM = EncodedBlock(np.zeros((4, 1), np.int32), np.zeros((4, 0), np.float32))
ROWS = GraphRows(ITEM, ITEM, ITEM, np.zeros(1, np.int64), np.zeros(4, np.int64))


class Sleepy:
    """A predictor that takes its time and notes its thread."""

    def __init__(self, run_s, expected_ms=None):
        self.run_s = run_s
        self.clock = RunClock()
        self.threads = []
        if expected_ms is not None:
            self.clock.record(4, expected_ms)

    def score(self, rows):
        self.threads.append(threading.current_thread())
        time.sleep(self.run_s)
        return np.zeros(len(rows.item), np.float32)


@pytest.fixture
def runner():
    made = Runner(inline_max_ms=3.0, num_threads=1)
    yield made
    made.close()


def test_the_slot_after_the_last_is_refused_and_slots_come_back():
    admission = Admission(1)
    with admission:
        with pytest.raises(
            Overloaded, match="1 requests are in flight, the most this worker takes"
        ) as caught:
            admission.__enter__()
        assert (caught.value.retry_after_s, caught.value.limit) == (1, 1)
    with pytest.raises(ZeroDivisionError), admission:
        raise ZeroDivisionError
    assert admission.inflight == 0


def test_a_passed_deadline_names_the_stage():
    deadline = Deadline(1)
    deadline.check("features")
    time.sleep(0.002)
    assert deadline.remaining_s() < 0
    with pytest.raises(DeadlineExceeded, match="the deadline of 1 ms passed at stage 'features'"):
        deadline.check("features")


def test_a_deadline_can_only_be_shortened():
    deadline = Deadline(100)
    deadline.shorten(200)
    assert (deadline.budget_ms, deadline.remaining_s() <= 0.1) == (100, True)
    deadline.shorten(10)
    assert (deadline.budget_ms, deadline.remaining_s() <= 0.01) == (10, True)


def test_a_request_is_refused_when_those_before_it_are_expected_to_take_too_long():
    backlog = Backlog()
    admission = Admission(64, backlog=backlog, max_wait_ms=100)
    for _ in range(20):
        backlog.took(40.0)
    mean_ms = 40 * (1 - 0.9**20)
    assert backlog.mean_ms == pytest.approx(mean_ms)
    with admission:  # an idle worker takes a request whatever it may cost
        assert admission.expected_wait_ms() == pytest.approx(mean_ms)
        backlog.add(90.0)  # and this is what it did cost, so its mean no longer counts
        assert admission.expected_wait_ms() == 90
        with admission, pytest.raises(Overloaded) as caught:
            admission.__enter__()
        assert (
            "2 requests are in flight and expected to take 125 ms; a new one may have to wait 100 ms"
            in str(caught.value)
        )
        assert (caught.value.limit, caught.value.retry_after_s) == (100, 1)
        backlog.done(90.0)
    assert (backlog.num_runs, backlog.ms, admission.inflight) == (0, 0.0, 0)


def test_a_run_that_cannot_be_done_in_time_is_refused_rather_than_queued():
    backlog = Backlog()
    backlog.require_time(1000.0, Deadline(50))  # nothing before it: it may be wrong
    backlog.add(2500.0)
    with pytest.raises(Overloaded, match=r"1 runs are before this one.* expected to take 2510 ms") as caught:
        backlog.require_time(10.0, Deadline(50))
    assert caught.value.retry_after_s == 3


def test_work_in_the_pool_whose_caller_leaves_is_not_begun_and_frees_its_place(runner):
    slow, here = Sleepy(0.15, expected_ms=20), Sleepy(0.0, expected_ms=20)

    async def two():
        first = asyncio.create_task(runner.run(slow, ROWS, Deadline(1000)))
        await asyncio.sleep(0.01)
        with pytest.raises(CallerGone):
            await runner.run(here, ROWS, Deadline(1000, gone=lambda: True))
        await first
        return runner.backlog.num_runs

    assert asyncio.run(two()) == 0
    assert here.threads == []


def test_work_on_the_loop_whose_caller_leaves_while_it_waits_is_not_begun(runner):
    here, gone = Sleepy(0, expected_ms=1), Sleepy(0, expected_ms=1)

    async def two():
        return await asyncio.gather(
            runner.run(here, ROWS, Deadline(1000, gone=lambda: True)),
            runner.run(gone, ROWS, Deadline(1000, gone=lambda: True)),
            return_exceptions=True,
        )

    first, second = asyncio.run(two())
    assert len(first) == 4  # it did not wait, so its caller was not looked for
    assert isinstance(second, CallerGone)
    assert (len(here.threads), gone.threads, runner.backlog.num_runs) == (1, [], 0)


def test_short_runs_stay_on_the_loop_and_long_ones_leave_it(runner):
    short, long = Sleepy(0, expected_ms=1), Sleepy(0, expected_ms=10)

    async def both():
        for predictor in (short, long):
            await runner.run(predictor, ROWS, Deadline(1000))

    asyncio.run(both())
    assert short.threads == [threading.main_thread()]
    assert long.threads != [threading.main_thread()]


def test_waiting_for_a_long_run_ends_at_the_deadline_and_queued_work_is_not_begun(runner):
    slow = Sleepy(0.2, expected_ms=4)

    async def two():
        begun = time.perf_counter()
        outcome = await asyncio.gather(
            runner.run(slow, ROWS, Deadline(50)), runner.run(slow, ROWS, Deadline(50)), return_exceptions=True
        )
        return outcome, time.perf_counter() - begun

    outcome, took_s = asyncio.run(two())
    assert [type(error) for error in outcome] == [DeadlineExceeded] * 2
    assert took_s < 0.19
    runner.close()
    assert len(slow.threads) == 1


def iterations_of_runs(times_ms, **bounds):
    """In which iteration of the loop each run passes; a further one is cancelled while it waits."""

    async def many():
        turnstile, passed, iteration = Turnstile(**bounds), [], 0

        async def one(number, expected_ms):
            await turnstile.pass_through(expected_ms)
            passed.append((number, iteration))

        tasks = [asyncio.create_task(one(n, ms)) for n, ms in enumerate(times_ms)]
        cancelled = asyncio.create_task(one(99, times_ms[-1]))
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0)
            iteration += 1
            if iteration == 1:
                cancelled.cancel()
        await asyncio.sleep(0)
        return passed

    passed = asyncio.run(many())
    assert [number for number, _ in passed] == list(range(len(times_ms)))
    found = [iteration for _, iteration in passed]
    names = sorted(set(found))
    return [names.index(iteration) for iteration in found]


def test_turnstile_lets_long_runs_through_one_per_iteration_in_order():
    assert iterations_of_runs([0.3] * 4, max_ms=0.25, max_runs=16) == [0, 1, 2, 3]


def test_turnstile_bounds_the_time_of_an_iteration_and_never_lets_a_run_overtake():
    times_ms = [0.1, 0.1, 0.1, 9.0, 0.02, 0.2, 0.02]
    assert iterations_of_runs(times_ms, max_ms=0.25, max_runs=16) == [0, 0, 1, 2, 3, 3, 3]


def test_turnstile_bounds_the_number_of_runs_of_an_iteration():
    assert iterations_of_runs([0.0] * 7, max_ms=0.25, max_runs=3) == [0, 0, 0, 1, 1, 1, 2]


def test_clock_averages_scales_up_and_bounds_a_spike():
    clock = RunClock()
    assert clock.expected_ms(100) == 0
    clock.record(100, 2.0)
    assert clock.expected_ms(127) == 2.0
    assert clock.expected_ms(200) == 4.0
    assert clock.expected_ms(1) == 0
    clock.record(100, 1000.0)
    assert clock.expected_ms(100) == pytest.approx(2.0 + 0.2 * (8.0 - 2.0))
