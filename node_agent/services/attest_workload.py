"""Who is calling: asks every configured workload attestor about the process at the other end.

Attestors run side by side on their own threads under one budget, because what they read is controlled by the workload
(an executable on a hanging file system, a slow container engine). At most two threads work for one uid; callers beyond
that wait for their turn within the same budget, so a uid that hangs every read slows down nobody but itself
(architecture A7). A thread that does not come back keeps its slot; when half of a pool does not, another pool takes
over, a bounded number of times.

A hop to a thread and back costs ten times what the reading itself does. So an attestor that can tell without waiting for
anything (`attest_at_once`) is asked for that first, here on the loop: a full reading like any other, of now.

One attestor that fails is tolerated, all failing is not: fewer selectors never match more (spire_features 17.1).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from attestors.api import Findings, PromptAttestor, Subject, WorkloadAttestor
from spiffe_core.clock import Clock
from spiffe_core.errors import IdentityError, Unauthenticated, Unavailable
from spiffe_core.runtime.offload import Offload
from spiffe_core.runtime.supervise import spawn
from spiffe_core.runtime.tracing import span
from spiffe_core.selectors import Selector
from spiffe_core.wire.peer import UnixPeer

log = logging.getLogger(__name__)

THREADS = 16
SLOTS_PER_UID = 2
WAITING_PER_UID = 4096
MOST_POOLS = 4
FAILED = "workload attestation failed"


class _Slots:
    """Two at a time for one uid, a bounded number in line."""

    __slots__ = ("free", "used", "waiting")

    def __init__(self) -> None:
        self.free = asyncio.Semaphore(SLOTS_PER_UID)
        self.used = 0
        self.waiting = 0


@dataclass(slots=True)
class _Pool:
    """Threads, and how many of their calls nobody waits for any more."""

    offload: Offload
    abandoned: int = 0


@dataclass(slots=True)
class _Call:
    """One question to one attestor. Once abandoned it is not begun any more."""

    attestor: WorkloadAttestor
    peer: Subject
    deadline: float
    pool: _Pool
    abandoned: bool = False

    def run(self) -> Findings:
        """On a thread of the pool."""
        if self.abandoned:
            raise Unavailable(FAILED)
        return self.attestor.attest(self.peer, self.deadline)


class AttestWorkload:
    """Gathers the selectors of one process. Belongs to the event loop's thread."""

    def __init__(self, attestors: Sequence[WorkloadAttestor], *, clock: Clock, budget: float = 5.0) -> None:
        if not attestors:
            raise ValueError("without an attestor no workload could be told from another")
        self._attestors = tuple(attestors)
        self._at_once = [one.attest_at_once if isinstance(one, PromptAttestor) else None for one in attestors]
        self._clock = clock
        self._budget = budget
        self._pools = [_Pool(Offload("attest", THREADS))]
        self._slots: dict[int, _Slots] = {}
        self._calls: set[asyncio.Task[Findings]] = set()

    async def __call__(self, peer: UnixPeer) -> frozenset[Selector]:
        """The selectors of `peer`, read now.

        Raises:
            Unauthenticated: the process that connected is gone.
            Unavailable: no attestor could tell anything, or it took too long.
        """
        with span("attest.workload"):
            return await self._attest(peer)

    async def _attest(self, peer: UnixPeer) -> frozenset[Selector]:
        peer.require_alive()
        deadline = self._clock.monotonic() + self._budget
        results: list[Findings | Exception] = []
        rest: list[WorkloadAttestor] = []
        for attestor, at_once in zip(self._attestors, self._at_once, strict=True):
            found = None if at_once is None else _outcome_of(at_once, attestor, peer)
            if found is None:
                rest.append(attestor)
            else:
                results.append(found)
        if len(rest) == 1:  # no tasks for the usual case
            results.append(await self._outcome(rest[0], peer, deadline))
        elif rest:
            results += await asyncio.gather(*(self._outcome(attestor, peer, deadline) for attestor in rest))
        peer.require_alive()
        return _united(results)

    async def _outcome(self, attestor: WorkloadAttestor, peer: Subject, deadline: float) -> Findings | Exception:
        """The answer of one attestor, or how it failed: one failing is not the end."""
        try:
            return await self._ask(attestor, peer, deadline)
        except Exception as error:  # noqa: BLE001  # told apart where it is reported
            return _failed(attestor, peer, error)

    async def _ask(self, attestor: WorkloadAttestor, peer: Subject, deadline: float) -> Findings:
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
        call = _Call(attestor, peer, deadline, self._choose_pool())
        running = spawn(self._run(call, slots), f"attest {attestor.name}", self._calls)
        running.add_done_callback(_look_at)
        try:
            async with asyncio.timeout(max(deadline - self._clock.monotonic(), 0.0)):
                return await asyncio.shield(running)
        except TimeoutError:
            raise Unavailable("workload attestation took too long; try again") from None
        finally:
            if not running.done():
                call.abandoned = True
                call.pool.abandoned += 1

    async def _run(self, call: _Call, slots: _Slots) -> Findings:
        """Hold the slot until the thread is back, even when nobody waits for the answer any more."""
        try:
            return await call.pool.offload(call.run)
        finally:
            call.pool.abandoned -= call.abandoned
            slots.used -= 1
            slots.free.release()
            self._forget_if_idle(call.peer.uid, slots)

    def _choose_pool(self) -> _Pool:
        """The pool that hangs least; another one when half of it hangs: those who hang must not starve the rest."""
        pool = min(self._pools, key=lambda one: one.abandoned)
        if pool.abandoned >= THREADS // 2 and len(self._pools) < MOST_POOLS:
            log.warning("%d attestation threads hang in reads that workloads control; starting more", pool.abandoned)
            pool = _Pool(Offload(f"attest{len(self._pools) + 1}", THREADS))
            self._pools.append(pool)
        return pool

    def _forget_if_idle(self, uid: int, slots: _Slots) -> None:
        if not slots.used and not slots.waiting and self._slots.get(uid) is slots:
            del self._slots[uid]


def _united(results: Sequence[Findings | Exception]) -> frozenset[Selector]:
    """The selectors of all who found any.

    Raises:
        Unauthenticated: one found that it is not the process that connected, whatever the others found.
        Unavailable: none could tell anything.
    """
    if len(results) == 1 and isinstance(results[0], Findings):
        return results[0].selectors
    found = [one for one in results if isinstance(one, Findings)]
    for failure in results:
        if isinstance(failure, Unauthenticated):
            raise failure
    if not found:
        raise Unavailable(FAILED)
    return frozenset().union(*(one.selectors for one in found))


def _outcome_of(
    at_once: Callable[[Subject], Findings | None], attestor: WorkloadAttestor, peer: Subject
) -> Findings | Exception | None:
    """What the attestor can tell now, or how it failed; None if it has to be asked on a thread."""
    try:
        return at_once(peer)
    except Exception as error:  # noqa: BLE001  # told apart where it is reported
        return _failed(attestor, peer, error)


def _failed(attestor: WorkloadAttestor, peer: Subject, error: Exception) -> Exception:
    """Report how an attestor failed. A broken plugin fails like any other."""
    facts = {"attestor": attestor.name, "pid": peer.pid, "uid": peer.uid}
    if isinstance(error, IdentityError):
        log.info("attestation failed: %s", error.public, extra={"facts": facts | error.facts})
    else:
        log.error("attestor %s failed", attestor.name, exc_info=error, extra={"facts": facts})
    return error


def _look_at(call: asyncio.Task[Findings]) -> None:
    """Take note of how an abandoned call ended, so that asyncio does not report it as forgotten."""
    if not call.cancelled():
        call.exception()
