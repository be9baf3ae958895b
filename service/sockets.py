"""Listening sockets that several processes can share: one each, on the same port."""

from __future__ import annotations

import ctypes
import socket
import struct


def bind(host: str, port: int) -> socket.socket:
    """A TCP socket of our own on a port that other workers may share.

    Raises:
        OSError: The address is not ours, or taken by someone who does not share it.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


SO_ATTACH_FILTER = 26  # Linux, asm-generic/socket.h; Python has no name for it
DROP_ALL = struct.pack("HBBI", 0x06, 0, 0, 0)  # one classic BPF instruction: return 0, keep no byte


def ignore_new_connections(sock: socket.socket) -> None:
    """Make the kernel drop further connection attempts to a listening socket.

    What waits in its queue can still be accepted; without this, connections that arrive between the
    last accept and the close are reset. Callers retry and find the port closed or someone else on it.

    Raises:
        OSError: The system has no such filter.
    """
    code = ctypes.create_string_buffer(DROP_ALL, len(DROP_ALL))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(code)))


__all__ = ["bind", "ignore_new_connections"]
