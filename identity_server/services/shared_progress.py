"""How far the agents of the other servers are, through one row that each server writes (architecture A9).

Theory of operation. At rest each server writes its row every 30 seconds, without an event, and reads nobody else's.
Who wants to know *asks*: it writes its own row with another number and an event. Every server is woken by that event,
reads the rows, sees the number and writes its own row with an event, which wakes the one that asked; for a few seconds
more it writes again within 200 ms of any news of its agents. Who waits asks again every two seconds.

A row says at which revision its server was. What a server wrote before it had a revision says nothing about it, so it
is waited for; a server that does not answer for five seconds is *silent*: nobody waits for it any more, and its agents
are unknown unless another server has them. All times of that are the asker's own, monotonic.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from identity_server.domain.agent_progress import (
    FORGET_SECONDS,
    AgentProgress,
    ProgressRecord,
    ServerProgress,
    digest_of,
    documents,
    paths_of,
    read,
)
from identity_server.domain.state import State
from identity_server.ports import Store, UnitOfWork
from identity_server.services.own_progress import OwnProgress
from spiffe_core.clock import Clock
from spiffe_core.errors import IdentityError

REST_SECONDS = 30.0
"""So often a server writes its row while nobody asks."""
NEWS_SECONDS = 0.2
"""So often, at most, it writes because its agents came farther, while somebody waits."""
ANSWER_SECONDS = 5.0
"""So long it goes on writing after it was asked last."""
SILENT_SECONDS = 5.0
"""A server that has not answered for so long is not waited for."""
RETRY_SECONDS = 1.0
LEAVE_SECONDS = 2.0
"""So long a server that stops tries to say so."""

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Heard:
    """What another server wrote last."""

    record: ProgressRecord
    paths: tuple[str, ...]
    progress: ServerProgress
    asked_at: float | None = None
    """Since when it has not answered; None if it has answered everything."""


class SharedProgress:
    """This server's row and what the others' say. Belongs to the event loop."""

    def __init__(self, *, store: Store, clock: Clock, server_id: str, own: OwnProgress) -> None:
        self._store, self._clock, self._own = store, clock, own
        self._server_id = server_id
        self._heard: dict[str, Heard] = {}
        self._beat = self._asked = int(clock.now().timestamp() * 1000)  # other numbers than before a restart
        self._asked_ever = False
        self._questions: dict[str, int] = {}
        self._answer_until = self._written_at = clock.monotonic() - REST_SECONDS
        self._wanted = 0
        self._written_revision = -1
        self._cue = self._news = self._asked_now = False
        self._busy = asyncio.Lock()
        self._wake = asyncio.Event()
        self.on_news: list[Callable[[], None]] = []
        """Called when another server has written something."""
        own.on_news.append(self._own_news)
        store.state.listeners.append(self._changed)

    def __len__(self) -> int:
        return len(self._heard)

    @property
    def server_ids(self) -> frozenset[str]:
        """The other servers."""
        return frozenset(self._heard)

    async def run(self) -> None:
        """Write our row, and answer whoever asks; never ends."""
        complained = False
        while True:
            try:
                await self.turn()
                complained = False
            except IdentityError as error:
                if not complained:
                    log.warning("how far agents are cannot be shared between servers now: %s", error.public)
                complained = True
                self._cue = True
                await self._clock.sleep(RETRY_SECONDS)
            try:
                async with asyncio.timeout(self._pause()):
                    await self._wake.wait()
            except TimeoutError:
                continue
            finally:
                self._wake.clear()

    async def turn(self) -> None:
        """Read what others were told of, and write our row if that is due.

        Raises:
            Unavailable: the database cannot be used now.
        """
        if self._cue:
            self._cue = False
            await self.look()
        now = self._clock.monotonic()
        waited_for = now < self._answer_until
        if not waited_for:
            self._wanted = 0
        news = self._news and now - self._written_at >= NEWS_SECONDS
        behind = self._written_revision < self._wanted <= self._own.revision
        if self._asked_now or (waited_for and (news or behind)):
            await self._write(tell=True)
        elif now - self._written_at >= REST_SECONDS:
            await self._write(tell=False)

    async def ask(self) -> None:
        """Have all other servers say how far their agents are. With no other server it costs one read.

        Raises:
            Unavailable: the database cannot be used now.
        """
        await self.look()
        if not self._heard:
            return
        now = self._clock.monotonic()
        for one in self._heard.values():
            one.asked_at = now if one.asked_at is None else one.asked_at
        self._asked += 1
        self._asked_ever = True
        await self._write(tell=True)

    async def look(self) -> None:
        """Read what the other servers wrote.

        Raises:
            Unavailable: the database cannot be used now.
            CorruptState: a row was not written by a server of ours.
        """
        async with self._busy:
            own, before = self._server_id, self._heard
            known = {name: one.record.members_digest for name, one in before.items()}
            since = int(self._clock.now().timestamp()) - FORGET_SECONDS

            def query(uow: UnitOfWork) -> list[Heard]:
                return [_understood(one, before.get(one.server_id)) for one in uow.progress.others(own, since, known)]

            self._heard = {one.record.server_id: one for one in await self._store.read(query)}
            for one in self._heard.values():
                self._note_question(one)
            changed = self._heard != before
        if changed:
            for listener in self.on_news:
                listener()

    async def leave(self) -> None:
        """Take our row away: this server stops, and its agents go elsewhere."""
        try:
            async with asyncio.timeout(LEAVE_SECONDS), self._busy:
                await self._store.execute(lambda uow: uow.progress.remove(self._server_id))
        except (IdentityError, TimeoutError):
            log.warning("that this server leaves could not be written down; the others find out within seconds")

    def agents(self) -> Iterator[AgentProgress]:
        """The agents of the other servers, as far as these told; of silent servers as unknown."""
        now = self._clock.monotonic()
        for heard in self._heard.values():
            silent = _is_silent(heard, now)
            for one in heard.progress.agents:
                if not self._own.counts(one.agent_path):
                    continue
                yield _lost(one, heard.record.written_at) if silent else one

    def owing(self, revision: int = 0) -> int:
        """How many servers have not told how far their agents are with `revision` (0: since they were last asked)."""
        now = self._clock.monotonic()
        return sum(
            not _is_silent(one, now) and (one.progress.revision < revision if revision else one.asked_at is not None)
            for one in self._heard.values()
        )

    def silent(self) -> int:
        """How many servers do not answer."""
        now = self._clock.monotonic()
        return sum(_is_silent(one, now) for one in self._heard.values())

    def _note_question(self, heard: Heard) -> None:
        record = heard.record
        if not record.asked or self._questions.get(record.server_id) == record.asked:
            return
        self._questions[record.server_id] = record.asked
        self._answer_until = self._clock.monotonic() + ANSWER_SECONDS
        self._asked_now = True
        self._wanted = max(self._wanted, heard.progress.revision)

    async def _write(self, *, tell: bool) -> None:
        async with self._busy:
            self._asked_now = self._news = False
            revision, agents = await self._own.gathered()
            self._beat += 1
            self._written_at = self._clock.monotonic()
            now = int(self._clock.now().timestamp())
            beat, asked = self._beat, self._asked if self._asked_ever else 0

            def command(uow: UnitOfWork) -> None:
                members, brief = documents(agents, revision)
                record = ProgressRecord(self._server_id, beat, asked, now, digest_of(members), members, brief)
                uow.progress.put(record, tell=tell)
                uow.progress.forget(now - FORGET_SECONDS)

            try:
                await self._store.execute(command)
            except BaseException:
                self._asked_now = self._asked_now or tell
                raise
            self._written_revision = revision

    def _pause(self) -> float:
        """How long nothing is due unless something happens."""
        now = self._clock.monotonic()
        due = self._written_at + REST_SECONDS
        if now < self._answer_until and self._news:
            due = self._written_at + NEWS_SECONDS
        return max(due - now, 0.0)

    def _own_news(self) -> None:
        self._news = True
        if self._clock.monotonic() < self._answer_until:
            self._wake.set()

    def _changed(self, state: State) -> None:
        told = None if state.last is None else state.last.progress
        if told is None or told - {self._server_id}:
            self._cue = True
            self._wake.set()
        elif self._written_revision < self._wanted:
            self._wake.set()


def _understood(record: ProgressRecord, before: Heard | None) -> Heard:
    """On a reader's thread: what a row says, or what was heard before if it is the same row."""
    if before is not None and before.record.beat == record.beat:
        return before
    same = before is not None and before.record.members_digest == record.members_digest
    paths = before.paths if same and before is not None else paths_of(record.members)
    return Heard(record, paths, read(record.server_id, paths, record.brief))


def _is_silent(heard: Heard, now: float) -> bool:
    return heard.asked_at is not None and now - heard.asked_at >= SILENT_SECONDS


def _lost(one: AgentProgress, written_at: int) -> AgentProgress:
    return AgentProgress(
        one.agent_path, one.revision, connected=False, server_id=one.server_id, unknown_since=max(written_at, 1)
    )
