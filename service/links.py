"""Commands to workers, and their answers: over pipes from the supervisor, or within one process.

A pipe carries numbered commands one way and answers the other, several at a time. Invariant: an answer
reaches the question that it belongs to, or none.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Iterable
from multiprocessing.connection import Connection
from typing import Any

from service.telemetry.log import get_logger

Answer = dict[str, Any]
Do = Callable[[str], Coroutine[Any, Any, Answer]]

STARTING = "is starting"
ENDED = "has ended"
FAILED = "failed; its log has the cause"

log = get_logger(__name__)


class WorkerLink:
    """The supervisor's end of a worker's pipe; used from one event loop.

    Args:
        connection: The end.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._reads = False

    async def ask(self, command: str, timeout_s: float) -> Answer:
        """The worker's answer, or an `error`."""
        loop = asyncio.get_running_loop()
        number = next(self._numbers)
        answer = self._waiting[number] = loop.create_future()
        try:
            self._connection.send((number, command))
            if not self._reads:
                loop.add_reader(self._connection.fileno(), self._read)
                self._reads = True
            return await asyncio.wait_for(answer, timeout_s)
        except TimeoutError:
            return {"error": f"did not answer within {timeout_s:g} s"}
        except OSError:
            return {"error": ENDED}
        finally:
            del self._waiting[number]

    def _read(self) -> None:
        try:
            while self._connection.poll():
                number, answer = self._connection.recv()
                waiting = self._waiting.get(number)
                if waiting is not None and not waiting.done():
                    waiting.set_result(answer)
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(self._connection.fileno())
            self._connection.close()
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_result({"error": ENDED})


class PipedWorkers:
    """All workers of a supervisor.

    Args:
        links: Gives each worker's number and link; None while it is not there.
    """

    def __init__(self, links: Callable[[], Iterable[tuple[int, WorkerLink | None]]]) -> None:
        self._links = links

    async def ask(self, command: str, timeout_s: float) -> list[Answer]:
        """Answers of all workers, which work on them at the same time."""

        async def one(number: int, link: WorkerLink | None) -> Answer:
            answer = {"error": STARTING} if link is None else await link.ask(command, timeout_s)
            return {"worker": number, **answer}

        return list(await asyncio.gather(*(one(number, link) for number, link in self._links())))


class OwnProcess:
    """The one worker that this process is, asked from the thread of the admin API.

    Args:
        do: Carries out a command on the event loop that serves.
    """

    def __init__(self, do: Do) -> None:
        self._do = do
        self.loop: asyncio.AbstractEventLoop | None = None

    async def ask(self, command: str, timeout_s: float) -> list[Answer]:
        """The answer of the one worker."""
        if self.loop is None:
            return [{"worker": 0, "error": STARTING}]
        if self.loop.is_closed():
            return [{"worker": 0, "error": ENDED}]
        asked = asyncio.run_coroutine_threadsafe(self._do(command), self.loop)
        try:
            answer = await asyncio.wait_for(asyncio.wrap_future(asked), timeout_s)
        except TimeoutError:
            answer = {"error": f"did not answer within {timeout_s:g} s"}
        return [{"worker": 0, **answer}]


class CommandReader:
    """A worker's end of its pipe; commands are carried out on its event loop.

    Args:
        connection: The end.
        do: Carries out one command.
    """

    def __init__(self, connection: Connection, do: Do) -> None:
        self._connection = connection
        self._do = do
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Read from now on."""
        asyncio.get_running_loop().add_reader(self._connection.fileno(), self._read)

    def stop(self) -> None:
        """Read no more."""
        if not self._connection.closed:
            asyncio.get_running_loop().remove_reader(self._connection.fileno())
            self._connection.close()

    def _read(self) -> None:
        try:
            while self._connection.poll():
                number, command = self._connection.recv()
                task = asyncio.get_running_loop().create_task(self._answer(number, command))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        except (EOFError, OSError):  # the supervisor is gone, which is noticed elsewhere
            self.stop()

    async def _answer(self, number: int, command: str) -> None:
        try:
            answer = await self._do(command)
        except Exception:
            log.exception("command_failed", command=command)
            answer = {"error": FAILED}
        if not self._connection.closed:
            self._connection.send((number, answer))


__all__ = ["Answer", "CommandReader", "OwnProcess", "PipedWorkers", "WorkerLink"]
