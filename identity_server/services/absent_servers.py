"""Use-case: retire the authorities of servers that are gone for good (architecture A15).

An administrator does the same at once with `localauthority give-up-server`. Nothing is tainted and nothing leaves the
bundle by it: a server that was only cut off makes new authorities when it sees what happened, and what it signed before
is as good as it was.
"""

from __future__ import annotations

import logging

from identity_server.domain.absence import WATCH_SECONDS, Trace, traces
from identity_server.domain.audit import AuthorityOrdered
from identity_server.ports import AuditLog, Store, UnitOfWork
from identity_server.services.audited import audited, changed
from identity_server.services.authority_commands import every_authority, forget_spent, retire_server
from identity_server.services.clock_watch import ClockWatch
from spiffe_core.clock import Clock
from spiffe_core.errors import PreconditionFailed

log = logging.getLogger(__name__)


class AbsentServers:
    """Belongs to the event loop."""

    def __init__(self, *, store: Store, clock: Clock, audit: AuditLog, server_id: str) -> None:
        self._store, self._clock, self._audit = store, clock, audit
        self._server_id = server_id
        self._jumps = ClockWatch(clock)
        self._watched: dict[str, tuple[Trace, float]] = {}  # as it was seen first, and since when, monotonic

    async def tick(self) -> None:
        """Look at the other servers' traces, and retire who left none for two lifetimes. Call every few minutes.

        Raises:
            Unavailable: the database or the audit log cannot be used now; the next tick tries again.
        """
        if self._jumps.look():
            self._watched.clear()  # an operator may still correct the clock
        monotonic = self._clock.monotonic()
        found = await self._store.read(self._traces)
        watched: dict[str, tuple[Trace, float]] = {}
        for trace in found:
            before = self._watched.get(trace.server_id)
            watched[trace.server_id] = before if before is not None and before[0] == trace else (trace, monotonic)
        self._watched = watched
        now = int(self._clock.now().timestamp())
        for trace, since in watched.values():
            if monotonic - since >= WATCH_SECONDS and (trace.left(now) or trace.spent(now)):
                await self._retire(trace, now)

    def _traces(self, uow: UnitOfWork) -> tuple[Trace, ...]:
        return traces(every_authority(uow), uow.servers.all(), self._server_id)

    async def _retire(self, trace: Trace, now: int) -> None:
        left, spent = trace.left(now), trace.spent(now)

        def command(uow: UnitOfWork) -> None:
            if trace not in self._traces(uow):
                raise PreconditionFailed("the server, or another one for it, did something meanwhile")
            if left:
                retire_server(uow, trace.server_id, now)
            forget_spent(uow, spent, now)

        events = [changed("retire", one) for one in left] + [changed("forget", one) for one in spent]
        ordered = [AuthorityOrdered(change="give up", actor="", server_id=trace.server_id)] if left else []
        try:
            with audited(self._audit, *ordered, *events):
                await self._store.execute(command)
        except PreconditionFailed as refusal:
            log.info("server %s is left as it is: %s", trace.server_id, refusal.public)
            return
        if left:
            log.warning(
                "server %s has not been seen for two CA lifetimes: its authorities were retired",
                trace.server_id,
                extra={"facts": {"authority_ids": [one.authority_id for one in left], "seen_at": trace.seen_at}},
            )
