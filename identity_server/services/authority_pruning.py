"""What expired a day ago leaves journal, bundle and key store, of whichever kind and server (R31)."""

from __future__ import annotations

import logging

from identity_server.domain.authority import AuthorityKind
from identity_server.domain.published import expired_ids
from identity_server.domain.rotation import expired_authorities
from identity_server.ports import AuditLog, Store
from identity_server.services.audited import audited, changed
from identity_server.services.authority_commands import KINDS, in_force, prune
from identity_server.services.authority_keys import AuthorityKeys
from identity_server.services.authority_lines import CaSettings
from identity_server.services.clock_watch import ClockWatch
from spiffe_core.clock import Clock

PRUNE_PAUSE_SECONDS = 3_600.0
"""After a clock jump no root is removed for so long: an operator may still correct the clock."""

log = logging.getLogger(__name__)


class AuthorityPruning:
    """Of the authorities of one server, whose `kinds` it leads. Belongs to the event loop."""

    def __init__(
        self,
        store: Store,
        keys: AuthorityKeys,
        clock: Clock,
        audit: AuditLog,
        settings: CaSettings,
        kinds: tuple[AuthorityKind, ...],
    ) -> None:
        self._store, self._keys, self._clock, self._audit = store, keys, clock, audit
        self._settings, self._kinds = settings, kinds
        self._jumps = ClockWatch(clock)
        self._not_until = 0.0

    def look_at_clock(self) -> None:
        """Put pruning off if the wall clock jumped since the last look."""
        jump = self._jumps.look()
        if jump:
            self._not_until = self._clock.monotonic() + PRUNE_PAUSE_SECONDS
            log.warning("clock jump: the wall clock moved by %+.0f s", jump, extra={"facts": {"seconds": round(jump)}})

    @property
    def clock_is_believed(self) -> bool:
        """False for so long after a jump: what a wrong clock deletes is gone."""
        return self._clock.monotonic() >= self._not_until

    async def run(self) -> None:
        """Prune, if there is something to prune and the clock can be believed."""
        if not self.clock_is_believed:
            return
        now, settings, kinds = int(self._clock.now().timestamp()), self._settings, self._kinds
        state = self._store.state.value
        own = state.bundles.own if state.bundles is not None else None
        gone = expired_authorities(state.authorities, now)
        stale = any(expired_ids(own, kind, now, keep=in_force(state.authorities, kind, kinds)) for kind in KINDS)
        if not gone and not stale:
            return
        with audited(self._audit, *(changed("forget", one) for one in gone)):
            removed = await self._store.execute(
                lambda uow: prune(uow, settings.server_id, settings.trust_domain, kinds, now)
            )
        log.info("expired authorities left the bundle", extra={"facts": {"authority_ids": removed}})
        await self._keys.delete(gone)
