"""Who is calling: asks every configured workload attestor about the process at the other end.

Attestors run side by side under one budget, each on threads of its own (`attestor_lane`), because what they read is
controlled by the workload or by somebody else who may not answer (architecture A7).

A hop to a thread and back costs ten times what the reading itself does. So an attestor that can tell without waiting
for anything (`attest_at_once`) is asked for that first, here on the loop: a full reading like any other, of now.

One attestor that fails is tolerated, all failing is not: fewer selectors never match more (spire_features 17.1). What
the others found is marked as partial, so that whoever follows it asks again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from attestors.api import Findings, Subject, WorkloadAttestor
from node_agent.services.attestor_lane import FAILED, Lane
from spiffe_core.clock import Clock
from spiffe_core.errors import IdentityError, Unauthenticated, Unavailable
from spiffe_core.runtime.tracing import span
from spiffe_core.selectors import PartialSelectors, Selector
from spiffe_core.wire.peer import UnixPeer

log = logging.getLogger(__name__)


class AttestWorkload:
    """Gathers the selectors of one process. Belongs to the event loop's thread."""

    def __init__(self, attestors: Sequence[WorkloadAttestor], *, clock: Clock, budget: float = 5.0) -> None:
        if not attestors:
            raise ValueError("without an attestor no workload could be told from another")
        self._lanes = [Lane(one, clock) for one in attestors]
        self._clock = clock
        self._budget = budget

    async def __call__(self, peer: UnixPeer) -> frozenset[Selector]:
        """The selectors of `peer`, read now.

        Raises:
            Unauthenticated: the process that connected is gone.
            Unavailable: no attestor could tell anything, or it took too long.
        """
        with span("attest.workload"):
            return await self._attest(peer)

    @property
    def types(self) -> tuple[str, ...]:
        """The types of selectors that there can be."""
        return tuple(lane.attestor.name for lane in self._lanes)

    async def each(self, peer: UnixPeer) -> dict[str, Findings | Exception]:
        """What each attestor says of `peer`, read now, by its name; for people who ask why.

        Raises:
            Unauthenticated: the process is gone.
        """
        peer.require_alive()
        deadline = self._clock.monotonic() + self._budget
        outcomes = await asyncio.gather(*(_outcome(lane, peer, deadline) for lane in self._lanes))
        peer.require_alive()
        return dict(zip(self.types, outcomes, strict=True))

    async def _attest(self, peer: UnixPeer) -> frozenset[Selector]:
        peer.require_alive()
        deadline = self._clock.monotonic() + self._budget
        results: list[Findings | Exception] = []
        rest: list[Lane] = []
        for lane in self._lanes:
            found = _outcome_at_once(lane, peer)
            if found is None:
                rest.append(lane)
            else:
                results.append(found)
        if len(rest) == 1:  # no tasks for the usual case
            results.append(await _outcome(rest[0], peer, deadline))
        elif rest:
            results += await asyncio.gather(*(_outcome(lane, peer, deadline) for lane in rest))
        peer.require_alive()
        return _united(results)


async def _outcome(lane: Lane, peer: Subject, deadline: float) -> Findings | Exception:
    """The answer of one attestor, or how it failed: one failing is not the end."""
    try:
        return await lane.ask(peer, deadline)
    except Exception as error:  # noqa: BLE001  # told apart where it is reported
        return _failed(lane.attestor, peer, error)


def _united(results: Sequence[Findings | Exception]) -> frozenset[Selector]:
    """The selectors of all who found any; `PartialSelectors` if somebody could not tell.

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
    together: frozenset[Selector] = frozenset().union(*(one.selectors for one in found))
    return together if len(found) == len(results) else PartialSelectors(together)


def _outcome_at_once(lane: Lane, peer: Subject) -> Findings | Exception | None:
    """What the attestor can tell now, or how it failed; None if it has to be asked on a thread."""
    try:
        return lane.at_once(peer)
    except Exception as error:  # noqa: BLE001  # told apart where it is reported
        return _failed(lane.attestor, peer, error)


def _failed(attestor: WorkloadAttestor, peer: Subject, error: Exception) -> Exception:
    """Report how an attestor failed. A broken plugin fails like any other."""
    facts = {"attestor": attestor.name, "pid": peer.pid, "uid": peer.uid}
    if isinstance(error, IdentityError):
        log.info("attestation failed: %s", error.public, extra={"facts": facts | error.facts})
    else:
        log.error("attestor %s failed", attestor.name, exc_info=error, extra={"facts": facts})
    return error
