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
    took: dict[str, list[float]] = {name: [] for name in runs}
    num_rows = len(inputs[0]["request_index"])
    for run in runs.values():
        for each in inputs:
            run(each)  # the first run of a size allocates
    for _ in range(rounds):
        for name, run in runs.items():
            took[name].append(_seconds_a_run(run, inputs, round_s))
    return {name: num_rows / statistics.median(times) for name, times in took.items()}


def _seconds_a_run(run: Run, inputs: Sequence[GraphArrays], round_s: float) -> float:
    begun, count = time.thread_time(), 0
    while count == 0 or time.thread_time() - begun < round_s:
        run(inputs[count % len(inputs)])
        count += 1
    return (time.thread_time() - begun) / count
