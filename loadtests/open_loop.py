"""Requests at planned times, whatever the service does: every latency counts from the intended start.

    python -m loadtests.open_loop --port 8000 --rate 500 --seconds 5 --bodies FOLDER [--connections 32]

posts evenly spaced; `loadtests.rate_run` follows other plans. A request that finds all connections taken
waits here, and that wait counts too, so a stall of the service shows in full (no coordinated omission).
FOLDER holds bodies as files `*.json`, posted in turn. Prints one line of JSON. One thread on sockets and
epoll: what it measures is not its own event loop.
"""

from __future__ import annotations

import argparse
import json
import math
import select
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtests.arrivals import Stretch, arrivals

RECEIVE_BYTES = 1 << 16
GRACE_S = 5.0  # for the last replies


@dataclass(frozen=True)
class Told:
    """What became of one request.

    Attributes:
        number: Of the request, from 0.
        intended_s, sent_s, done_s: Since the plan began; NaN for what did not happen.
        status: 0 without a reply.
        body: Of the reply.
    """

    number: int
    intended_s: float
    sent_s: float
    done_s: float
    status: int
    body: bytes


@dataclass
class Connection:
    """One kept-alive connection, and the request on it."""

    sock: socket.socket
    number: int = -1
    intended_s: float = 0.0
    sent_s: float = 0.0
    unsent: memoryview = field(default_factory=lambda: memoryview(b""))
    received: bytearray = field(default_factory=bytearray)
    length: int | None = None  # of the whole reply, once its head is there
    busy: bool = False


@dataclass
class Seen:
    """Outcomes in order of completion: (status, latency since the intended start, since sending) in s."""

    replies: list[tuple[int, float, float]] = field(default_factory=list)
    num_broken: int = 0
    num_unanswered: int = 0
    no_retry_after: int = 0


class OpenLoop:
    """Posts at planned times.

    Args:
        port: Of the service on 127.0.0.1.
        starts: (n,) float64, rising: when requests are to start, in seconds.
        bodies: Posted in turn.
        connections: Most requests on their way at a time.
        path: Posted to.
        tell: Called with the end of every request; None where the counts of `seen` are enough.
    """

    def __init__(
        self,
        port: int,
        starts: NDArray[np.float64],
        bodies: Sequence[bytes],
        *,
        connections: int,
        path: str = "/score",
        tell: Callable[[Told], None] | None = None,
    ) -> None:
        self._address = ("127.0.0.1", port)
        self._starts = starts.tolist()
        self._requests = [_request(path, body) for body in bodies]
        self._tell = tell
        self._epoll = select.epoll()
        self._by_fd: dict[int, Connection] = {}
        self._idle: deque[Connection] = deque()
        self._late: deque[int] = deque()
        self._begun = 0.0
        self.seen = Seen()
        for _ in range(connections):
            self._connect()

    def run(self, seconds: float) -> Seen:
        """Post what is planned, then wait for what is on its way.

        Args:
            seconds: How long the plan lasts; a few more are given to the last replies.
        """
        starts, total, sent = self._starts, len(self._starts), 0
        self._begun = begun = time.perf_counter() + 0.05
        end = begun + seconds + GRACE_S
        while sent < total or self._late or self._num_busy:
            now = time.perf_counter()
            if now > end:
                break
            while sent < total and begun + starts[sent] <= now:
                self._post(sent)
                sent += 1
            due = begun + starts[sent] if sent < total else now + 0.05
            self._wait(max(due - time.perf_counter(), 0.0))
        self._end()
        return self.seen

    def _end(self) -> None:
        """Take note of what has no reply, and close everything."""
        self.seen.num_unanswered = self._num_busy + len(self._late)
        for connection in self._by_fd.values():
            if connection.busy:
                self._ended(connection.number, connection.sent_s, math.nan, 0, b"")
            connection.sock.close()
        for number in self._late:
            self._ended(number, math.nan, math.nan, 0, b"")
        self._epoll.close()

    def _ended(self, number: int, sent: float, done: float, status: int, body: bytes) -> None:
        if self._tell is not None:
            begun = self._begun
            self._tell(Told(number, self._starts[number], sent - begun, done - begun, status, body))

    @property
    def _num_busy(self) -> int:
        return len(self._by_fd) - len(self._idle)

    def _connect(self) -> None:
        sock = socket.create_connection(self._address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)  # noqa: FBT003 - of the socket module
        connection = Connection(sock)
        self._by_fd[sock.fileno()] = connection
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        self._idle.append(connection)

    def _post(self, number: int) -> None:
        if not self._idle:
            self._late.append(number)
            return
        connection = self._idle.popleft()
        connection.busy, connection.number = True, number
        connection.intended_s, connection.sent_s = self._begun + self._starts[number], time.perf_counter()
        connection.unsent = memoryview(self._requests[number % len(self._requests)])
        self._send(connection)

    def _send(self, connection: Connection) -> None:
        try:
            sent = connection.sock.send(connection.unsent)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._broken(connection)
            return
        connection.unsent = connection.unsent[sent:]
        more = select.EPOLLOUT if connection.unsent else 0
        if more or sent == 0:
            self._epoll.modify(connection.sock.fileno(), select.EPOLLIN | more)

    def _wait(self, timeout_s: float) -> None:
        """Serve sockets until the next request is due; select's time is finer than epoll's."""
        if not select.select([self._epoll], [], [], timeout_s)[0]:
            return
        for fd, event in self._epoll.poll(0):
            connection = self._by_fd.get(fd)
            if connection is None:
                continue
            if event & select.EPOLLOUT:
                self._epoll.modify(fd, select.EPOLLIN)
                self._send(connection)
            if event & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                self._receive(connection)

    def _receive(self, connection: Connection) -> None:
        try:
            data = connection.sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._broken(connection)
            return
        connection.received += data
        if connection.length is None:
            connection.length = _reply_length(connection.received)
        if connection.length is not None and len(connection.received) >= connection.length:
            self._answered(connection)

    def _answered(self, connection: Connection) -> None:
        now = time.perf_counter()
        status = int(connection.received[9:12])
        end_of_head = connection.received.find(b"\r\n\r\n")
        head = bytes(connection.received[:end_of_head]).lower()
        if status == 429 and b"retry-after:" not in head:
            self.seen.no_retry_after += 1
        self.seen.replies.append((status, now - connection.intended_s, now - connection.sent_s))
        if self._tell is not None:
            body = bytes(connection.received[end_of_head + 4 :])
            self._ended(connection.number, connection.sent_s, now, status, body)
        connection.received.clear()
        connection.length, connection.busy = None, False
        if b"connection: close" in head:
            self._drop(connection)
            self._connect()
        else:
            self._idle.append(connection)
        if self._late:
            self._post(self._late.popleft())

    def _broken(self, connection: Connection) -> None:
        if connection.busy:
            self.seen.num_broken += 1
            self._ended(connection.number, connection.sent_s, time.perf_counter(), 0, b"")
        else:
            self._idle.remove(connection)
        self._drop(connection)
        self._connect()

    def _drop(self, connection: Connection) -> None:
        fd = connection.sock.fileno()
        self._epoll.unregister(fd)
        del self._by_fd[fd]
        connection.sock.close()


def _request(path: str, body: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _reply_length(received: bytearray) -> int | None:
    """Bytes of the whole reply; None while its head is incomplete."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return None
    for line in bytes(received[:end]).lower().split(b"\r\n")[1:]:
        if line.startswith(b"content-length:"):
            return end + 4 + int(line.partition(b":")[2])
    raise RuntimeError("a reply without content-length")


def summary(seen: Seen, seconds: float) -> dict[str, Any]:
    """Counts by status, the rate of good replies, and percentiles of these, ms."""
    good = np.array([row[1:] for row in seen.replies if row[0] == 200]).reshape(-1, 2) * 1000
    figures: dict[str, Any] = {
        "statuses": dict(sorted(Counter(str(row[0]) for row in seen.replies).items())),
        "good_rate": len(good) / seconds,
        "num_broken": seen.num_broken,
        "num_unanswered": seen.num_unanswered,
        "no_retry_after": seen.no_retry_after,
    }
    for name, column in (("latency_ms", 0), ("since_sent_ms", 1)):
        values = good[:, column]
        figures[name] = {
            f"p{share:g}": round(float(np.percentile(values, share)), 3) if len(values) else math.nan
            for share in (50, 90, 99, 99.9)
        }
    return figures


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--rate", type=float, required=True, help="requests per second")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--bodies", type=Path, required=True, help="folder of *.json")
    parser.add_argument("--connections", type=int, default=32)
    options = parser.parse_args()
    bodies = [file.read_bytes() for file in sorted(options.bodies.glob("*.json"))]
    if not bodies:
        raise SystemExit(f"{options.bodies} holds no *.json")
    starts = arrivals([Stretch(options.seconds, options.rate, options.rate)], "even", seed=0)
    loop = OpenLoop(options.port, starts, bodies, connections=options.connections)
    begun = time.process_time()
    seen = loop.run(options.seconds)
    figures = summary(seen, options.seconds) | {"cpu_s": round(time.process_time() - begun, 3)}
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
