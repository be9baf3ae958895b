"""HTTP of one serving process: uvicorn's protocol, with the replies of a loop iteration written at its end.

Uvicorn writes head and body of a reply apart, and a client on the same machine wakes at each write and
takes the core from the requests that are still to run. Here what is written in one iteration of the event
loop leaves in one system call per connection, after the runs of that iteration. Invariants: bytes keep their
order; closing writes what is held; nothing is held beyond the next iteration or above `MAX_HELD_BYTES`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HELD_BYTES = 65_536
"""What one connection may hold; more is written at once, so that a slow reader is noticed."""


class Outbox:
    """The connections of one event loop that hold bytes."""

    def __init__(self) -> None:
        self._holders: list[HeldTransport] = []

    def add(self, holder: HeldTransport) -> None:
        """Have a connection written at the end of this iteration."""
        if not self._holders:
            asyncio.get_running_loop().call_soon(self._write)
        self._holders.append(holder)

    def _write(self) -> None:
        holders, self._holders = self._holders, []
        for holder in holders:
            holder.flush()


class HeldTransport(asyncio.Transport):
    """A transport that holds what is written until its outbox writes it.

    Args:
        transport: Of the connection.
        outbox: Of the event loop.
    """

    def __init__(self, transport: asyncio.Transport, outbox: Outbox) -> None:
        super().__init__()
        self._transport = transport
        self._outbox = outbox
        self._held: list[bytes] = []
        self._num_bytes = 0
        # What needs no change is the transport's own.
        self.get_extra_info = transport.get_extra_info  # type: ignore[method-assign]
        self.is_closing = transport.is_closing  # type: ignore[method-assign]
        self.pause_reading = transport.pause_reading  # type: ignore[method-assign]
        self.resume_reading = transport.resume_reading  # type: ignore[method-assign]
        self.is_reading = transport.is_reading  # type: ignore[method-assign]
        self.set_protocol = transport.set_protocol  # type: ignore[method-assign]
        self.get_protocol = transport.get_protocol  # type: ignore[method-assign]

    def write(self, data: Any) -> None:
        """Hold bytes for the end of this iteration."""
        held = self._held
        if not held:
            self._outbox.add(self)
        held.append(data)
        self._num_bytes += len(data)
        if self._num_bytes > MAX_HELD_BYTES:
            self.flush()

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        """Hold several pieces."""
        for data in list_of_data:
            self.write(data)

    def flush(self) -> None:
        """Write what is held, in one piece."""
        if self._held:
            data = b"".join(self._held)
            self._held.clear()
            self._num_bytes = 0
            if not self._transport.is_closing():
                self._transport.write(data)

    def close(self) -> None:
        """Write what is held, then close."""
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        """Close at once; what is held is lost."""
        self._held.clear()
        self._num_bytes = 0
        self._transport.abort()

    def can_write_eof(self) -> bool:
        """As the transport says."""
        return self._transport.can_write_eof()

    def write_eof(self) -> None:
        """Write what is held, then end the stream."""
        self.flush()
        self._transport.write_eof()

    def get_write_buffer_size(self) -> int:
        """Bytes not yet taken by the system, held ones among them."""
        return self._num_bytes + self._transport.get_write_buffer_size()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Of the transport; held bytes have their own limit."""
        self._transport.set_write_buffer_limits(high, low)


class ReplyProtocol(HttpToolsProtocol):
    """Uvicorn's HTTP/1.1 by httptools, on held transports.

    Args:
        outbox: Shared by all connections of the event loop.
        options: Uvicorn's.
    """

    def __init__(self, outbox: Outbox, **options: Any) -> None:
        super().__init__(**options)
        self._outbox = outbox

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin on a new connection."""
        super().connection_made(HeldTransport(transport, self._outbox))


__all__ = ["HeldTransport", "Outbox", "ReplyProtocol"]
