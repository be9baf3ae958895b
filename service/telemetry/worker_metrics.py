"""What is measured of a worker itself: memory, CPU time, the lag of its event loop; and how it is set up.

Reads `/proc/self/statm` once a second. Invariant: nothing here runs on behalf of a request.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from service.telemetry.instruments import Instruments

TICK_S = 1.0
STATM = Path("/proc/self/statm")


class WorkerMetrics:
    """Measures this process while it is started.

    Args:
        made: The metrics.
        worker: Number of the worker.
    """

    def __init__(self, made: Instruments, worker: str) -> None:
        self._memory = made.gauge("ctr_worker_resident_memory_bytes", worker)
        self._cpu = made.counter("ctr_worker_cpu_seconds_total", worker)
        self._lag = made.histogram("ctr_event_loop_lag_seconds")
        self._max_inflight = made.gauge("ctr_max_inflight_requests")
        self._deadline = made.gauge("ctr_deadline_seconds")
        self._threads = made.gauge("ctr_graph_threads")
        self._cores = made.gauge("ctr_cpu_quota_cores")
        self._cpu_s = 0.0
        self._task: asyncio.Task[None] | None = None
        made.gauge("ctr_worker_start_time_seconds", worker).set(time.time())

    def configured(self, *, max_inflight: int, deadline_s: float, threads: int, cores: int) -> None:
        """Take note of what the settings came to."""
        self._max_inflight.set(max_inflight)
        self._deadline.set(deadline_s)
        self._threads.set(threads)
        self._cores.set(cores)

    def start(self) -> None:
        """Begin to measure; needs a running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    def stop(self) -> None:
        """Measure no more."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        while True:
            self._measure()
            begun = time.perf_counter()
            await asyncio.sleep(TICK_S)
            self._lag.observe(max(0.0, time.perf_counter() - begun - TICK_S))

    def _measure(self) -> None:
        cpu_s = time.process_time()
        self._cpu.inc(cpu_s - self._cpu_s)
        self._cpu_s = cpu_s
        self._memory.set(resident_bytes())


def resident_bytes(statm: Path = STATM) -> int:
    """Memory of this process that is in RAM; 0 where the system does not tell."""
    try:
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


__all__ = ["WorkerMetrics", "resident_bytes"]
