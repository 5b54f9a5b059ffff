"""How far the agents of this server are: those on its push streams, and those that poll it (architecture A9).

An agent on a push stream has a revision when it acknowledged everything up to it that concerns it. An agent that polls
has one when a sync that began after it was complete; it counts for as long as it goes on polling.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace

from identity_server.domain.agent_progress import AgentProgress, add, merged
from identity_server.ports import Store
from identity_server.services.followers import Followers
from spiffe_core.clock import Clock

MAX_POLLING = 20_000
SLICE = 256
"""So many agents are looked at before anything else may run."""
POLL_SECONDS = 600.0
"""An agent that has not polled for so long does not count any more. SPIRE's agents back off to 8 minutes."""


class OwnProgress:
    """Belongs to the event loop."""

    def __init__(self, *, store: Store, followers: Followers, clock: Clock) -> None:
        self._store = store
        self._followers = followers
        self._clock = clock
        self._polls: OrderedDict[str, tuple[float, int, int]] = OrderedDict()
        self.on_news: list[Callable[[], None]] = []
        """Called when an agent acknowledged something, came, went or polled."""
        followers.on_progress.append(self._news)

    @property
    def revision(self) -> int:
        """Where this server is."""
        return self._store.state.value.position.revision

    def polling(self, agent_path: str) -> Callable[[], None]:
        """A sync begins; what is returned is called when it is complete."""
        began_at = self.revision

        def complete() -> None:
            self._polls.pop(agent_path, None)
            self._polls[agent_path] = (self._clock.monotonic(), int(self._clock.now().timestamp()), began_at)
            if len(self._polls) > MAX_POLLING:
                self._polls.popitem(last=False)
            self._news()

        return complete

    def all(self) -> dict[str, AgentProgress]:
        """How far each agent is. One with two streams is as far as the better one."""
        return merged(self._each())

    async def gathered(self) -> tuple[int, list[AgentProgress]]:
        """A revision, and how far each agent is with it: the same for many agents, without holding up the loop.

        Whoever has a newer one by the time it is looked at has this one, and who comes meanwhile begins with it.
        """
        revision, found = self.revision, dict[str, AgentProgress]()
        for number, one in enumerate(self._each(), 1):
            if number % SLICE == 0:
                await asyncio.sleep(0)
            add(found, one if one.revision <= revision else replace(one, revision=revision))
        return revision, list(found.values())

    def _each(self) -> Iterator[AgentProgress]:
        oldest = self._clock.monotonic() - POLL_SECONDS
        for path, (at, wall, revision) in tuple(self._polls.items()):
            if at >= oldest and self.counts(path):
                yield AgentProgress(path, revision, connected=False, polled_at=wall)
        for one in self._followers:
            revision = self._followers.revision_of(one)
            yield AgentProgress(one.agent_path, revision, connected=True, streams_behind=one.streams_behind)

    def counts(self, agent_path: str) -> bool:
        """Whether the agent may have anything, as far as memory knows."""
        agent = self._store.state.value.agents.get(agent_path)
        return agent is not None and not agent.banned

    def _news(self) -> None:
        for listener in self.on_news:
            listener()
