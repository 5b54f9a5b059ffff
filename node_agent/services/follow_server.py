"""Keeps a push stream to the server open: what changes there is in force here at once (architecture A9).

While the stream is up nothing is polled. Without it, on a server that has no such service or while it cannot be opened,
`Synchronize` polls as it always did. A stream that ended is opened again at once, and goes on from where it was; only
one that cannot be opened is tried more and more seldom. Every delta is acknowledged when it is in force: the SVIDs that
it asks for are there, and every workload stream that it concerns has been written to, or did not read in time.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, Protocol

from node_agent.domain.entry_cache import EntryDiff, Stamp, stamp_of
from node_agent.domain.news import News
from node_agent.services.membership import Membership
from node_agent.services.steady_time import SteadyTime
from node_agent.services.synchronize import Synchronize
from node_agent.services.workload_svids import HeldSvid, WorkloadSvids
from spiffe_core.bundle import BundleSet
from spiffe_core.entry import RegistrationEntry
from spiffe_core.errors import IdentityError, Unimplemented
from spiffe_core.runtime.supervise import spawn

log = logging.getLogger(__name__)

FIRST_RETRY = 0.05
LONGEST_RETRY = 30.0
LASTING = 5.0
"""A stream that lasted so long is opened again at once when it ends."""
WITHOUT_SERVICE = 600.0
"""So long a server without the push service is left alone."""
OPENING_SECONDS = 3.0
"""So long the poll waits for a stream that is being opened."""
DELIVERY_SECONDS = 10.0
"""So long SVIDs and workloads that do not read may hold an acknowledgement up."""


class Changes(Protocol):
    """The server's push stream."""

    def follow(self, position: str, known: Callable[[], Mapping[str, Stamp]]) -> AsyncGenerator[News, None]:
        """What it has to say to an agent at `position`; raises IdentityErrors when it ends."""
        ...

    async def acknowledge(self, position: str, streams_behind: int) -> None:
        """Tell it what is in force."""
        ...


class FollowServer:
    """The push loop. Belongs to the event loop's thread.

    `written` waits until every open workload stream has written its newest state, for so many seconds at most, and
    tells how many have not.
    """

    def __init__(
        self,
        *,
        changes: Changes,
        membership: Membership,
        synchronize: Synchronize,
        workloads: WorkloadSvids,
        steady: SteadyTime,
        draw: Callable[[], float],
        written: Callable[[float], Awaitable[int]],
    ) -> None:
        self._changes = changes
        self._membership = membership
        self._synchronize = synchronize
        self._workloads = workloads
        self._steady = steady
        self._draw = draw
        self._written = written
        self._failures = 0
        self._moved = asyncio.Event()
        self._applying = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._owed: tuple[str, dict[str, HeldSvid | None]] | None = None
        self._acknowledging: asyncio.Task[None] | None = None
        self._opening_until = 0.0
        self._basis: tuple[Mapping[str, RegistrationEntry], BundleSet] = ({}, workloads.bundles)
        """What the position stands for. A poll that is answered while a stream is opened is not part of it."""
        self.up = False
        """Whether a stream is open and has said where the server is."""
        self.position = ""
        """Where this agent is in the server's history; "" if what it holds came from a poll, or it holds nothing."""
        synchronize.rest_until = self._poll_rests_until
        synchronize.on_polled = self._polled
        membership.on_change.append(self._membership_changed)

    async def run(self) -> None:
        """Live until cancelled."""
        try:
            while True:
                self._moved.clear()
                if not self._membership.session.is_member:
                    await self._moved.wait()
                    continue
                wait = await self._follow()
                if wait:
                    await self._pause(wait)
        finally:
            for task in list(self._tasks):
                task.cancel()

    async def _follow(self) -> float:
        """One stream, to its end; returns how long to wait before the next."""
        generation = self._membership.session.generation
        begun = self._steady.now()
        self._opening_until = begun + OPENING_SECONDS
        try:
            await self._while_member()
        except Unimplemented:
            self._went_down()
            log.info("the server has no push service: asking it again and again for what is new")
            return WITHOUT_SERVICE
        except IdentityError as error:
            self._went_down()
            self._membership.failed(error, generation)
            if self._steady.now() - begun > LASTING:
                self._failures = 0
                log.info("the push stream ended and is opened again: %s", error.public)
                return 0.0
            self._failures = min(self._failures + 1, 30)
            return float(min(LONGEST_RETRY, FIRST_RETRY * 2**self._failures)) * (1 + 0.2 * self._draw())
        return 0.0

    def _membership_changed(self) -> None:
        if not self._membership.session.is_known:
            self.position = ""  # a server that forgot this agent may have an older database: nothing is compared
        self._moved.set()

    async def _while_member(self) -> None:
        """Apply what comes, until the stream ends or this agent's own SVID is another one."""
        self._basis = self._synchronize.entries, self._workloads.bundles
        tasks: set[asyncio.Task[Any]] = set()
        reading = spawn(self._read(), "the push stream", tasks)
        moved = spawn(self._moved.wait(), "a new SVID of the agent's own", tasks)
        try:
            await asyncio.wait({reading, moved}, return_when=asyncio.FIRST_COMPLETED)
            async with self._applying:  # what has come is taken over whole, or not at all
                if reading.done():
                    reading.result()
        finally:
            for task in (reading, moved):
                task.cancel()
            await asyncio.gather(reading, moved, return_exceptions=True)

    async def _read(self) -> None:
        async with aclosing(self._changes.follow(self.position, self._known)) as stream:
            async for news in stream:
                async with self._applying:
                    await self._apply(news)

    async def _apply(self, news: News) -> None:
        if not news.empty or not self.up:
            before = {entry.id: self._workloads.held(entry.id) for entry in news.entries}
            entries, bundles = news.entries_after(self._basis[0]), news.bundles_after(self._basis[1])
            diff = await self._synchronize.take_over(entries, bundles)
            self._basis, self.position = (entries, bundles), news.position
            self._owe(news.position, diff, before)
        else:
            self.position = news.position
            self._synchronize.in_touch()
        if not self.up:
            log.info("following the server: changes take effect at once")
        self.up = True
        self._failures = 0

    def _owe(self, position: str, diff: EntryDiff, before: Mapping[str, HeldSvid | None]) -> None:
        """An acknowledgement, as soon as it is true; one for several deltas if they come faster."""
        earlier = self._owed[1] if self._owed is not None else {}
        touched = [*diff.added, *(new for _, new in diff.changed)]
        awaited = {one.id: before.get(one.id) for one in touched if self._workloads.is_followed(one)}
        self._owed = position, {**awaited, **earlier}
        if self._acknowledging is None or self._acknowledging.done():
            self._acknowledging = spawn(self._acknowledge(), "acknowledge", self._tasks)

    async def _acknowledge(self) -> None:
        while self._owed is not None:
            position, awaited = self._owed
            self._owed = None
            try:
                async with asyncio.timeout(DELIVERY_SECONDS):
                    await self._workloads.replaced(awaited)
            except TimeoutError:
                log.warning("%d SVIDs of changed entries are not there yet", len(awaited))
            await self._changes.acknowledge(position, await self._written(DELIVERY_SECONDS))

    def _known(self) -> Mapping[str, Stamp]:
        return {entry_id: stamp_of(entry) for entry_id, entry in self._basis[0].items()}

    def _went_down(self) -> None:
        """One that was open is given some time to be opened again before polling begins."""
        self._owed = None
        self._opening_until = self._steady.now() + (OPENING_SECONDS if self.up else 0.0)
        self.up = False
        self._synchronize.wake()

    def _poll_rests_until(self) -> float:
        return math.inf if self.up else self._opening_until

    def _polled(self) -> None:
        """What is held now came from elsewhere: the server compares it when a stream is opened."""
        if not self.up:
            self.position = "polled"

    async def _pause(self, seconds: float) -> None:
        until = self._steady.now() + seconds
        while self._steady.now() < until and not self._moved.is_set():
            await self._steady.wait(until, self._moved, keep=True)
