"""Requests without a pause while something happens, every one accounted for.

Talks to 127.0.0.1 only. Invariant: each request that was begun counts once, as answered 200 or as failed with
a reason; nothing is sent a second time, also not where a kept-alive connection turns out to be closed.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

REQUESTS_PER_CONNECTION = 40


@dataclass
class Tally:
    """What became of the requests.

    Attributes:
        sent: Requests begun.
        failed: Those not answered 200, by reason.
        bundles: Replies by the bundle that scored.
        slowest_s: The longest time a request took.
    """

    sent: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    bundles: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0

    def figures(self) -> dict[str, float]:
        """For the closing figures."""
        return {
            "requests_sent": self.sent,
            "requests_failed": sum(self.failed.values()),
            "slowest_ms": round(self.slowest_s * 1000, 1),
        }


class Load:
    """Threads that post one body again and again until the `with` block ends.

    Args:
        port: On 127.0.0.1.
        body: Posted to /score.
        token: Sent as bearer token; none where empty.
        threads: Requests on their way at a time.
        pause_s: Of each thread between two requests.
    """

    def __init__(
        self, port: int, body: dict[str, object], *, token: str = "", threads: int = 3, pause_s: float = 0.02
    ) -> None:
        self._port = port
        self._body = json.dumps(body).encode()
        self._headers = {"content-type": "application/json"} | (
            {"authorization": f"Bearer {token}"} if token else {}
        )
        self._pause_s = pause_s
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._post, daemon=True) for _ in range(threads)]
        self.tally = Tally()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _post(self) -> None:
        connection: http.client.HTTPConnection | None = None
        on_this = 0
        while not self._stop.is_set():
            if connection is None:
                # New ones all along: balancing between pods happens when a connection is made.
                connection, on_this = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10), 0
            begun = time.perf_counter()
            reason, closes, bundle = self._once(connection)
            self._count(reason, bundle, time.perf_counter() - begun)
            on_this += 1
            if reason or closes or on_this >= REQUESTS_PER_CONNECTION:
                connection.close()
                connection = None
            self._stop.wait(self._pause_s)
        if connection is not None:
            connection.close()

    def _once(self, connection: http.client.HTTPConnection) -> tuple[str, bool, str]:
        try:
            connection.request("POST", "/score", self._body, self._headers)
            reply = connection.getresponse()
            text = reply.read()
        except (OSError, http.client.HTTPException) as error:
            return f"{type(error).__name__}: {error}", True, ""
        if reply.status != http.client.OK:
            return f"{reply.status} {text[:200]!r}", reply.will_close, ""
        return "", reply.will_close, str(json.loads(text)["model"]["bundle"])

    def _count(self, reason: str, bundle: str, seconds: float) -> None:
        with self._lock:
            self.tally.sent += 1
            self.tally.slowest_s = max(self.tally.slowest_s, seconds)
            if reason:
                self.tally.failed[reason] += 1
            else:
                self.tally.bundles[bundle] += 1
