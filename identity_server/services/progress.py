"""How far each agent is, whichever server it follows: what administrators wait for after a change (architecture A9)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass

from identity_server.domain.agent_progress import AgentProgress, merged
from identity_server.services.own_progress import OwnProgress
from identity_server.services.shared_progress import SharedProgress
from spiffe_core.clock import Clock

LONGEST_WAIT = 600.0
SHOW_SECONDS = 0.2
"""So often, at most, it is told how far the agents are."""
LOOK_SECONDS = 0.02
"""So often, at most, it is looked whether all have it; with many agents less often:"""
SECONDS_PER_AGENT = 1e-5
ASK_SECONDS = 2.0
"""So often the other servers are asked again while somebody waits."""
FRESH_SECONDS = 1.0
"""So long they are given to answer somebody who only looks."""
SHOWN = 100


@dataclass(frozen=True, slots=True)
class Standing:
    """How many of the agents of all servers have a revision."""

    revision: int
    connected: int
    reached: int
    behind: tuple[str, ...]
    """The paths of some that have not."""
    following_behind: int
    """How many that are connected have not."""
    polling: int
    unknown: tuple[str, ...]
    """The paths of some that only a server knows which does not answer; they do not count."""
    unknown_count: int
    unknown_since: int
    """When the first of those servers was heard of last, in unix seconds; 0 if there is none."""
    servers: int
    """How many servers count, this one among them."""
    servers_owing: int
    """Of these, how many have not told yet."""
    over: bool


class Progress:
    """The agents that follow or poll the servers of this database. Belongs to the event loop."""

    def __init__(self, *, own: OwnProgress, shared: SharedProgress | None, clock: Clock) -> None:
        """`shared` is None where the database is this server's alone."""
        self._own = own
        self._shared = shared
        self._clock = clock
        self._waiting: set[asyncio.Event] = set()
        own.on_news.append(self._news)
        if shared is not None:
            shared.on_news.append(self._news)

    @property
    def revision(self) -> int:
        """Where this server is."""
        return self._own.revision

    def polling(self, agent_path: str) -> Callable[[], None]:
        """A sync begins; what is returned is called when it is complete."""
        return self._own.polling(agent_path)

    def of(self, agent_path: str) -> AgentProgress | None:
        """How far one agent is, as far as this server knows now; None if nobody has it."""
        return self.all().get(agent_path)

    def all(self) -> dict[str, AgentProgress]:
        """How far each agent is, as far as this server knows now."""
        own = self._own.all()
        if self._shared is None or not self._shared:
            return own
        return merged((*own.values(), *self._shared.agents()))

    async def fresh(self) -> dict[str, AgentProgress]:
        """How far each agent is, once the other servers were asked.

        Raises:
            Unavailable: the database cannot be used now.
        """
        async with self._listening() as news:
            end = self._clock.monotonic() + FRESH_SECONDS
            await self._ask()
            while self._shared is not None and self._shared.owing() and self._clock.monotonic() < end:
                await self._next(news, end)
                news.clear()
            return self.all()

    async def wait(self, revision: int, seconds: float, agent_path: str = "") -> AsyncGenerator[Standing, None]:
        """Tell again and again how many agents have `revision` (0: the newest), until all have or the time is over.

        Raises:
            Unavailable: the database cannot be used now.
        """
        wanted = revision or self.revision
        end = self._clock.monotonic() + min(max(seconds, 0.0), LONGEST_WAIT)
        async with self._listening() as news:
            shown_at = self._clock.monotonic() - SHOW_SECONDS
            asked_at = self._clock.monotonic() - ASK_SECONDS
            while True:
                now = self._clock.monotonic()
                if now - asked_at >= ASK_SECONDS:
                    asked_at = now
                    await self._ask()
                news.clear()
                standing = self._standing(wanted, agent_path, late=now >= end)
                if standing.over or now - shown_at >= SHOW_SECONDS:
                    shown_at = now
                    yield standing
                if standing.over:
                    return
                await self._clock.sleep(min(SHOW_SECONDS, max(LOOK_SECONDS, SECONDS_PER_AGENT * standing.connected)))
                await self._next(news, min(end, asked_at + ASK_SECONDS))

    def _standing(self, revision: int, agent_path: str, *, late: bool) -> Standing:
        known = [one for one in self.all().values() if agent_path in {"", one.agent_path}]
        agents = [one for one in known if not one.unknown_since]
        lost = [one for one in known if one.unknown_since]
        behind = sorted(one.agent_path for one in agents if one.revision < revision)
        owing = 0 if self._shared is None else self._shared.owing(revision)
        return Standing(
            revision=revision,
            connected=sum(one.connected for one in agents),
            reached=len(agents) - len(behind),
            behind=tuple(behind[:SHOWN]),
            following_behind=sum(one.connected and one.revision < revision for one in agents),
            polling=sum(not one.connected for one in agents),
            unknown=tuple(sorted(one.agent_path for one in lost)[:SHOWN]),
            unknown_count=len(lost),
            unknown_since=min((one.unknown_since for one in lost), default=0),
            servers=1 if self._shared is None else 1 + len(self._shared) - self._shared.silent(),
            servers_owing=owing,
            over=late or not (behind or owing),
        )

    @contextlib.asynccontextmanager
    async def _listening(self) -> AsyncIterator[asyncio.Event]:
        news = asyncio.Event()
        self._waiting.add(news)
        try:
            yield news
        finally:
            self._waiting.discard(news)

    async def _ask(self) -> None:
        if self._shared is not None:
            await self._shared.ask()

    async def _next(self, news: asyncio.Event, end: float) -> None:
        """Wait for news, until `end` at most."""
        try:
            async with asyncio.timeout(max(end - self._clock.monotonic(), 0.0)):
                await news.wait()
        except TimeoutError:
            return

    def _news(self) -> None:
        for event in self._waiting:
            event.set()
