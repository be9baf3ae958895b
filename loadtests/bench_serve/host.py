"""CPU time from /proc: of a process tree, of the machine, and what others took meanwhile.

Linux only. Times are in clock ticks of 10 ms, so a measurement should last seconds.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_IDLE = (3, 4)  # idle and iowait among the fields of /proc/stat


def children(pid: int) -> list[int]:
    """Pids of a process's direct children."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, task.read_text().split())
        except OSError:
            continue  # a thread that ended meanwhile
    return sorted(found)


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    pids = [pid]
    for child in children(pid):
        pids += tree(child)
    return pids


def cpu_s(pids: Iterable[int]) -> float:
    """User and system seconds of processes so far; those that ended count nothing."""
    total = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        total += int(fields[11]) + int(fields[12])
    return total * TICK_S


def busy_s() -> float:
    """Seconds all cores of the machine were busy since it started."""
    fields = list(map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]))
    return (sum(fields) - sum(fields[place] for place in _IDLE)) * TICK_S


@dataclass(frozen=True)
class Noise:
    """What a figure should be trusted by.

    Attributes:
        foreign_cores: Cores that processes outside the measurement kept busy.
        load_average: Of the machine over a minute, at the end.
    """

    foreign_cores: float
    load_average: float


class Meter:
    """CPU of some processes and of everything else between `start` and `stop`.

    Args:
        pids: Processes measured one by one; the tree of a service.
    """

    def __init__(self, pids: Iterable[int]) -> None:
        self.pids = list(pids)
        self._before = {pid: cpu_s([pid]) for pid in self.pids}
        self._busy = busy_s()
        self._own = _own_s()

    def stop(self, seconds: float, generator_s: float = 0.0) -> tuple[dict[int, float], Noise]:
        """CPU seconds by pid, and the noise.

        Args:
            seconds: That passed.
            generator_s: CPU seconds of load generators that are still running; those that ended and
                were waited for count as ours without being told.
        """
        used = {pid: cpu_s([pid]) - before for pid, before in self._before.items()}
        foreign = busy_s() - self._busy - sum(used.values()) - (_own_s() - self._own) - generator_s
        return used, Noise(round(max(foreign, 0.0) / seconds, 2), round(os.getloadavg()[0], 2))


def _own_s() -> float:
    """CPU seconds of this process and of children that were waited for."""
    return sum(os.times()[:4])
