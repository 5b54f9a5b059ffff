"""Whether all servers of one database issue alike: write our settings down, compare, alarm, and agree (R39).

Servers that differ go on serving, so that a configuration can be changed one server after the other. Until they are
equal again, what has no lifetime of its own gets the shortest default of all servers on each of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from identity_server.domain.absence import keep_records
from identity_server.domain.server_settings import (
    DefaultTtls,
    Difference,
    IssuingSettings,
    ServerRecord,
    default_ttls,
    differences,
    present,
)
from identity_server.ports import Store, UnitOfWork
from identity_server.services.authority_commands import every_authority
from spiffe_core.clock import Clock

WRITE_SECONDS = 300
"""How often a server says that it is still there."""

log = logging.getLogger(__name__)


class ServerAgreement:
    """Belongs to the event loop. `apply` is told the default lifetimes that hold now."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        server_id: str,
        settings: IssuingSettings,
        apply: Callable[[DefaultTtls], None],
    ) -> None:
        self._store, self._clock = store, clock
        self._server_id, self._settings = server_id, settings
        self._apply = apply
        self._written_at = 0
        self._applied = default_ttls(settings, ())
        self.differences: tuple[Difference, ...] = ()
        """On which settings the servers do not agree, as of the last look. A finished value."""

    async def tick(self) -> None:
        """Say that we are there if that is due, and look at the others.

        Raises:
            Unavailable: the database cannot be used now; what was found last stays in force.
        """
        now = int(self._clock.now().timestamp())
        own = ServerRecord(self._server_id, self._settings, now)
        if not 0 <= now - self._written_at < WRITE_SECONDS:

            def command(uow: UnitOfWork) -> None:
                before = now - keep_records(every_authority(uow))
                uow.servers.put(own)
                uow.servers.forget(before)

            await self._store.execute(command)
            self._written_at = now
        everybody = present(await self._store.read(lambda uow: uow.servers.all()), own, now)
        ttls = default_ttls(self._settings, everybody)
        if ttls != self._applied:
            self._applied = ttls
            self._apply(ttls)
        self._tell(differences(everybody))

    def _tell(self, found: tuple[Difference, ...]) -> None:
        before, self.differences = self.differences, found
        if found == before:
            return
        if not found:
            log.info("the servers that share the database issue alike again")
            return
        log.error(
            "the servers that share the database differ in what they issue: %s. Make them equal; until then the "
            "shortest default lifetime of all servers holds",
            "; ".join(map(str, found)),
            extra={"facts": {"differences": {one.key: dict(one.values) for one in found}}},
        )
