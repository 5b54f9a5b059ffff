"""Turns, a few in each round of the event loop: a thousand handshakes at once must not become one long round.

What costs time is done by whoever has a turn. A round is as long as the work in it, so turns come as fast as the work
gets done, and everybody else's callbacks run in between. Nobody holds a turn: a peer that stops half-way costs nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Final, Protocol

LEAST_PATIENCE: Final = 0.01
"""Seconds. As many as there are places may then begin a hundred times a second."""
_STEP: Final = 1 / 50
FEWEST: Final = 8
ANSWERS_EACH_ROUND: Final = 3


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


class Timers(Protocol):
    """The part of an event loop that tells the time and calls back."""

    def time(self) -> float:
        """Seconds, from wherever."""
        ...

    def call_at(self, when: float, callback: Callable[..., object], /, *args: object) -> asyncio.TimerHandle:
        """Call it then."""
        ...


class Places:
    """At most `most` things of which each waits for a stranger's answer are under way at a time; fewer if they do.

    Else all answers may come at once, and make one long round. How many there have to be depends on how far away the
    strangers are, and shows in how many answers come in one round of the loop: one at a time while others wait means
    that more could be under way, more than `ANSWERS_EACH_ROUND` that fewer should be. It begins with `FEWEST`.

    Who does not answer for `patience` seconds counts no longer, so that nobody holds a place for good. Each that is
    late takes a fiftieth off the patience, down to `LEAST_PATIENCE`, and each in time gives it back: if a thousand say
    nothing, the others wait a second for them.
    """

    def __init__(self, most: int, patience: float, *, timers: Callable[[], Timers] = asyncio.get_running_loop) -> None:
        self._most = most
        self._most_patience = patience
        self._timers = timers
        self._held = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._answers = 0
        self.patience = patience
        self.room = min(FEWEST, most)
        """How many may be under way now."""

    @contextlib.asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Wait for a place, and have it during the block or as long as patience lasts."""
        await self._take()
        loop = self._timers()
        held = True
        timer: asyncio.TimerHandle

        def late(due: float, allowed: float) -> None:
            nonlocal held, timer
            if loop.time() - due > allowed / 2:  # it is this loop that is late: the answer may lie there unread
                timer = wait()
                return
            held = False
            self.patience = max(LEAST_PATIENCE, self.patience * (1 - _STEP))
            self.room = min(self._most, self.room + 1)
            self._give()

        def wait() -> asyncio.TimerHandle:
            due = loop.time() + self.patience
            return loop.call_at(due, late, due, self.patience)

        timer = wait()
        try:
            yield
        finally:
            timer.cancel()
            if held:
                self.patience = min(self._most_patience, self.patience * (1 + _STEP))
                self._answered()
                self._give()

    async def _take(self) -> None:
        if self._held < self.room and not self._waiting:
            self._held += 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # it was given one at that very moment
                self._give()
            raise

    def _give(self) -> None:
        """One is free; whoever waits may begin."""
        self._held -= 1
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting and self._held < self.room:
            place = self._waiting.popleft()
            if not place.done():  # who was cancelled needs none
                place.set_result(None)
                self._held += 1

    def _answered(self) -> None:
        if not self._answers:
            asyncio.get_running_loop().call_soon(self._judge)
        self._answers += 1

    def _judge(self) -> None:
        """A round is over in which there were answers."""
        answers, self._answers = self._answers, 0
        if answers > ANSWERS_EACH_ROUND:
            self.room = max(min(FEWEST, self._most), self.room - (answers - ANSWERS_EACH_ROUND))
        elif answers == 1 and self._waiting:
            self.room = min(self._most, self.room + 1)
            self._let_in()


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
