"""Writes blobs into Redis or a cluster, many per round trip; for loading, not for the request path.

Writes are plain SETs, so repeating one is harmless: a broken connection or a moved slot is retried
with the whole batch. Invariant: when `write` returns, every blob of the batch is stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from service.features.cluster import slot_of, slot_owners
from service.features.connection import Address, Connection, pack
from service.features.errors import StoreLostError, StoreReplyError
from service.telemetry.log import get_logger

RETRIES = 6
FIRST_PAUSE_S = 0.2
MAX_INLINE_COMMANDS = 500  # per write, so that a server's output buffer stays small
TRANSIENT = ("MOVED", "ASK", "CLUSTERDOWN", "LOADING", "TRYAGAIN")

log = get_logger(__name__)


class BlobWriter:
    """Writes to one server or a cluster.

    Args:
        seeds: The server, or some of the cluster's.
        cluster: Which of the two.
        expire_s: After which Redis forgets a row that is not written again; 0: never.
        timeout_s: For connecting, and for each round trip.
        retries: Attempts at a batch, with growing pauses between them.
    """

    def __init__(
        self,
        seeds: Sequence[Address],
        *,
        cluster: bool,
        expire_s: int = 0,
        timeout_s: float = 10.0,
        retries: int = RETRIES,
    ) -> None:
        self._seeds = list(seeds)
        self._cluster = cluster
        self._timeout_s = timeout_s
        self._retries = retries
        text = str(expire_s).encode()
        self._tail = b"$2\r\nEX\r\n$%d\r\n%b\r\n" % (len(text), text) if expire_s else b""
        self._head = b"*5\r\n$3\r\nSET\r\n" if expire_s else b"*3\r\n$3\r\nSET\r\n"
        self._connections: dict[str, Connection] = {}
        self._owners: list[str] = []

    async def write(self, keys: Sequence[bytes], blobs: Sequence[bytes]) -> None:
        """Store n blobs.

        Raises:
            StoreLostError: The store cannot be reached, after all retries.
            StoreReplyError: It refuses to store them.
        """
        pause_s = FIRST_PAUSE_S
        for left in reversed(range(self._retries)):
            try:
                await self._write_once(keys, blobs)
            except (StoreLostError, StoreReplyError) as error:
                if not left or (isinstance(error, StoreReplyError) and not str(error).startswith(TRANSIENT)):
                    raise
                log.warning("feature_write_retried", error=str(error), pause_s=pause_s)
                self.close()
                await asyncio.sleep(pause_s)
                pause_s *= 2
            else:
                return

    def close(self) -> None:
        """Close all connections."""
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()
        self._owners = []

    async def _write_once(self, keys: Sequence[bytes], blobs: Sequence[bytes]) -> None:
        commands: dict[str, list[bytes]] = {}
        if self._cluster and not self._owners:
            await self._learn()
        head, tail = self._head, self._tail
        for key, blob in zip(keys, blobs, strict=True):
            owner = self._owners[slot_of(key)] if self._cluster else self._seeds[0].name
            command = b"%b$%d\r\n%b\r\n$%d\r\n%b\r\n%b" % (head, len(key), key, len(blob), blob, tail)
            commands.setdefault(owner, []).append(command)
        await asyncio.gather(*(self._send(owner, some) for owner, some in commands.items()))

    async def _send(self, owner: str, commands: list[bytes]) -> None:
        connection = await self._connection(owner)
        try:
            async with asyncio.timeout(self._timeout_s):
                await asyncio.gather(
                    *(
                        connection.ask(b"".join(some), len(some))
                        for start in range(0, len(commands), MAX_INLINE_COMMANDS)
                        if (some := commands[start : start + MAX_INLINE_COMMANDS])
                    )
                )
        except TimeoutError:
            connection.close()
            raise StoreLostError(f"{owner}: no answer in {self._timeout_s:g} s") from None

    async def _connection(self, name: str) -> Connection:
        connection = self._connections.get(name)
        if connection is None or connection.closed:
            connection = await Connection.connect(self._address(name), timeout_s=self._timeout_s)
            self._connections[name] = connection
        return connection

    def _address(self, name: str) -> Address:
        for seed in self._seeds:
            if seed.name == name:
                return seed
        host, _, port = name.rpartition(":")
        return replace(self._seeds[0], host=host, port=int(port), path=None)

    async def _learn(self) -> None:
        """Ask the first seed that answers who owns which slots."""
        for last, seed in enumerate(self._seeds, 1 - len(self._seeds)):
            try:
                connection = await self._connection(seed.name)
                reply = await connection.ask(pack("CLUSTER", "SLOTS"))
            except StoreLostError:
                if last == 0:
                    raise
                continue
            owners = slot_owners(reply, seed.host)
            if owners is None:
                raise StoreReplyError(f"CLUSTERDOWN {seed.name} knows no server for some slots")
            self._owners = owners
            return


__all__ = ["BlobWriter"]
