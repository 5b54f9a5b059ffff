"""A network between an agent and its server that a test delays, resets, cuts, or lets swallow everything."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

CHUNK = 65536


class _Pair:
    """One connection, both ways."""

    def __init__(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self.near, self.far = near, far
        self.swallowed = False

    def reset(self) -> None:
        for end in (self.near, self.far):
            end.transport.abort()


class Network:
    """Passes bytes on as it was told to; `address` is where the agent takes the server to be."""

    def __init__(self, server: tuple[str, int]) -> None:
        self.server = server
        self.address = ("127.0.0.1", 0)
        self.delay = 0.0
        self.refusing = False
        self.reset_every = 0
        """Reset a connection at each so-manieth piece of data that passes; 0 for never."""
        self.opened = 0
        self.most_open = 0
        self._passed = 0
        self._pairs: set[_Pair] = set()

    def swallow(self) -> None:
        """The connections there are stay open and pass nothing on any more, for ever."""
        for pair in self._pairs:
            pair.swallowed = True

    def cut(self) -> None:
        """Reset every connection."""
        for pair in list(self._pairs):
            pair.reset()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            writer.transport.abort()
            return
        self.opened += 1
        there, back = await asyncio.open_connection(*self.server)
        pair = _Pair(writer, back)
        self._pairs.add(pair)
        self.most_open = max(self.most_open, len(self._pairs))
        try:
            with contextlib.suppress(OSError):
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._pump(pair, reader, back))
                    both.create_task(self._pump(pair, there, writer))
        except* OSError:
            pass
        finally:
            self._pairs.discard(pair)
            pair.reset()

    async def _pump(self, pair: _Pair, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(CHUNK):
            self._passed += 1
            if self.reset_every and self._passed % self.reset_every == 0:
                pair.reset()
                return
            if self.delay:
                await asyncio.sleep(self.delay)
            if pair.swallowed:
                continue
            sink.write(data)
            await sink.drain()
        pair.reset()


@asynccontextmanager
async def network(server: tuple[str, int]) -> AsyncIterator[Network]:
    """In front of this server."""
    made = Network(server)
    listener = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.address = listener.sockets[0].getsockname()[:2]
    try:
        yield made
    finally:
        listener.close()
        made.cut()
        await asyncio.sleep(0)
