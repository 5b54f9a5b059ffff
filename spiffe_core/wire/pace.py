"""Turns, a few in each round of the event loop: a thousand handshakes at once must not become one long round.

What costs time is done by whoever has a turn. A round is as long as the work in it, so turns come as fast as the work
gets done, and everybody else's callbacks run in between. Nobody holds a turn: a peer that stops half-way costs nothing.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque


class Pace:
    """Gives out `each_round` turns in a round, in the order in which they were asked for."""

    def __init__(self, each_round: int) -> None:
        self._each_round = each_round
        self._given = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._scheduled = False

    async def turn(self) -> None:
        """Wait for a turn."""
        loop = asyncio.get_running_loop()
        if not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._round, loop)
        if self._given < self._each_round and not self._waiting:
            self._given += 1
            return
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _round(self, loop: asyncio.AbstractEventLoop) -> None:
        """The next round has begun."""
        self._given = 0
        while self._waiting and self._given < self._each_round:
            turn = self._waiting.popleft()
            if not turn.done():  # who was cancelled needs none
                turn.set_result(None)
                self._given += 1
        self._scheduled = self._given > 0
        if self._scheduled:
            loop.call_soon(self._round, loop)


async def readable(connection: socket.socket) -> None:
    """Return when there is something to read, or the peer has gone. Nothing is read."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def come() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(connection, come)
    try:
        await ready
    finally:
        loop.remove_reader(connection)
