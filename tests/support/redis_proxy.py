"""What can stand between a client and Redis: a slow link, and a server that answers in a wrong order."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import hiredis


@dataclass
class SlowLink:
    """A proxy that cuts the stream into pieces at random and delivers each late, in order.

    Attributes:
        random: Draws cuts and delays.
        longest_s: Delay of a piece, at most.
        port: Where it listens.
    """

    random: random.Random
    longest_s: float
    port: int = 0
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction."""
        self.writers.append(writer)
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                while data:
                    cut = self.random.randint(1, len(data))
                    piece, data = data[:cut], data[cut:]
                    if self.random.random() < 0.5:
                        await asyncio.sleep(self.random.random() * self.longest_s)
                    writer.write(piece)
                    await writer.drain()
        writer.close()


@asynccontextmanager
async def slow_link(target_port: int, *, seed: int, longest_s: float) -> AsyncIterator[SlowLink]:
    """A slow link to a server."""
    link = SlowLink(random.Random(seed), longest_s)

    async def joined(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target_port)
        there = asyncio.create_task(link.carry(reader, far_writer))
        back = asyncio.create_task(link.carry(far_reader, writer))
        link.tasks |= {there, back}

    server = await asyncio.start_server(joined, "127.0.0.1", 0)
    link.port = server.sockets[0].getsockname()[1]
    try:
        yield link
    finally:
        server.close()
        for task in link.tasks:
            task.cancel()
        await asyncio.gather(*link.tasks, return_exceptions=True)
        await _close(link.writers)


async def _close(writers: list[asyncio.StreamWriter]) -> None:
    for writer in writers:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
    await asyncio.sleep(0.005)  # for the other ends to see it


Answer = Callable[[list[list[bytes]]], list[bytes]]


@asynccontextmanager
async def scripted_server(answer: Answer, *, together: int) -> AsyncIterator[int]:
    """A server that gathers `together` commands and then sends what `answer` makes of them."""
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        parser, commands = hiredis.Reader(), []
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                parser.feed(data)
                while (command := parser.gets()) is not False:
                    commands.append(command)
                while len(commands) >= together:
                    now, commands = commands[:together], commands[together:]
                    writer.write(b"".join(answer(now)))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        await _close(writers)


def as_array(values: list[Any]) -> bytes:
    """A reply to MGET."""
    parts = [b"$-1\r\n" if v is None else b"$%d\r\n%b\r\n" % (len(v), v) for v in values]
    return b"*%d\r\n" % len(values) + b"".join(parts)
