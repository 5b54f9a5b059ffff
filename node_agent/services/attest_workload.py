"""Who is calling: asks every configured workload attestor about the process at the other end.

Attestors run side by side on their own threads under one budget, because what they read is controlled by the workload
(an executable on a hanging file system, a slow container engine). At most two threads work for one uid; callers beyond
that wait for their turn within the same budget, so a uid that hangs every read slows down nobody but itself
(architecture A7). A thread that does not come back keeps its slot; when many do not, a fresh pool takes their place,
a bounded number of times.

One attestor that fails is tolerated, all failing is not: fewer selectors never match more (spire_features 17.1).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import cast

from attestors.api import Findings, Subject, WorkloadAttestor
from spiffe_core.clock import Clock
from spiffe_core.errors import IdentityError, Unauthenticated, Unavailable
from spiffe_core.runtime.offload import Offload
from spiffe_core.runtime.supervise import spawn
from spiffe_core.selectors import Selector
from spiffe_core.wire.peer import UnixPeer

log = logging.getLogger(__name__)

THREADS = 16
SLOTS_PER_UID = 2
WAITING_PER_UID = 4096
LARGEST_REPLACEMENT = 4
FAILED = "workload attestation failed"


class _Slots:
    """Two at a time for one uid, a bounded number in line."""

    __slots__ = ("free", "used", "waiting")

    def __init__(self) -> None:
        self.free = asyncio.Semaphore(SLOTS_PER_UID)
        self.used = 0
        self.waiting = 0


class AttestWorkload:
    """Gathers the selectors of one process. Belongs to the event loop's thread."""

    def __init__(self, attestors: Sequence[WorkloadAttestor], *, clock: Clock, budget: float = 5.0) -> None:
        if not attestors:
            raise ValueError("without an attestor no workload could be told from another")
        self._attestors = tuple(attestors)
        self._clock = clock
        self._budget = budget
        self._pool = Offload("attest", THREADS)
        self._pools = 1
        self._stuck = 0
        self._slots: dict[int, _Slots] = {}
        self._calls: set[asyncio.Task[Findings]] = set()

    async def __call__(self, peer: UnixPeer) -> frozenset[Selector]:
        """The selectors of `peer`, read now.

        Raises:
            Unauthenticated: the process that connected is gone.
            Unavailable: no attestor could tell anything, or it took too long.
        """
        peer.require_alive()
        deadline = self._clock.monotonic() + self._budget
        if len(self._attestors) == 1:  # no tasks for the usual case
            results = [await self._outcome(self._attestors[0], peer, deadline)]
        else:
            results = await asyncio.gather(*(self._outcome(attestor, peer, deadline) for attestor in self._attestors))
        peer.require_alive()
        selectors: set[Selector] = set()
        failures: list[Exception] = []
        for result in results:
            if isinstance(result, Exception):
                failures.append(result)
            else:
                selectors |= result.selectors
        if len(failures) == len(self._attestors):
            unauthenticated = next((error for error in failures if isinstance(error, Unauthenticated)), None)
            raise unauthenticated or Unavailable(FAILED)
        return frozenset(selectors)

    async def _outcome(self, attestor: WorkloadAttestor, peer: UnixPeer, deadline: float) -> Findings | Exception:
        """The answer of one attestor, or how it failed: one failing is not the end."""
        facts = {"attestor": attestor.name, "pid": peer.pid, "uid": peer.uid}
        try:
            return await self._ask(attestor, peer, deadline)
        except IdentityError as error:
            log.info("attestation failed: %s", error.public, extra={"facts": facts | error.facts})
            return error
        except Exception as error:  # a broken plugin fails like any other, and is reported
            log.exception("attestor %s failed", attestor.name, extra={"facts": facts})
            return error

    async def _ask(self, attestor: WorkloadAttestor, peer: UnixPeer, deadline: float) -> Findings:
        slots = self._slots.setdefault(peer.uid, _Slots())
        if slots.waiting >= WAITING_PER_UID:
            raise Unavailable("too many attestations of this user are under way; try again")
        slots.waiting += 1
        try:
            async with asyncio.timeout(deadline - self._clock.monotonic()):
                await slots.free.acquire()
        except TimeoutError:
            raise Unavailable("earlier attestations of this user have not ended; try again") from None
        finally:
            slots.waiting -= 1
            self._forget_if_idle(peer.uid, slots)
        slots.used += 1
        self._slots[peer.uid] = slots
        call = spawn(self._run(attestor, peer, deadline, slots), f"attest {attestor.name}", self._calls)
        call.add_done_callback(_look_at)
        try:
            async with asyncio.timeout(max(deadline - self._clock.monotonic(), 0.0)):
                return await asyncio.shield(call)
        except TimeoutError:
            self._count_stuck(call)
            raise Unavailable("workload attestation took too long; try again") from None

    async def _run(self, attestor: WorkloadAttestor, peer: UnixPeer, deadline: float, slots: _Slots) -> Findings:
        """Hold the slot until the thread is back, even when nobody waits for the answer any more."""
        try:
            return await self._pool(attestor.attest, cast("Subject", peer), deadline)  # a frozen Subject
        finally:
            slots.used -= 1
            slots.free.release()
            self._forget_if_idle(peer.uid, slots)

    def _forget_if_idle(self, uid: int, slots: _Slots) -> None:
        if not slots.used and not slots.waiting and self._slots.get(uid) is slots:
            del self._slots[uid]

    def _count_stuck(self, call: asyncio.Task[Findings]) -> None:
        """A thread is lost for now. When half of the pool is, start another: those who hang must not starve the rest."""
        self._stuck += 1
        call.add_done_callback(self._came_back)
        if self._stuck >= THREADS // 2 * self._pools and self._pools < LARGEST_REPLACEMENT:
            self._pools += 1
            self._pool = Offload(f"attest{self._pools}", THREADS)
            log.warning("%d attestation threads hang in reads that workloads control; starting more", self._stuck)

    def _came_back(self, _: asyncio.Task[Findings]) -> None:
        self._stuck -= 1


def _look_at(call: asyncio.Task[Findings]) -> None:
    """Take note of how an abandoned call ended, so that asyncio does not report it as forgotten."""
    if not call.cancelled():
        call.exception()
