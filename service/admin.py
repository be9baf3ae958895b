"""The admin API's own server: a socket and a thread beside the one that serves or supervises.

Reads the file of its tokens. Invariant: it listens only where the settings give it tokens.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from service.api.admin import AdminApp, Fleet
from service.api.auth import Tokens
from service.errors import StartupError
from service.settings import Settings
from service.telemetry.log import get_logger

JOIN_S = 5.0

log = get_logger(__name__)


@contextmanager
def admin_server(settings: Settings, fleet: Fleet) -> Iterator[None]:
    """Answer for a fleet while the block runs; nothing at all where the settings give no tokens.

    Raises:
        TokensError: The file of tokens cannot be used.
        StartupError: The address is not ours, or taken.
    """
    if settings.admin_tokens_file is None:
        yield
        return
    app = AdminApp(fleet, Tokens.read(settings.admin_tokens_file))
    sock = _bind(settings.admin_host, settings.admin_address_port)
    log.info("admin_listening", host=settings.admin_host, port=sock.getsockname()[1])
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            loop="asyncio",
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=1,
        )
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, name="admin", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(JOIN_S)


def _bind(host: str, port: int) -> socket.socket:
    """A socket that nobody shares: two services must not answer for each other.

    Raises:
        StartupError: The address is not ours, or taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise StartupError(f"admin API: cannot listen on {host}:{port}: {error.strerror}") from None


__all__ = ["admin_server"]
