"""Which servers are gone for good, as far as the database shows: unseen for two CA lifetimes (architecture A15).

A server that shares the database writes itself down every few minutes (`domain.server_settings`) and puts each new
authority into the journal. Its last trace is the newer of the two, by its own clock. After two lifetimes of its longest
authority nothing that it holds can be valid any more: what still counts as in force becomes old, and what expired a day
ago leaves the journal, as its own schedule would have done.

Clocks may be wrong, ours or theirs, so a time alone proves nothing: `Trace` is compared for equality too, and only a
server of which nothing changed while somebody watched is taken for gone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from identity_server.domain.authority import Authority, Status
from identity_server.domain.rotation import expired_authorities
from identity_server.domain.server_settings import FORGET_SECONDS, MAX_RECORDS, ServerRecord

LIFETIMES = 2
"""Unseen for so many CA lifetimes, a server is given up."""
WATCH_SECONDS = 3_600.0
"""For so long nothing of it may have changed before our eyes: a server that is there writes a dozen times meanwhile."""


@dataclass(frozen=True, slots=True)
class Trace:
    """All that the database has of another server's authorities: equal as long as that server does nothing.

    `written_at` is when it last wrote itself down, 0 if that is forgotten. Times are in unix seconds.
    """

    server_id: str
    written_at: int
    authorities: tuple[Authority, ...]

    @property
    def seen_at(self) -> int:
        """When it was there last, by its own clock."""
        return max(self.written_at, *(one.issued_at for one in self.authorities))

    def left(self, now: int) -> tuple[Authority, ...]:
        """What is to become old: its authorities in force, if it has not been seen for two lifetimes."""
        return tuple(one for one in self.authorities if one.status is not Status.OLD) if self._overdue(now) else ()

    def spent(self, now: int) -> tuple[Authority, ...]:
        """What is to leave the journal then: the old ones that expired more than a day ago."""
        return expired_authorities(self.authorities, now) if self._overdue(now) else ()

    def _overdue(self, now: int) -> bool:
        return now > self.seen_at + patience(self.authorities)


def patience(authorities: Iterable[Authority]) -> int:
    """For how long a server with these authorities may be unseen, in seconds."""
    return LIFETIMES * max((one.not_after - one.issued_at for one in authorities), default=0)


def traces(authorities: Iterable[Authority], records: Iterable[ServerRecord], own: str) -> tuple[Trace, ...]:
    """The traces of all servers but `own` that have authorities in the journal, by server id.

    None at all when there are more records than are compared: the one of a server that is there may be missing then.
    """
    written = {one.server_id: one.written_at for one in records}
    if len(written) >= MAX_RECORDS:
        return ()
    found: dict[str, list[Authority]] = {}
    for one in authorities:
        if one.server_id != own:
            found.setdefault(one.server_id, []).append(one)
    return tuple(
        Trace(server_id, written.get(server_id, 0), tuple(sorted(theirs, key=lambda one: one.authority_id)))
        for server_id, theirs in sorted(found.items())
    )


def keep_records(authorities: Iterable[Authority]) -> int:
    """For how long the record of a server that stopped writing is needed, in seconds."""
    return patience(authorities) + FORGET_SECONDS
