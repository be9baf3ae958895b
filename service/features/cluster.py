"""Values of many keys from a Redis cluster: one pipelined round trip to each server concerned.

Which server owns a key's slot comes from CLUSTER SLOTS; MOVED and ASK replies are followed, and MOVED
or a lost server asks for the slots anew. A server that does not answer costs its own keys, not those
of others: what has come after `PARTIAL_SHARE` of the time limit is handed over, the rest is `UNREAD`.
Keys have no hash tags (see `keys`), so commands are single GETs, which work while slots move.
"""

from __future__ import annotations

import asyncio
from binascii import crc_hqx
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import hiredis

from service.features.blob import UNREAD
from service.features.connection import Address, Replies, pack
from service.features.node import Node, NodeOptions
from service.features.reader import OnValues, Wanted
from service.telemetry.log import get_logger
from service.telemetry.metrics import FeatureMetrics

NUM_SLOTS: Final = 16384
MAX_HOPS: Final = 3
PARTIAL_SHARE: Final = 0.8
REFRESH_PAUSE_S: Final = 1.0
ASKING: Final = pack("ASKING")

log = get_logger(__name__)


def slot_of(key: bytes) -> int:
    """Slot of a key without hash tag: CRC16 (XMODEM) modulo 16384, as the cluster specification says."""
    return crc_hqx(key, 0) % NUM_SLOTS


def slot_owners(reply: Any, asked_host: str) -> list[str] | None:
    """`host:port` of each slot's server, from a reply to CLUSTER SLOTS; None unless all slots have one.

    Args:
        reply: Ranges of [first, last, [host, port, ...], replicas...].
        asked_host: Stands in where the server does not know its own host.
    """
    if not isinstance(reply, list):
        return None
    owners = [""] * NUM_SLOTS
    for first, last, main, *_ in reply:
        host = main[0].decode() if main[0] else asked_host
        owners[first : last + 1] = [f"{host}:{main[1]}"] * (last + 1 - first)
    return None if "" in owners else owners


class _Gathering:
    """The values of one read, collected from several servers."""

    def __init__(self, keys: list[bytes], done: OnValues) -> None:
        self.keys = keys
        self.values: list[Any] = [UNREAD] * len(keys)
        self.parts = 0
        self._done: OnValues | None = done

    def end_part(self) -> None:
        """One server has answered."""
        self.parts -= 1
        if self.parts == 0:
            self.end()

    def end(self) -> None:
        """Hand over what has come."""
        done, self._done = self._done, None
        if done is not None:
            done(self.values)


class ClusterReader:
    """Reads from a cluster.

    Args:
        seeds: Servers to learn the cluster from; their credentials hold for all.
        options: How to treat every server.
        metrics: Counts failures.
    """

    def __init__(self, seeds: Sequence[Address], options: NodeOptions, metrics: FeatureMetrics) -> None:
        self.name = f"redis cluster {', '.join(seed.name for seed in seeds)}"
        self._seeds = list(seeds)
        self._options = options
        self._metrics = metrics
        self._nodes: dict[str, Node] = {}
        self._owners: list[Node] = []  # by slot; empty until learnt
        self._waiting: list[tuple[list[bytes], OnValues]] = []
        self._refreshing: asyncio.Task[None] | None = None
        self._refreshed_s = float("-inf")
        self._closed = False

    def read(self, wanted: Wanted, done: OnValues) -> None:
        """GETs, pipelined per server."""
        keys = [key for space, ids in wanted for key in space.keys(ids)]
        if self._owners:
            self._ask_owners(keys, done)
        else:
            self._waiting.append((keys, done))
            self._refresh()

    async def warm(self) -> bool:
        """Learn the slots and connect to every server."""
        self._refresh()
        if self._refreshing is not None:
            await self._refreshing
        nodes = {node.address.name: node for node in self._owners}.values()
        return bool(nodes) and all([await node.warm() for node in nodes])

    def close(self) -> None:
        """Close all connections."""
        self._closed = True
        if self._refreshing is not None:
            self._refreshing.cancel()
        for node in self._nodes.values():
            node.close()
        self._answer_waiting()

    def _ask_owners(self, keys: list[bytes], done: OnValues) -> None:
        by_node: dict[Node, list[int]] = {}
        for place, key in enumerate(keys):
            by_node.setdefault(self._owners[slot_of(key)], []).append(place)
        gathering = _Gathering(keys, done)
        gathering.parts = len(by_node)
        asyncio.get_running_loop().call_later(PARTIAL_SHARE * self._options.timeout_s, gathering.end)
        for node, places in by_node.items():
            self._ask(node, gathering, places, asking=False, hops=0)

    def _ask(self, node: Node, gathering: _Gathering, places: list[int], *, asking: bool, hops: int) -> None:
        keys = [gathering.keys[place] for place in places]
        head = ASKING if asking else b""
        packed = b"".join([b"%b*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (head, len(key), key) for key in keys])
        count = len(keys) * (2 if asking else 1)
        node.call(packed, count, partial(self._take, gathering, places, asking=asking, hops=hops))

    def _take(
        self,
        gathering: _Gathering,
        places: list[int],
        replies: Replies | None,
        *,
        asking: bool,
        hops: int,
    ) -> bool:
        """Note one server's values, and follow its redirections."""
        if replies is None:
            self._refresh()
            gathering.end_part()
            return True
        again: dict[tuple[str, bool], list[int]] = {}
        for place, reply in zip(places, replies[1::2] if asking else replies, strict=True):
            if not isinstance(reply, hiredis.ReplyError):
                gathering.values[place] = reply
                continue
            words = str(reply).split()
            if words[0] in ("MOVED", "ASK") and len(words) == 3 and hops < MAX_HOPS:
                again.setdefault((words[2], words[0] == "ASK"), []).append(place)
        for (target, asked), moved in again.items():
            node = self._node_at(target)
            if not asked:
                for place in moved:
                    self._owners[slot_of(gathering.keys[place])] = node
                self._refresh()
            gathering.parts += 1
            self._ask(node, gathering, moved, asking=asked, hops=hops + 1)
        gathering.end_part()
        return True

    def _node_at(self, name: str) -> Node:
        """The server at `host:port`; known or new."""
        node = self._nodes.get(name)
        if node is None:
            host, _, port = name.rpartition(":")
            address = replace(self._seeds[0], host=host, port=int(port), path=None)
            node = self._nodes[name] = Node(address, self._options, self._metrics)
        return node

    def _refresh(self) -> None:
        """Learn the slots anew, unless that is under way or was done just now."""
        loop = asyncio.get_running_loop()
        if self._closed or (self._refreshing is not None and not self._refreshing.done()):
            return
        if self._owners and loop.time() - self._refreshed_s < REFRESH_PAUSE_S:
            return
        self._refreshing = loop.create_task(self._learn())

    async def _learn(self) -> None:
        try:
            known = [*self._nodes.values(), *(self._node_at(a.name) for a in self._seeds)]
            for node in dict.fromkeys(known):
                if await self._learn_from(node):
                    break
            else:
                log.warning("feature_cluster_unknown", seeds=[a.name for a in self._seeds])
        finally:
            self._refreshed_s = asyncio.get_running_loop().time()
            self._answer_waiting()

    async def _learn_from(self, node: Node) -> bool:
        answer: asyncio.Future[Replies | None] = asyncio.get_running_loop().create_future()

        def done(replies: Replies | None) -> bool:
            if not answer.done():
                answer.set_result(replies)
            return True

        node.call(pack("CLUSTER", "SLOTS"), 1, done)
        try:
            async with asyncio.timeout(self._options.connect_timeout_s):
                replies = await answer
        except TimeoutError:
            return False
        owners = slot_owners(replies[0], node.address.host) if replies else None
        if owners is None:
            log.warning("feature_cluster_unclear", server=node.address.name)
            return False
        nodes = {name: self._node_at(name) for name in set(owners)}
        self._owners = [nodes[name] for name in owners]
        self._forget_nodes()
        return True

    def _forget_nodes(self) -> None:
        """Close servers that own nothing any more and are no seeds."""
        needed = {node.address.name for node in self._owners} | {a.name for a in self._seeds}
        for name in set(self._nodes) - needed:
            self._nodes.pop(name).close()

    def _answer_waiting(self) -> None:
        """Read, or give up on, what came before the slots were known."""
        waiting, self._waiting = self._waiting, []
        for keys, done in waiting:
            if self._owners and not self._closed:
                self._ask_owners(keys, done)
            else:
                done([UNREAD] * len(keys))


__all__ = ["ClusterReader", "slot_of", "slot_owners"]
