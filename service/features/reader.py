"""Values of many keys in one round trip, from one Redis server.

`BlobReader` is what the Redis source needs of a server or a cluster. Invariant: `done` gets one value
per key, in order, exactly once: bytes, None where there is no such key, `UNREAD` where it could not
be read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import hiredis

from service.features.blob import UNREAD
from service.features.connection import Address, Replies
from service.features.keys import KeySpace
from service.features.node import Node, NodeOptions
from service.telemetry.log import get_logger
from service.telemetry.metrics import FeatureMetrics

Wanted = Sequence[tuple[KeySpace, Sequence[str]]]
OnValues = Callable[[Sequence[Any]], None]

log = get_logger(__name__)


class BlobReader(Protocol):
    """Reads keys; lives on one event loop.

    Attributes:
        name: Of the store, for people; without credentials.
    """

    name: str

    def read(self, wanted: Wanted, done: OnValues) -> None:
        """Ask for the values of ids of one or more key spaces, in that order."""
        ...

    async def warm(self) -> bool:
        """Connect ahead of the first request; False when the store cannot be reached."""
        ...

    def close(self) -> None:
        """Close all connections."""
        ...


class ServerReader:
    """Reads from one server: one MGET per call.

    Args:
        address: Of the server.
        options: How to treat it.
        metrics: Counts failures.
    """

    def __init__(self, address: Address, options: NodeOptions, metrics: FeatureMetrics) -> None:
        self._node = Node(address, options, metrics)
        self.name = f"redis {address.name}"

    def read(self, wanted: Wanted, done: OnValues) -> None:
        """One MGET."""
        count = sum(len(ids) for _, ids in wanted)
        body = b"".join([space.bulk(ids) for space, ids in wanted])

        def answered(replies: Replies | None) -> bool:
            values = None if replies is None else replies[0]
            if isinstance(values, list) and len(values) == count:
                done(values)
                return True
            done([UNREAD] * count)
            if isinstance(values, hiredis.ReplyError):
                log.warning("feature_store_refused", error=str(values))
                return True
            return values is None

        self._node.call(b"*%d\r\n$4\r\nMGET\r\n%b" % (count + 1, body), 1, answered)

    async def warm(self) -> bool:
        """Connect."""
        return await self._node.warm()

    def close(self) -> None:
        """Close all connections."""
        self._node.close()


__all__ = ["BlobReader", "OnValues", "ServerReader", "Wanted"]
