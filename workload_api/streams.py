"""Following what one process is entitled to: the loop behind every long-lived stream of the Workload API and of SDS.

A stream ends with an error in any of these ways, and in no other of its own:

    the process has ended or changed its user     Unauthenticated, and the connection is cut
    it may not hold more streams                  Exhausted
    nothing could be read or fetched in time      Unavailable
    the agent is shutting down                    Unavailable "restarting"

The process is read again before each view is handed out (architecture A20): what it was at the last message says nothing
about what it runs now (N-A-31). When its selectors have changed, the stream follows the new ones. A slow reader gets the
newest view and none in between (N-A-35).
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from spiffe_core.errors import Exhausted, Unauthenticated, Unavailable
from spiffe_core.runtime.watch import Watch
from spiffe_core.selectors import Selector
from spiffe_core.wire.peer import UnixPeer
from workload_api.backend import WorkloadBackend, WorkloadView

log = logging.getLogger(__name__)

View = TypeVar("View")

RESTARTING = "restarting"
_GRACE_SECONDS = 0.2  # between refusing a stale caller and cutting its connection, so that the refusal arrives


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """Bounds on what callers may hold open. Root is counted but not limited: it could end the agent anyway."""

    per_uid: int = 1024
    total: int = 8192
    first_message_seconds: float = 30.0
    calls_per_uid: int = 256
    """Calls with one answer that are under way at a time."""


class _Reading:
    """How far one stream has come with the watch it follows, and who waits for it."""

    __slots__ = ("_watch", "_written", "awaited")

    def __init__(self) -> None:
        self._watch: Watch[Any] | None = None
        self._written = -1
        self.awaited: list[tuple[set[_Reading], asyncio.Event]] = []

    @property
    def behind(self) -> bool:
        """Whether there is something newer than what was written last."""
        return self._watch is not None and self._watch.version != self._written

    def writes(self, watch: Watch[Any]) -> None:
        """A message is on its way."""
        if watch is not self._watch:
            self._watch, self._written = watch, -1

    def has_written(self, watch: Watch[Any], version: int) -> None:
        """This version, or one that is equal to what was written, has reached the transport."""
        self._watch, self._written = watch, version
        if self.awaited and not self.behind:
            self.leave()

    def leave(self) -> None:
        """Nobody needs to wait for this stream any longer."""
        for waiting, done in self.awaited:
            waiting.discard(self)
            if not waiting:
                done.set()
        self.awaited = []


class Streams:
    """The open streams of one agent. Belongs to the event loop's thread.

    `cut` closes the connection of a caller that is no longer who it was when it connected; its next connection is
    judged afresh.
    """

    def __init__(
        self,
        backend: WorkloadBackend,
        limits: StreamLimits | None = None,
        cut: Callable[[UnixPeer], object] | None = None,
    ) -> None:
        self._backend = backend
        self._limits = limits or StreamLimits()
        self._cut = cut
        self._per_uid: Counter[int] = Counter()
        self._calls: Counter[int] = Counter()
        self._waiting: set[asyncio.Timeout] = set()
        self._reading: set[_Reading] = set()
        self._draining = False

    @property
    def open(self) -> int:
        """How many streams are open."""
        return self._per_uid.total()

    async def written(self, seconds: float) -> int:
        """Wait until every stream has written what is newest now, `seconds` at most; how many have not."""
        waiting = {one for one in self._reading if one.behind}
        done = asyncio.Event()
        for one in waiting:
            one.awaited.append((waiting, done))
        if not waiting:
            return 0
        try:
            async with asyncio.timeout(seconds):
                await done.wait()
        except TimeoutError:
            log.debug("%d workload streams do not read", len(waiting))
        for one in waiting:
            one.awaited = [other for other in one.awaited if other[1] is not done]
        return len(waiting)

    def drain(self) -> None:
        """Shut down: end every stream that waits, and each other one before it waits again. New ones are refused."""
        self._draining = True
        now = asyncio.get_running_loop().time()
        for scope in self._waiting:
            scope.reschedule(now)

    @asynccontextmanager
    async def call(self, peer: UnixPeer) -> AsyncIterator[frozenset[Selector]]:
        """A call with one answer: the selectors of `peer`, and a place among the calls of its user meanwhile.

        The process is asked about once more at the end: nobody gets an answer in place of the process that asked.

        Raises:
            Unauthenticated, Exhausted, Unavailable: as for `follow`.
        """
        self._refuse_when_draining()
        uid = peer.uid
        if uid != 0 and self._calls[uid] >= self._limits.calls_per_uid:
            raise Exhausted("too many calls are under way; wait for some of them to end", uid=uid)
        self._calls[uid] += 1
        try:
            yield await self._attest(peer)
            peer.require_alive()
        finally:
            self._calls[uid] -= 1
            if not self._calls[uid]:
                del self._calls[uid]

    def follow(self, peer: UnixPeer) -> AsyncGenerator[WorkloadView, None]:
        """Each state of what `peer` is entitled to, beginning with the present one; ends by raising.

        Raises:
            Unauthenticated: the process that connected is gone or has changed its user.
            Exhausted: too many streams are open.
            Unavailable: attestation failed, nothing is known yet, or the agent is shutting down.
        """
        return self.follow_from(peer, self._backend.subscribe)

    async def follow_from(
        self,
        peer: UnixPeer,
        subscribe: Callable[[frozenset[Selector]], AbstractContextManager[Watch[View | None]]],
    ) -> AsyncGenerator[View, None]:
        """`follow` for another kind of view; the same rules."""
        with self._place(peer), self._register() as reading, ExitStack() as subscription:
            selectors = await self._attest(peer)
            watch = subscription.enter_context(subscribe(selectors))
            freshly_read = True
            seen: View | None = None
            patience: float | None = asyncio.get_running_loop().time() + self._limits.first_message_seconds
            while True:
                version, view = watch.version, watch.value
                if view is None or view is seen or view == seen:
                    reading.has_written(watch, version)
                    await self._changed(watch, version, patience)
                    freshly_read = False
                elif not freshly_read:
                    now = await self._attest(peer)
                    freshly_read = True
                    if now != selectors:
                        selectors = now
                        subscription.close()
                        watch = subscription.enter_context(subscribe(selectors))
                else:
                    seen, patience, freshly_read = view, None, False
                    reading.writes(watch)
                    yield view
                    reading.has_written(watch, version)

    def _refuse_when_draining(self) -> None:
        if self._draining:
            raise Unavailable(RESTARTING)

    @contextmanager
    def _register(self) -> Iterator[_Reading]:
        reading = _Reading()
        self._reading.add(reading)
        try:
            yield reading
        finally:
            self._reading.discard(reading)
            reading.leave()

    @contextmanager
    def _place(self, peer: UnixPeer) -> Iterator[None]:
        self._refuse_when_draining()
        uid = peer.uid
        if uid != 0 and (self._per_uid[uid] >= self._limits.per_uid or self.open >= self._limits.total):
            raise Exhausted("too many streams are open; close some, or share one between threads", uid=uid)
        self._per_uid[uid] += 1
        try:
            yield
        finally:
            self._per_uid[uid] -= 1
            if not self._per_uid[uid]:
                del self._per_uid[uid]

    async def _attest(self, peer: UnixPeer) -> frozenset[Selector]:
        try:
            return await self._backend.attest(peer)
        except Unauthenticated:
            if self._cut is not None:
                asyncio.get_running_loop().call_later(_GRACE_SECONDS, self._cut, peer)
            raise

    async def _changed(self, watch: Watch[View | None], version: int, until: float | None) -> None:
        """Wait for the next state. `drain` ends the wait by moving its end to the present."""
        self._refuse_when_draining()
        scope = asyncio.timeout_at(until)
        self._waiting.add(scope)
        try:
            async with scope:
                await watch.changed(version)
        except TimeoutError:
            self._refuse_when_draining()
            raise Unavailable("the identity is not known yet; the agent is still fetching it") from None
        finally:
            self._waiting.discard(scope)
