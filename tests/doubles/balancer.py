"""A load balancer for TCP as operators put it before several servers: each connection goes to the next one."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

CHUNK = 65536
LONGEST = 3.0
"""Seconds after which a connection is cut, so that its client has to make another."""


class Balancer:
    """Where it listens, and how many connections each server got."""

    def __init__(self, servers: Sequence[tuple[str, int]]) -> None:
        self.servers = list(servers)
        self.served = [0] * len(self.servers)
        self.port = 0
        self._turns = itertools.cycle(range(len(self.servers)))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        turn = next(self._turns)
        self.served[turn] += 1
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            there, back = await asyncio.open_connection(*self.servers[turn])
            try:
                async with asyncio.timeout(LONGEST):
                    await asyncio.gather(_pump(reader, back), _pump(there, writer))
            finally:
                back.close()
        writer.close()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(CHUNK):
        sink.write(data)
        await sink.drain()
    sink.close()


@asynccontextmanager
async def balanced(*servers: tuple[str, int]) -> AsyncIterator[Balancer]:
    """In front of these servers."""
    balancer = Balancer(servers)
    listener = await asyncio.start_server(balancer.serve, "127.0.0.1", 0)
    balancer.port = listener.sockets[0].getsockname()[1]
    try:
        yield balancer
    finally:
        listener.close()
