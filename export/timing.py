"""How fast graphs run on this machine, side by side.

Runs take turns, so that other work on the machine hits all of them alike, and count the time of the calling
thread: sessions run on it alone. Invariant: a figure is the median over rounds, in candidate rows a second.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from export.rows import GraphArrays

ROUNDS = 7
ROUND_S = 0.02

Run = Callable[[GraphArrays], object]


def rows_per_second(
    runs: Mapping[str, Run],
    inputs: Sequence[GraphArrays],
    *,
    rounds: int = ROUNDS,
    round_s: float = ROUND_S,
) -> dict[str, float]:
    """Candidate rows a second of each graph.

    Args:
        runs: By name: runs a graph on inputs by name.
        inputs: What they take turns on, all of the same number of rows; at least one.
        rounds: Turns of each.
        round_s: Seconds of a turn, at least one run.
    """
    return _rates(runs, inputs, len(inputs[0]["request_index"]), rounds, round_s, time.thread_time)


def wall_rows_per_second(
    runs: Mapping[str, Run], inputs: Sequence[GraphArrays], *, num_rows: int
) -> dict[str, float]:
    """The same by the clock on the wall, for devices that work while the calling thread waits.

    Args:
        runs: By name.
        inputs: As the graphs take them; at least one.
        num_rows: Candidates of each.
    """
    return _rates(runs, inputs, num_rows, ROUNDS, ROUND_S, time.perf_counter)


def _rates(
    runs: Mapping[str, Run],
    inputs: Sequence[GraphArrays],
    num_rows: int,
    rounds: int,
    round_s: float,
    clock: Callable[[], float],
) -> dict[str, float]:
    took: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        for each in inputs:
            run(each)  # the first run of a size allocates
    for _ in range(rounds):
        for name, run in runs.items():
            took[name].append(_seconds_a_run(run, inputs, round_s, clock))
    return {name: num_rows / statistics.median(times) for name, times in took.items()}


def _seconds_a_run(
    run: Run, inputs: Sequence[GraphArrays], round_s: float, clock: Callable[[], float]
) -> float:
    begun, count = clock(), 0
    while count == 0 or clock() - begun < round_s:
        run(inputs[count % len(inputs)])
        count += 1
    return (clock() - begun) / count
