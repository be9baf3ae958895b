"""Several serving processes on one port, each with its own SO_REUSEPORT socket.

Starts the workers, restarts one that died (with growing pauses), forwards SIGTERM, SIGINT and SIGHUP
(reload), and waits for all to drain. Metrics of all workers meet in one folder, removed at the end.
Invariant: no worker outlives the supervisor, whose death each worker watches.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

from service.admin import admin_server
from service.links import PipedWorkers, WorkerLink
from service.settings import Settings
from service.sockets import bind
from service.telemetry.log import configure_logging, get_logger
from service.telemetry.metrics import SLOTS_VARIABLE, forget_worker

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0
HEALTHY_AFTER_S = 30.0
KILL_MARGIN_S = 5.0
TICK_S = 0.5

log = get_logger(__name__)


@dataclass
class Worker:
    """One place in the pool, and the process that fills it."""

    number: int
    process: SpawnProcess | None = None
    link: WorkerLink | None = None
    started_s: float = 0.0
    pause_s: float = FIRST_PAUSE_S
    start_at_s: float = 0.0


class Supervisor:
    """Runs `settings.workers` processes until a signal ends them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._workers = [Worker(number) for number in range(settings.workers)]
        self._signal: int | None = None
        self._metrics_folder = Path()
        self._context = multiprocessing.get_context("spawn")

    def run(self) -> int:
        """Supervise; returns the exit code: 0 when every worker drained cleanly."""
        configure_logging(self._settings.log_level)
        with (
            bind(self._settings.host, self._settings.port) as reserved,
            tempfile.TemporaryDirectory() as folder,
            admin_server(self._settings, PipedWorkers(self._links)),
        ):
            # Bound but not listening: holds the port without ever being given a connection.
            self._metrics_folder = Path(folder)
            settings = self._settings.model_copy(update={"port": reserved.getsockname()[1]})
            signal.signal(signal.SIGTERM, self._remember)
            signal.signal(signal.SIGINT, self._remember)
            signal.signal(signal.SIGHUP, self._forward)
            log.info("supervising", port=settings.port, workers=settings.workers)
            while self._signal is None:
                self._start_due(settings)
                self._reap()
            return self._stop(self._signal)

    def _remember(self, number: int, _: FrameType | None) -> None:
        self._signal = number

    def _forward(self, number: int, _: FrameType | None) -> None:
        for worker in self._workers:
            if worker.process is not None and worker.process.is_alive() and worker.process.pid is not None:
                os.kill(worker.process.pid, number)

    def _links(self) -> list[tuple[int, WorkerLink | None]]:
        return [(worker.number, worker.link) for worker in self._workers]

    def _metrics_file(self, worker: Worker) -> Path:
        """Where a worker counts; its successor goes on there."""
        return self._metrics_folder / f"worker-{worker.number}"

    def _start_due(self, settings: Settings) -> None:
        now = time.monotonic()
        for worker in self._workers:
            if worker.process is None and now >= worker.start_at_s:
                os.environ[SLOTS_VARIABLE] = str(self._metrics_file(worker))
                ours, its = self._context.Pipe()
                worker.process = self._context.Process(
                    target=_work, args=(settings, its), name=f"worker-{worker.number}", daemon=True
                )
                _start_deaf(worker.process)
                its.close()
                worker.link = WorkerLink(ours)
                worker.started_s = now
                log.info("worker_started", worker=worker.number, pid=worker.process.pid)

    def _reap(self) -> None:
        """Wait a little for a worker to die, and plan the start of its successor."""
        sentinels = [worker.process.sentinel for worker in self._workers if worker.process is not None]
        if not wait(sentinels, timeout=TICK_S):
            return
        now = time.monotonic()
        for worker in self._workers:
            process = worker.process
            if process is None or process.is_alive():
                continue
            healthy = now - worker.started_s >= HEALTHY_AFTER_S
            worker.pause_s = FIRST_PAUSE_S if healthy else min(worker.pause_s * 2, LONGEST_PAUSE_S)
            worker.start_at_s = now + worker.pause_s
            worker.process = worker.link = None
            log.error(
                "worker_died", worker=worker.number, exit_code=process.exitcode, restart_in_s=worker.pause_s
            )
            forget_worker(self._metrics_file(worker))

    def _stop(self, number: int) -> int:
        running = [worker.process for worker in self._workers if worker.process is not None]
        for process in running:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, number)
        until = (
            time.monotonic() + self._settings.drain_pause_s + self._settings.drain_timeout_s + KILL_MARGIN_S
        )
        for process in running:
            process.join(max(0.0, until - time.monotonic()))
            if process.is_alive():
                log.error("worker_killed", pid=process.pid)
                process.kill()
                process.join()
        codes = [process.exitcode for process in running]
        log.info("stopped", exit_codes=codes)
        # A worker that the signal itself ended had not begun to serve.
        return 0 if all(code in (0, -number) for code in codes) else 1


def _start_deaf(process: SpawnProcess) -> None:
    """Start a process that inherits a blocked SIGHUP: one that comes early waits until it can be handled."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(settings: Settings, connection: Connection) -> None:
    """A worker's whole life."""
    from service.server import serve

    parent: BaseProcess | None = multiprocessing.parent_process()
    serve(settings, parent, connection)


__all__ = ["Supervisor"]
