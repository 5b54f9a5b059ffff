"""Whether everybody knows a new authority before it stood in the bundle for ten seconds (architecture A15).

The ten seconds are for those who poll. They are not needed where nobody can be meant: where every server of the
database is of a version that tells, and has told; where every agent that holds a certificate in force is connected to
one of them, and has acknowledged; where no agent polls, and no server below this trust domain takes its bundle from us.
Whatever cannot be told counts as a reason to wait.

After the ten seconds those who do tell are still waited for, until a minute has passed: agents on a push stream that
have not acknowledged, and servers whose bundle endpoints may still serve the bundle without it (FED-03).
"""

from __future__ import annotations

import contextlib
import logging

from identity_server.domain.server_settings import PRESENT_SECONDS
from identity_server.ports import Store
from identity_server.services.progress import Progress, Standing
from identity_server.services.shared_progress import SharedProgress
from spiffe_core.clock import Clock
from spiffe_core.errors import IdentityError

log = logging.getLogger(__name__)


class AuthoritySpread:
    """Belongs to the event loop."""

    def __init__(
        self, *, store: Store, progress: Progress, shared: SharedProgress | None, server_id: str, clock: Clock
    ) -> None:
        self._store, self._progress, self._shared, self._clock = store, progress, shared, clock
        self._server_id = server_id

    async def acknowledged(self, revision: int, seconds: float) -> bool:
        """Whether all who must know the bundle of `revision` say within `seconds` that they do.

        False at once where somebody may be meant who never says so.
        """
        try:
            if self._has_downstream() or await self._strangers():
                return False
            async for standing in self._progress.wait(revision, seconds):
                if standing.polling or standing.unknown_count or not self._all_connected(standing):
                    return False
                if standing.over:
                    break
            known = set(self._progress.all())
            return _complete(standing) and self._agents() <= known and not await self._strangers()
        except IdentityError:
            return False

    async def told(self, revision: int, seconds: float) -> None:
        """Return when every connected agent and every server has `revision`; after `seconds` at most.

        A server that does not answer may be one that lives, and serves an older bundle.
        """
        try:
            async with contextlib.aclosing(self._progress.wait(revision, seconds)) as standings:
                async for standing in standings:
                    silent = 0 if self._shared is None else self._shared.silent()
                    if not (standing.following_behind or standing.servers_owing or silent):
                        return
            log.warning(
                "an authority signs that not every connected agent and every server has said to know",
                extra={"facts": {"agents": standing.following_behind, "servers": standing.servers_owing + silent}},
            )
        except IdentityError as error:
            log.warning("nobody can say who knows the new authority: %s", error.public)

    def _has_downstream(self) -> bool:
        special = self._store.state.value.special
        return any(record.downstream for records in special.values() for record in records)

    async def _strangers(self) -> bool:
        """Whether there is, or was a short while ago, a server that does not tell how far its agents are."""
        if self._shared is None:
            return False
        await self._shared.look()
        since = int(self._clock.now().timestamp()) - PRESENT_SECONDS
        records = await self._store.read(lambda uow: uow.servers.all())
        present = {one.server_id for one in records if one.written_at > since}
        return not present <= self._shared.server_ids | {self._server_id} or bool(self._shared.silent())

    def _agents(self) -> set[str]:
        """The agents whose certificates are in force: each may hand the bundle on."""
        now = int(self._clock.now().timestamp())
        agents = self._store.state.value.agents.items()
        return {path for path, one in agents if not one.banned and max(one.expires_at, one.new_expires_at) > now}

    def _all_connected(self, standing: Standing) -> bool:
        """Whether as many are connected as there are; while servers have not told, it cannot be known yet."""
        return bool(standing.servers_owing) or len(self._agents()) <= standing.connected


def _complete(standing: Standing) -> bool:
    everybody = standing.reached == standing.connected and not standing.behind
    return standing.over and everybody and not (standing.servers_owing or standing.polling or standing.unknown_count)
