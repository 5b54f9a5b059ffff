"""Following what one process is entitled to: the loop behind every long-lived stream of the Workload API and of SDS.

A stream ends with an error in any of these ways, and in no other of its own:

    the process has ended or changed its user     Unauthenticated, and the connection is cut
    it may not hold more streams                  Exhausted
    nothing could be read or fetched in time      Unavailable
    the agent is shutting down                    Unavailable "restarting"

The process is read again before each view is handed out (architecture A20): what it was at the last message says
nothing about what it runs now (N-A-31). When its selectors have changed, the stream follows the new ones. A slow reader
gets the newest view and none in between (N-A-35).

While not everybody who was asked about the process could tell (a kubelet that restarts), it is read again by itself, so
that what is missing arrives when they can. What the process would lose by that alone is not taken from it for a moment:
no message goes out until the reading is whole or the moment is over.
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
from spiffe_core.selectors import PartialSelectors, Selector
from spiffe_core.wire.peer import UnixPeer
from workload_api.backend import WorkloadBackend, WorkloadView

log = logging.getLogger(__name__)

View = TypeVar("View")

RESTARTING = "restarting"
FIRST_REREAD_SECONDS, LONGEST_REREAD_SECONDS = 5.0, 60.0
"""How soon a process is read again about which not everybody could tell; each pause is twice the one before."""
HOLD_SECONDS = 30.0
"""For how long a stream tells nothing rather than take away what was there before not everybody could tell."""
HOLD_PAUSE_SECONDS = 1.0
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


class _Doubt:
    """Whether not everybody could tell about a process, since when, and when it is read again (in the loop's time)."""

    __slots__ = ("_pause", "_since", "look_again")

    def __init__(self) -> None:
        self._since: float | None = None
        self._pause = FIRST_REREAD_SECONDS
        self.look_again: float | None = None

    def holds(self, before: frozenset[Selector], now: frozenset[Selector]) -> bool:
        """Note how a reading went; whether the stream waits instead of following what is left."""
        if not isinstance(now, PartialSelectors):
            self._since, self._pause, self.look_again = None, FIRST_REREAD_SECONDS, None
            return False
        time = asyncio.get_running_loop().time()
        since = self._since = time if self._since is None else self._since
        if not before <= now and time - since < HOLD_SECONDS:
            self.look_again = time + HOLD_PAUSE_SECONDS
            return True
        self.look_again = time + self._pause
        self._pause = min(2 * self._pause, LONGEST_REREAD_SECONDS)
        return False

    @property
    def due(self) -> bool:
        """Whether the process is to be read again although nothing has changed."""
        return self.look_again is not None and asyncio.get_running_loop().time() >= self.look_again


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
            doubt = _Doubt()
            selectors = await self._attest(peer)
            doubt.holds(frozenset(), selectors)
            watch = subscription.enter_context(subscribe(selectors))
            freshly_read = True
            seen: View | None = None
            patience: float | None = asyncio.get_running_loop().time() + self._limits.first_message_seconds
            while True:
                version, view = watch.version, watch.value
                if view is None or view is seen or view == seen:
                    reading.has_written(watch, version)
                    await self._changed(watch, version, patience, doubt.look_again)
                    freshly_read = False
                    if not doubt.due:
                        continue
                elif freshly_read:
                    seen, patience, freshly_read = view, None, False
                    reading.writes(watch)
                    yield view
                    reading.has_written(watch, version)
                    continue
                now = await self._attest(peer)
                if doubt.holds(selectors, now):
                    await self._changed(watch, watch.version, None, doubt.look_again)
                    continue
                freshly_read = True
                if now != selectors:
                    selectors = now
                    subscription.close()
                    watch = subscription.enter_context(subscribe(selectors))

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

    async def _changed(
        self, watch: Watch[View | None], version: int, until: float | None, look_again: float | None
    ) -> None:
        """Wait for the next state, or until it is time to look again.

        `drain` ends the wait by moving its end to the present.
        """
        self._refuse_when_draining()
        ends = [end for end in (until, look_again) if end is not None]
        scope = asyncio.timeout_at(min(ends, default=None))
        self._waiting.add(scope)
        try:
            async with scope:
                await watch.changed(version)
        except TimeoutError:
            self._refuse_when_draining()
            if look_again is not None and (until is None or look_again < until):
                return
            raise Unavailable("the identity is not known yet; the agent is still fetching it") from None
        finally:
            self._waiting.discard(scope)
