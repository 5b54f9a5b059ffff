"""How long a prepared authority has been published, and who acknowledges it, before it may sign (architecture A15).

The monotonic clock counts, from the moment the state in memory first showed the authority. Those who say what they know
(agents on push streams, other servers) shorten the wait when all of them know an X.509 authority, and lengthen it, by a
minute at most, when some are late. Tokens are verified by many who never say so, hence their keys wait in full.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from identity_server.domain.authority import PROPAGATION_SECONDS, Authority, AuthorityKind, Slots, grace, settled
from identity_server.ports import Store
from spiffe_core.clock import Clock


class PublicationWaits:
    """Belongs to the event loop."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._seen: dict[AuthorityKind, tuple[str, float, int]] = {}  # the prepared one, since when, at which revision
        self.acknowledged: Callable[[int, float], Awaitable[bool]] = _by_nobody
        """Whether all who must know a new authority acknowledge a revision in so many seconds (`authority_spread`)."""
        self.told: Callable[[int, float], Awaitable[None]] = _at_once
        """Returns when all who say what they know have a revision, or after so many seconds."""

    def waited(self, kind: AuthorityKind, prepared: Authority | None) -> float:
        """How long a prepared authority has been published, by the monotonic clock."""
        if prepared is None:
            self._seen.pop(kind, None)
            return 0.0
        now = self._clock.monotonic()
        first = (prepared.authority_id, now, self._store.state.value.position.revision)
        if self._seen.get(kind, first)[0] != prepared.authority_id:
            self._seen[kind] = first
        return now - self._seen.setdefault(kind, first)[1]

    async def until_published(self, kind: AuthorityKind, authority_id: str, slots_now: Callable[[], Slots]) -> bool:
        """Wait until a prepared authority may sign; whether that is because everybody acknowledged it.

        `slots_now` tells how things stand: the schedule may be faster than who asks here.
        """
        acknowledged = await self._is_acknowledged(kind, authority_id, slots_now())
        for _ in range(0 if acknowledged else 4 * PROPAGATION_SECONDS):
            slots = slots_now()
            waited = self.waited(kind, slots.prepared)
            if slots.prepared is None or settled(slots, slots.prepared, self._now(), waited):
                break
            await self._clock.sleep(max(0.05, min(1.0, PROPAGATION_SECONDS - waited)))
        if not acknowledged:
            await self._for_the_late(kind, authority_id, slots_now())
        return acknowledged

    async def _is_acknowledged(self, kind: AuthorityKind, authority_id: str, slots: Slots) -> bool:
        """Whether everybody says within the time of propagation that they know a prepared X.509 authority."""
        waited = self.waited(kind, slots.prepared)
        if kind != "x509" or slots.prepared is None or settled(slots, slots.prepared, self._now(), waited):
            return False
        known, _, revision = self._seen[kind]
        return known == authority_id and await self.acknowledged(revision, PROPAGATION_SECONDS - waited)

    async def _for_the_late(self, kind: AuthorityKind, authority_id: str, slots: Slots) -> None:
        waited = self.waited(kind, slots.prepared)
        if kind != "x509" or slots.prepared is None or self._seen[kind][0] != authority_id:
            return
        seconds = grace(slots, slots.prepared, self._now(), waited)
        if seconds > 0:
            await self.told(self._seen[kind][2], seconds)

    def _now(self) -> int:
        return int(self._clock.now().timestamp())


async def _by_nobody(_revision: int, _seconds: float) -> bool:
    return False


async def _at_once(_revision: int, _seconds: float) -> None:
    return
