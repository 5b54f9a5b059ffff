"""How far each agent is: what administrators wait for after a change (architecture A9).

An agent on a push stream has a revision when it acknowledged everything up to it that concerns it. An agent that polls
has one when a sync that began after it was complete; it counts for as long as it goes on polling.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from identity_server.ports import Store
from identity_server.services.followers import Followers
from spiffe_core.clock import Clock

MAX_POLLING = 20_000
POLL_SECONDS = 600.0
"""An agent that has not polled for so long does not count any more. SPIRE's agents back off to 8 minutes."""
LONGEST_WAIT = 600.0
SHOW_SECONDS = 0.2
"""So often, at most, it is told how far the agents are."""
SHOWN = 100


@dataclass(frozen=True, slots=True)
class AgentProgress:
    """How far one agent is. `polled_at` is in unix seconds, 0 for one on a push stream."""

    agent_path: str
    revision: int
    connected: bool
    polled_at: int = 0
    streams_behind: int = 0


@dataclass(frozen=True, slots=True)
class Standing:
    """How many of the agents of this server have a revision."""

    revision: int
    connected: int
    reached: int
    behind: tuple[str, ...]
    """The paths of some that have not."""
    polling: int
    over: bool


class Progress:
    """The agents that follow or poll this server. Belongs to the event loop."""

    def __init__(self, *, store: Store, followers: Followers, clock: Clock) -> None:
        self._store = store
        self._followers = followers
        self._clock = clock
        self._polls: OrderedDict[str, tuple[float, int, int]] = OrderedDict()
        self._waiting: set[asyncio.Event] = set()
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

    def of(self, agent_path: str) -> AgentProgress | None:
        """How far one agent is; None if it neither follows nor polls this server."""
        return self.all().get(agent_path)

    def all(self) -> dict[str, AgentProgress]:
        """How far each agent is. One with two streams is as far as the better one."""
        found: dict[str, AgentProgress] = {}
        oldest = self._clock.monotonic() - POLL_SECONDS
        for path, (at, wall, revision) in self._polls.items():
            agent = self._store.state.value.agents.get(path)
            if at >= oldest and agent is not None and not agent.banned:
                found[path] = AgentProgress(path, revision, connected=False, polled_at=wall)
        for follower in self._followers:
            one = AgentProgress(
                follower.agent_path,
                self._followers.revision_of(follower),
                connected=True,
                streams_behind=follower.streams_behind,
            )
            known = found.get(one.agent_path)
            if known is None or not known.connected or known.revision < one.revision:
                found[one.agent_path] = one
        return found

    async def wait(self, revision: int, seconds: float, agent_path: str = "") -> AsyncIterator[Standing]:
        """Tell again and again how many agents have `revision` (0: the newest), until all have or the time is over."""
        wanted = revision or self.revision
        end = self._clock.monotonic() + min(max(seconds, 0.0), LONGEST_WAIT)
        news = asyncio.Event()
        self._waiting.add(news)
        try:
            while True:
                news.clear()
                late = self._clock.monotonic() >= end
                standing = self._standing(wanted, agent_path, late=late)
                yield standing
                if standing.over:
                    return
                await self._clock.sleep(SHOW_SECONDS)
                try:
                    async with asyncio.timeout(max(end - self._clock.monotonic(), 0.0)):
                        await news.wait()
                except TimeoutError:
                    continue
        finally:
            self._waiting.discard(news)

    def _standing(self, revision: int, agent_path: str, *, late: bool) -> Standing:
        agents = [one for one in self.all().values() if agent_path in {"", one.agent_path}]
        behind = sorted(one.agent_path for one in agents if one.revision < revision)
        return Standing(
            revision=revision,
            connected=sum(one.connected for one in agents),
            reached=len(agents) - len(behind),
            behind=tuple(behind[:SHOWN]),
            polling=sum(not one.connected for one in agents),
            over=late or not behind,
        )

    def _news(self) -> None:
        for event in self._waiting:
            event.set()
