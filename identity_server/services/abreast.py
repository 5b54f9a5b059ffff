"""Use-case: never answer an agent from a past that it has left behind (architecture A8).

Theory of operation. Several servers share one log, and each is a little behind it. An agent that was told something by
one of them carries the position along when it calls another. If this server is not that far, it asks the database where
the log stands *after* the call came, once for all calls that wait for the answer:

- the log is that far: this server is behind, and waits until it has caught up, a second at most. Then it answers
  Unavailable, without details, and the agent tries again or elsewhere;
- the log is not that far: the position is of a history that was lost (a restored backup, a fail-over), or invented.
  There is nothing to wait for, and the call is answered as if nothing had been carried. So no agent is ever shut out,
  and a lie costs one shared read.

Whoever carries no position is answered as ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from identity_server.domain.history import Position
from identity_server.domain.state import State
from spiffe_core.errors import Unavailable
from spiffe_core.runtime.watch import Watch

WAIT_SECONDS: Final = 1.0
MAX_WAITING: Final = 2_000
"""So many calls wait at the same time; on a server that falls far behind, further ones go elsewhere at once."""
MAX_WAITING_EACH: Final = 16
"""Of one agent."""
BEHIND = "this server is behind what another one has told this agent; try again, or another server"


class Abreast:
    """Holds calls until this server is as far as their callers. Belongs to the event loop.

    `head` reads where the log stands in the database now. `behind` counts the calls that were not answered.
    """

    def __init__(self, state: Watch[State], head: Callable[[], Awaitable[Position]]) -> None:
        self._state = state
        self._head = head
        self._waiting: dict[str, int] = {}
        self.behind = 0

    @property
    def position(self) -> Position:
        """Where this server is."""
        return self._state.value.position

    @property
    def waiting(self) -> int:
        """How many calls are held now. Any thread may ask."""
        return sum(list(self._waiting.values()))

    async def reached(self, caller: str, position: Position) -> None:
        """Return once this server is as far as `position`, or has found that the log is not.

        Raises:
            Unavailable: it is behind, or cannot tell; the caller was told nothing.
        """
        if not self._ahead(position):
            return
        if self.waiting >= MAX_WAITING or self._waiting.get(caller, 0) >= MAX_WAITING_EACH:
            raise self._refusal("too many calls wait for this server to catch up")
        self._waiting[caller] = self._waiting.get(caller, 0) + 1
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                head = await self._head()
                if head.epoch != position.epoch or head.revision < position.revision:
                    return
                while self._ahead(position):
                    await self._state.changed(self._state.version)
        except TimeoutError:
            raise self._refusal(BEHIND) from None
        finally:
            left = self._waiting[caller] - 1
            if left:
                self._waiting[caller] = left
            else:
                del self._waiting[caller]

    def _ahead(self, position: Position) -> bool:
        here = self.position
        return (position.epoch, position.revision) > (here.epoch, here.revision)

    def _refusal(self, text: str) -> Unavailable:
        self.behind += 1
        return Unavailable(text)
