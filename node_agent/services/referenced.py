"""Workloads that a broker names: resolved here, followed while they live (SPIFFE Broker API sections 3.1.1 and 4.9).

Nothing a broker says of a workload is believed: a process is held by its pidfd and read like a caller of the Workload
API, an object of the cluster is looked up by the attestor that knows the cluster. Both are read again before each
message. A stream ends at once with its process; an object that is gone is noticed at the next look, `RECHECK_SECONDS`
later at most. All streams look at the same moments, so that they share one list of pods.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from attestors.api import KubernetesObject, ObjectAttestor
from node_agent.services.workload_svids import WorkloadSvids
from spiffe_core.clock import Clock
from spiffe_core.errors import Exhausted, InvalidRequest, NotFound, Unauthenticated, Unavailable
from spiffe_core.runtime.offload import Offload
from spiffe_core.selectors import Selector
from spiffe_core.wire.peer import UnixPeer, named_process
from workload_api.backend import WorkloadView

RECHECK_SECONDS = 10.0
FIRST_MESSAGE_SECONDS = 30.0
THREADS = 8
MOST_STREAMS = 8192
MOST_CALLS = 256
RESTARTING = "restarting"
GONE = "the workload does not exist"

Authorise = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Process:
    """A process by its number on this machine."""

    pid: int


Reference = Process | KubernetesObject


class _Alarm:
    """Ends a stream's wait before its time, also when it rings between two waits."""

    __slots__ = ("rung", "scope")

    def __init__(self) -> None:
        self.rung = False
        self.scope: asyncio.Timeout | None = None

    def set(self, scope: asyncio.Timeout) -> None:
        """A wait begins."""
        self.scope = scope
        if self.rung:
            self.ring()

    def ring(self) -> None:
        """End the wait; each later one ends at once as well."""
        self.rung = True
        if self.scope is not None:
            self.scope.reschedule(asyncio.get_running_loop().time())


class _Target(Protocol):
    """What a reference means, while it is held."""

    async def read(self) -> frozenset[Selector]:
        """Its selectors now. Raises NotFound if it is gone."""
        ...

    async def glance(self, selectors: frozenset[Selector]) -> frozenset[Selector]:
        """Whether it is there still; its selectors, which may be those of the last reading. Raises NotFound."""
        ...

    def on_end(self, wake: Callable[[], None]) -> None:
        """Call `wake` when it ends, if that can be known without looking."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class _ProcessTarget:
    def __init__(self, peer: UnixPeer, attest: Callable[[UnixPeer], Awaitable[frozenset[Selector]]]) -> None:
        self._peer, self._attest = peer, attest
        self._watched = False

    async def read(self) -> frozenset[Selector]:
        try:
            return await self._attest(self._peer)
        except Unauthenticated:
            raise NotFound(GONE, pid=self._peer.pid) from None

    async def glance(self, selectors: frozenset[Selector]) -> frozenset[Selector]:
        if not self._peer.process.alive():
            raise NotFound(GONE, pid=self._peer.pid)
        return selectors

    def on_end(self, wake: Callable[[], None]) -> None:
        """A pidfd becomes readable when its process ends."""
        asyncio.get_running_loop().add_reader(self._peer.process.fd, self._ended, wake)
        self._watched = True

    def _ended(self, wake: Callable[[], None]) -> None:
        self._stop_watching()
        wake()

    def _stop_watching(self) -> None:
        if self._watched:
            asyncio.get_running_loop().remove_reader(self._peer.process.fd)
            self._watched = False

    def close(self) -> None:
        self._stop_watching()
        self._peer.process.close()


class _ObjectTarget:
    def __init__(self, read: Callable[[], Awaitable[frozenset[Selector]]]) -> None:
        self._read = read

    async def read(self) -> frozenset[Selector]:
        return await self._read()

    async def glance(self, _selectors: frozenset[Selector]) -> frozenset[Selector]:
        return await self._read()

    def on_end(self, wake: Callable[[], None]) -> None:
        """Nobody says so: it has to be looked up."""

    def close(self) -> None:
        """Nothing is held."""


class ReferencedWorkloads:
    """Identities of workloads that are named by reference. Belongs to the event loop's thread."""

    def __init__(
        self, workloads: WorkloadSvids, objects: Sequence[ObjectAttestor], *, clock: Clock, budget: float
    ) -> None:
        self._workloads, self._objects = workloads, tuple(objects)
        self._clock, self._budget = clock, budget
        self._offload = Offload("references", THREADS)
        self._alarms: set[_Alarm] = set()
        self._calls = 0
        self._draining = False
        self.open = 0
        """How many streams are open."""

    def drain(self) -> None:
        """Shut down: streams end, new ones are refused."""
        self._draining = True
        for alarm in self._alarms:
            alarm.ring()

    @asynccontextmanager
    async def call(self, reference: Reference) -> AsyncIterator[frozenset[Selector]]:
        """A call with one answer: the selectors of the workload, which is read once more at the end.

        Raises:
            IdentityError: as for `follow`.
        """
        self._refuse_when_draining()
        if self._calls >= MOST_CALLS:
            raise Exhausted("too many calls of brokers are under way; wait for some of them to end")
        self._calls += 1
        try:
            with ExitStack() as held:
                target = self._target(reference)
                held.callback(target.close)
                selectors = await target.read()
                yield selectors
                if await target.read() != selectors:
                    raise Unavailable("the workload has changed meanwhile; try again")
        finally:
            self._calls -= 1

    async def follow(self, reference: Reference, authorise: Authorise) -> AsyncGenerator[WorkloadView, None]:
        """Each state of what the workload may have through a broker; `authorise` is asked again before each.

        Raises:
            InvalidRequest: the reference is malformed.
            NotFound: the workload does not exist, or not any longer.
            Unavailable: it could not be read, nothing is known yet, or the agent is shutting down.
        """
        self._refuse_when_draining()
        if self.open >= MOST_STREAMS:
            raise Exhausted("too many streams of brokers are open; close some")
        self.open += 1
        try:
            with ExitStack() as held, ExitStack() as subscription:
                target = self._target(reference)
                held.callback(target.close)
                async with aclosing(self._states(target, subscription, authorise)) as views:
                    async for view in views:
                        yield view
        finally:
            self.open -= 1

    async def _states(
        self, target: _Target, subscription: ExitStack, authorise: Authorise
    ) -> AsyncGenerator[WorkloadView, None]:
        """As for the streams of the Workload API (`workload_api.streams`), with a look at the workload now and then."""
        patience: float | None = asyncio.get_running_loop().time() + FIRST_MESSAGE_SECONDS
        selectors = await target.read()
        watch = subscription.enter_context(self._workloads.subscribe(selectors))
        seen: WorkloadView | None = None
        freshly_read = True
        with self._alarm() as alarm:
            target.on_end(alarm.ring)
            while True:
                version = watch.version
                view = None if watch.value is None else self._workloads.delegable_view(selectors)
                if view is None or view == seen:
                    await self._wait(alarm, watch.changed(version), patience)
                    authorise()
                    now, freshly_read = await target.glance(selectors), False
                elif not freshly_read:
                    authorise()
                    now, freshly_read = await target.read(), True
                else:
                    seen, patience, freshly_read = view, None, False
                    yield view
                    continue
                if now != selectors:
                    selectors = now
                    subscription.close()
                    watch = subscription.enter_context(self._workloads.subscribe(selectors))

    async def _wait(self, alarm: _Alarm, changed: Coroutine[Any, Any, int], patience: float | None) -> None:
        """Until the next state, the end of the process, or the next look, whichever comes first."""
        now = asyncio.get_running_loop().time()
        next_look = (now // RECHECK_SECONDS + 1) * RECHECK_SECONDS
        try:
            async with asyncio.timeout_at(next_look if patience is None else min(next_look, patience)) as scope:
                alarm.set(scope)
                await changed
        except TimeoutError:
            self._refuse_when_draining()
            if patience is not None and asyncio.get_running_loop().time() >= patience:
                raise Unavailable("the identity is not known yet; the agent is still fetching it") from None
        finally:
            alarm.scope = None

    @contextmanager
    def _alarm(self) -> Iterator[_Alarm]:
        alarm = _Alarm()
        self._alarms.add(alarm)
        try:
            yield alarm
        finally:
            self._alarms.discard(alarm)

    def _target(self, reference: Reference) -> _Target:
        if isinstance(reference, Process):
            try:
                return _ProcessTarget(named_process(reference.pid), self._workloads.attest)
            except NotFound:
                raise NotFound(GONE, pid=reference.pid) from None
        if not self._objects:
            raise InvalidRequest("reference: this agent knows no cluster; name a process", field="reference")
        return _ObjectTarget(lambda: self._look_up(reference))

    async def _look_up(self, wanted: KubernetesObject) -> frozenset[Selector]:
        """What the attestors say of an object; one that fails lets nobody have anything."""
        if not self._workloads.ready:
            raise Unavailable("the agent has not finished its first synchronisation with the server; try again")
        deadline = self._clock.monotonic() + self._budget
        selectors: set[Selector] = set()
        for attestor in self._objects:
            findings = await self._offload(attestor.attest_object, wanted, deadline)
            selectors |= findings.selectors
        return frozenset(selectors)

    def _refuse_when_draining(self) -> None:
        if self._draining:
            raise Unavailable(RESTARTING)
