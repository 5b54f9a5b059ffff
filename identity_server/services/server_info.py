"""Use-case: tell an administrator what the server is and what it holds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from identity_server.domain.listing import AgentFilter, EntryFilter
from identity_server.ports import Store, UnitOfWork
from spiffe_core.clock import Clock
from spiffe_core.errors import Internal, NotFound, VerificationFailed
from spiffe_core.x509_verify import verify_x509_svid

REMEMBER_SECONDS = 5.0
"""For so long the same answer is given: counting reads whole tables."""


@dataclass(frozen=True, slots=True)
class Info:
    """What the server tells of itself."""

    chain: tuple[bytes, ...]
    """Its own SVID with everything up to the root it was verified with, DER, leaf first."""
    uptime_seconds: int
    agents: int
    entries: int
    bundles: int
    """The own one included, as in SPIRE."""


class ServerInfo:
    """Counts, and remembers the answer for a moment. Belongs to the event loop."""

    def __init__(self, *, store: Store, chain: Callable[[], tuple[bytes, ...]], clock: Clock) -> None:
        self._store = store
        self._chain = chain
        self._clock = clock
        self._started = clock.monotonic()
        self._lock = asyncio.Lock()
        self._known: tuple[float, Info] | None = None

    async def get(self) -> Info:
        """The answer, at most five seconds old."""
        async with self._lock:
            now = self._clock.monotonic()
            if self._known is None or now - self._known[0] >= REMEMBER_SECONDS:
                self._known = (now, await self._found(int(now - self._started)))
            return self._known[1]

    async def _found(self, uptime: int) -> Info:
        chain = self._verified()
        agents, entries, bundles = await self._store.read(_counts)
        return Info(chain=chain, uptime_seconds=uptime, agents=agents, entries=entries, bundles=bundles)

    def _verified(self) -> tuple[bytes, ...]:
        bundles = self._store.state.value.bundles
        if bundles is None:
            raise NotFound("trust domain bundle not found")
        chain = self._chain()
        try:
            anchor = verify_x509_svid(chain, bundles.get, now=self._clock.now()).anchor_der
        except VerificationFailed as error:
            raise Internal(
                "the server's own certificate does not verify against its bundle", cause=error.public
            ) from error
        return chain if anchor in chain else (*chain, anchor)


def _counts(uow: UnitOfWork) -> tuple[int, int, int]:
    return uow.agents.count(AgentFilter()), uow.entries.count(EntryFilter()), uow.bundles.count()
