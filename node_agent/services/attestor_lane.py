"""The threads of one workload attestor: at most two for one uid, and others when they hang (architecture A7).

What an attestor reads may be controlled by the process it reads (an executable on a hanging file system) or by somebody
else who does not answer (a kubelet, a container engine). Callers of one uid beyond two wait for their turn within their
own budget, so a uid that hangs every read slows down nobody but itself. A thread that does not come back keeps its
slot; when half of a pool does not, another pool takes over, a bounded number of times.

Each attestor has slots and threads of its own, so one that hangs holds up no other.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from attestors.api import Findings, PromptAttestor, Subject, WorkloadAttestor
from spiffe_core.clock import Clock
from spiffe_core.errors import Unavailable
from spiffe_core.runtime.offload import Offload
from spiffe_core.runtime.supervise import spawn

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


class Lane:
    """One attestor and its threads. Belongs to the event loop's thread."""

    def __init__(self, attestor: WorkloadAttestor, clock: Clock) -> None:
        self.attestor = attestor
        self._clock = clock
        self._prompt = attestor if isinstance(attestor, PromptAttestor) else None
        self._pools = [_Pool(Offload(f"attest {attestor.name}", THREADS))]
        self._slots: dict[int, _Slots] = {}
        self._calls: set[asyncio.Task[Findings]] = set()

    def at_once(self, peer: Subject) -> Findings | None:
        """What the attestor can tell on the loop; None if it has to be asked on a thread. Raises what it raises."""
        return None if self._prompt is None else self._prompt.attest_at_once(peer)

    async def ask(self, peer: Subject, deadline: float) -> Findings:
        """What the attestor finds, on one of its threads.

        Raises:
            Unavailable: it did not answer by `deadline`, or earlier callers of this user hold all that this user may
                have.
            Exception: whatever the attestor raises.
        """
        slots = self._slots.setdefault(peer.uid, _Slots())
        in_line = slots.free.locked()
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
        if in_line:
            try:
                found = self.at_once(peer)  # whoever was before may have learned what was missing
            except BaseException:
                self._leave(slots, peer.uid)
                raise
            if found is not None:
                self._leave(slots, peer.uid)
                return found
        call = _Call(self.attestor, peer, deadline, self._choose_pool())
        running = spawn(self._run(call, slots), f"attest {self.attestor.name}", self._calls)
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
            self._leave(slots, call.peer.uid)

    def _leave(self, slots: _Slots, uid: int) -> None:
        """Give a slot back."""
        slots.used -= 1
        slots.free.release()
        self._forget_if_idle(uid, slots)

    def _choose_pool(self) -> _Pool:
        """The pool that hangs least; another one when half of it hangs: those who hang must not starve the rest."""
        pool = min(self._pools, key=lambda one: one.abandoned)
        if pool.abandoned >= THREADS // 2 and len(self._pools) < MOST_POOLS:
            log.warning("%d threads of the %s attestor hang; starting more", pool.abandoned, self.attestor.name)
            pool = _Pool(Offload(f"attest {self.attestor.name} {len(self._pools) + 1}", THREADS))
            self._pools.append(pool)
        return pool

    def _forget_if_idle(self, uid: int, slots: _Slots) -> None:
        if not slots.used and not slots.waiting and self._slots.get(uid) is slots:
            del self._slots[uid]


def _look_at(call: asyncio.Task[Findings]) -> None:
    """Take note of how an abandoned call ended, so that asyncio does not report it as forgotten."""
    if not call.cancelled():
        call.exception()
