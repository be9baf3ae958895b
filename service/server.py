"""One serving process: socket, event loop, signals and drain.

On SIGTERM: not ready at once; keep answering for `drain_pause_s` (each reply asks its caller to
connect elsewhere); stop listening; let requests finish; exit 0. SIGINT skips the pause, a second one
stops waiting. SIGHUP reloads bundle and routing. Invariant: a request that reached an accepted
connection is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import signal
import socket
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import cast

import uvicorn

from service.admin import admin_server
from service.api.operate import Operator
from service.app import Application, create_app
from service.links import CommandReader, OwnProcess
from service.protocol import Outbox, ReplyProtocol
from service.settings import Settings
from service.sockets import bind, ignore_new_connections
from service.telemetry.log import configure_logging, get_logger

BACKLOG = 2048
LINGER_S = 0.5
POLL_S = 0.02
ACCEPT_REST_S = 0.05  # for the loop to accept what the kernel had queued

log = get_logger(__name__)


class DrainingServer(uvicorn.Server):
    """Uvicorn with our reading of signals: it drains instead of closing at once.

    Args:
        app: The application.
        settings: Of this process.
        sock: What it listens on.
        parent: The supervisor; its end drains this process too.
        commands: That the supervisor sends.
        own: Told which loop serves, where the admin API runs in this process.
    """

    def __init__(
        self,
        app: Application,
        settings: Settings,
        sock: socket.socket,
        *,
        parent: BaseProcess | None = None,
        commands: CommandReader | None = None,
        own: OwnProcess | None = None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                loop="uvloop",
                http=cast("type[asyncio.Protocol]", functools.partial(ReplyProtocol, Outbox())),
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=BACKLOG,
                timeout_graceful_shutdown=max(1, round(settings.drain_timeout_s)),
            )
        )
        self._app = app
        self._sock = sock
        self._pause_s = settings.drain_pause_s
        self._parent = parent
        self._commands = commands
        self._own = own
        self._drain: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Turn signals into a drain; uvicorn's own version would close and then raise them again."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.drain, self._pause_s)
        loop.add_signal_handler(signal.SIGINT, self.drain, 0.0)
        loop.add_signal_handler(signal.SIGHUP, self._app.serving.request_reload)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        if self._parent is not None:
            loop.add_reader(self._parent.sentinel, self._parent_ended)
        if self._commands is not None:
            self._commands.start()
        if self._own is not None:
            self._own.loop = loop
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGTERM)
            loop.remove_signal_handler(signal.SIGINT)
            if self._commands is not None:
                self._commands.stop()
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
            loop.remove_signal_handler(signal.SIGHUP)

    def drain(self, pause_s: float) -> None:
        """Begin to drain; asked a second time without a pause, stop waiting."""
        if self._drain is None:
            self._drain = asyncio.get_running_loop().create_task(self._drain_and_stop(pause_s))
        elif not pause_s:
            self.should_exit = self.force_exit = True

    async def _drain_and_stop(self, pause_s: float) -> None:
        log.info("drain_begun", pause_s=pause_s)
        self._app.serving.begin_drain()
        await asyncio.sleep(pause_s)
        try:
            ignore_new_connections(self._sock)
        except OSError as error:
            log.warning("listener_closes_unfiltered", error=str(error))
        await asyncio.sleep(ACCEPT_REST_S)
        for server in self.servers:
            server.close()
        # Connections accepted last may have their first request on the way: closing them now would
        # fail it. Each one closes itself after its next reply.
        left = LINGER_S
        while self.server_state.connections and left > 0:
            await asyncio.sleep(POLL_S)
            left -= POLL_S
        self.should_exit = True

    def _parent_ended(self) -> None:
        if self._parent is not None:
            asyncio.get_running_loop().remove_reader(self._parent.sentinel)
            self._parent = None
            log.warning("supervisor_gone")
            self.drain(0.0)


def serve(
    settings: Settings, parent: BaseProcess | None = None, connection: Connection | None = None
) -> None:
    """Serve until drained; returns normally after a clean stop.

    Args:
        settings: Of the service.
        parent: The supervisor, which then runs the admin API; None without one.
        connection: Its commands come here.
    """
    # A SIGHUP that comes before the loop can handle it waits, instead of ending the process.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    configure_logging(settings.log_level)
    sock = bind(settings.host, settings.port)
    log.info("listening", host=settings.host, port=sock.getsockname()[1], store=str(settings.store))
    app = create_app(settings)
    app.serving.before_ready = keep_heap
    operator = Operator(app.serving)
    if parent is not None:
        commands = None if connection is None else CommandReader(connection, operator.do)
        DrainingServer(app, settings, sock, parent=parent, commands=commands).run(sockets=[sock])
        return
    own = OwnProcess(operator.do)
    with admin_server(settings, own):
        DrainingServer(app, settings, sock, own=own).run(sockets=[sock])


def keep_heap() -> None:
    """Take what is there out of the sight of the garbage collector.

    Its full runs would walk over all imported modules while requests wait, some 200 ms on a slow core.
    """
    gc.collect()
    gc.freeze()


__all__ = ["DrainingServer", "serve"]
