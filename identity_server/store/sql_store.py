"""The Store port on SQL: writer, follower and readers around one database."""

from __future__ import annotations

import asyncio
import gc
import heapq
import itertools
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from identity_server.domain.history import HistoryChange, Position
from identity_server.domain.state import State
from identity_server.ports import UnitOfWork
from identity_server.store.connecting import NO_ACCESS, open_database
from identity_server.store.database import Access, Database
from identity_server.store.event_log import TOKEN_BITS, Head, ReadOnly, bootstrap
from identity_server.store.failures import AWAY, refusal_of
from identity_server.store.follower import Follower
from identity_server.store.log_age import LogAge
from identity_server.store.migrating import upgrade
from identity_server.store.own_writes import OwnWrites
from identity_server.store.sqlite_database import BUSY_MILLISECONDS
from identity_server.store.unit_of_work import SqlUnitOfWork
from identity_server.store.writer import UNKNOWN, Operation, Outcome, Writer
from spiffe_core.clock import Clock
from spiffe_core.entry import RegistrationEntry
from spiffe_core.errors import Unavailable
from spiffe_core.runtime.offload import Offload
from spiffe_core.runtime.supervise import spawn
from spiffe_core.runtime.watch import Watch
from spiffe_core.spiffe_id import TrustDomain

T = TypeVar("T")
READ_THREADS = 4
FREEZE_FROM = 1_000
"""From so many entries and agents on, the loaded state is taken out of the garbage collector's sight."""
CAUGHT_UP_SECONDS = 10.0
"""How long a stored change may take to show in the state before its caller is answered without waiting for it."""
ANSWER_SECONDS = 30.0
"""How long a change may take, waiting included, before its caller is told that it failed or may have (R24)."""
READ_SECONDS = 15.0
"""How long a read may take, waiting included."""
MAX_READING = 1_000
CLOSE_SECONDS = 10.0
KEEP_REVISIONS = 200_000
KEEP_SECONDS = 24 * 3600.0
PRUNE_REVISIONS = 1_000
PRUNE_PAUSE = 0.05

_log = logging.getLogger(__name__)


class SqlStore:
    """The database, the view of it in memory, and the threads between them.

    `open` migrates and loads; `start` begins to write and to follow on the running loop; `close` finishes what waits.
    `on_history_change` is called on the loop when the database's history turns out not to be the one we knew.
    """

    def __init__(
        self,
        database: Database,
        *,
        trust_domain: TrustDomain,
        server_id: str,
        encode: Callable[[RegistrationEntry], bytes],
        clock: Clock,
    ) -> None:
        self._database = database
        self._trust_domain = trust_domain
        self._clock = clock
        own_writes = OwnWrites()
        self._writer = Writer(
            database.writer,
            trust_domain,
            place=database.place,
            clock=clock,
            deliver=self._deliver,
            announce=database.announce,
            own_writes=own_writes,
            rest=database.rest,
        )
        self._follower = Follower(
            database.reader,
            trust_domain,
            server_id,
            encode=encode,
            publish=self._hand_over,
            own_writes=own_writes,
            behind_is_proof_after=database.behind_is_proof_after,
        )
        self._bell = database.bell(self._follower.wake)
        self._readers = Offload("store-read", READ_THREADS)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: list[tuple[int, int, asyncio.Future[Any], Any]] = []
        self._numbers = itertools.count()
        self._reading = 0
        self._heads: asyncio.Task[Position] | None = None
        self._overdue: asyncio.TimerHandle | None = None
        self._age = LogAge()
        self.weaknesses: tuple[str, ...] = ()
        """Settings of the database by which a crash may lose what was acknowledged; told when the store was opened."""
        self.state: Watch[State] = Watch(self._follower.state)
        self.on_history_change: Callable[[HistoryChange], None] | None = None

    @classmethod
    def open(
        cls,
        url: str | Path,
        *,
        trust_domain: TrustDomain,
        server_id: str,
        encode: Callable[[RegistrationEntry], bytes],
        clock: Clock,
        access: Access = NO_ACCESS,
        busy_milliseconds: int = BUSY_MILLISECONDS,
    ) -> SqlStore:
        """Lock, check, migrate and load the database at `url` (or at this path). Blocking.

        Several servers may start on one empty database: one of them makes it, the others wait.

        Raises:
            ConfigError: the URL or the place cannot work.
            Conflict: another process has the file.
            CorruptState: what is there is not ours or is damaged.
            PreconditionFailed: the database is newer than this version, or belongs to another trust domain.
            Unavailable: it cannot be reached or written now.
        """
        database = open_database(url, access, busy_milliseconds=busy_milliseconds)
        try:
            with database.alone():
                upgrade(database)
                with database.writer.begin() as connection:
                    now_ms = int(clock.now().timestamp() * 1000)
                    bootstrap(connection, trust_domain, now_ms, secrets.randbits(TOKEN_BITS))
            store = cls(database, trust_domain=trust_domain, server_id=server_id, encode=encode, clock=clock)
            store.weaknesses = database.weaknesses()
            store.state = Watch(store._follower.load())
        except SQLAlchemyError as error:
            database.close()
            raise refusal_of(error, database.place) from error
        except BaseException:
            database.close()
            raise
        for weakness in store.weaknesses:
            _log.critical("%s", weakness)
        state = store.state.value
        if len(state.entries) + len(state.agents) >= FREEZE_FROM:
            gc.collect()
            gc.freeze()
        return store

    async def start(self) -> None:
        """Begin to write and to follow; the state is published on the loop that calls this."""
        self._loop = asyncio.get_running_loop()
        self._writer.start()
        self._follower.start()
        if self._bell is not None:
            self._bell.start()

    async def close(self) -> None:
        """Refuse new writes, finish those that wait, end the threads, let the database go, all in `CLOSE_SECONDS`.

        A database that says nothing any more keeps each thread waiting for as long as it may; they wait side by side.
        """

        def end() -> None:
            over_at = time.monotonic() + CLOSE_SECONDS
            self._follower.stop()
            self._writer.close(CLOSE_SECONDS)
            if self._bell is not None:
                self._bell.close(max(over_at - time.monotonic(), 0.0))
            self._follower.close(max(over_at - time.monotonic(), 0.0))
            self._database.close()

        await Offload("store-close", 1)(end)
        self._answer(2**63)
        if self._overdue is not None:
            self._overdue.cancel()

    @property
    def trouble(self) -> str:
        """Why the state may be out of date, for health; "" if it is not."""
        return self._follower.trouble

    @property
    def lag(self) -> float:
        """How many seconds ago memory was last seen to agree with the database."""
        return self._follower.lag

    def measure_reloads(self, observe: Callable[[float], None]) -> None:
        """Have `observe` told how long it took to follow each change; on the follower's thread."""
        self._follower.on_reload = observe

    async def execute(self, command: Callable[[UnitOfWork], T]) -> T:
        """Run `command` on the writer's thread; see `identity_server.ports.Store`."""
        return await self._execute(command)

    async def _execute(self, command: Callable[[SqlUnitOfWork], T]) -> T:
        loop = asyncio.get_running_loop()
        assert loop is self._loop, "the store belongs to the loop that started it"
        answer: asyncio.Future[T] = loop.create_future()
        operation = Operation(command, answer)
        self._writer.submit(operation)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await answer
        except TimeoutError:
            raise Unavailable(AWAY if operation.claim() else UNKNOWN, place=self._database.place) from None
        except asyncio.CancelledError:
            operation.claim()  # if it still waits, it never runs
            raise

    async def read(self, query: Callable[[UnitOfWork], T]) -> T:
        """Run `query` on a reader's thread in one snapshot."""
        return await self._read(query)

    async def head(self) -> Position:
        """Where the database is; read after this was called, once for all who call while a read is under way.

        The follower looks for what is new as well.

        Raises:
            Unavailable: the database cannot be read now.
        """
        self._follower.wake()
        earlier = self._heads
        if earlier is not None and not earlier.done():
            await asyncio.wait({earlier})  # it may have looked too early
        if self._heads is earlier:
            self._heads = spawn(self._read(lambda uow: uow.log.head().position), "read the log's head", set())
            self._heads.add_done_callback(lambda task: task.cancelled() or task.exception())  # if nobody waits any more
        assert self._heads is not None
        return await asyncio.shield(self._heads)

    async def _read(self, query: Callable[[SqlUnitOfWork], T]) -> T:
        if self._reading >= MAX_READING:
            raise Unavailable("too many reads are waiting; try again later", waiting=MAX_READING)
        awaited = [query]
        self._reading += 1
        try:
            async with asyncio.timeout(READ_SECONDS):
                return await self._readers(self._query, awaited)
        except TimeoutError:
            raise Unavailable(AWAY, place=self._database.place) from None
        finally:
            self._reading -= 1
            awaited.clear()

    def _query(self, awaited: Sequence[Callable[[SqlUnitOfWork], T]]) -> T:
        if not awaited:
            raise Unavailable(AWAY)  # to nobody
        query = awaited[0]
        try:
            try:
                return self._in_snapshot(query)
            except DBAPIError as error:
                if not error.connection_invalidated:
                    raise
            return self._in_snapshot(query)  # the database was restarted: that connection was old, the next one is new
        except SQLAlchemyError as error:
            raise refusal_of(error, self._database.place) from error

    def _in_snapshot(self, query: Callable[[SqlUnitOfWork], T]) -> T:
        with self._database.reader.begin() as connection:
            return query(SqlUnitOfWork(connection, ReadOnly(), self._trust_domain))

    async def prune_log(self, *, keep_revisions: int = KEEP_REVISIONS, keep_seconds: float = KEEP_SECONDS) -> int:
        """Drop log events that are too many or too old, in small transactions; returns the lowest revision kept.

        The newest revision always stays, so an idle follower is never made to load everything.
        """
        head: Head = await self._read(lambda uow: uow.log.head())
        now = self._clock.monotonic()
        self._age.note(now, head.revision)
        by_count = head.revision - max(keep_revisions, 1) + 1
        keep_from = min(max(by_count, self._age.newest_before(now - keep_seconds)), head.revision)
        floor = head.floor
        while floor < keep_from:
            floor = await self._execute(lambda uow: uow.log.prune(keep_from, PRUNE_REVISIONS))
            if floor < keep_from:
                await self._clock.sleep(PRUNE_PAUSE)  # let writers have the disk between two chunks
        return floor

    def _deliver(self, pairs: Sequence[tuple[Operation, Outcome]]) -> None:
        """Writer's thread: outcomes are known."""
        if any(outcome.revision for _, outcome in pairs):
            self._follower.wake()
        self._on_loop(self._settle, pairs)

    def _hand_over(self, state: State, change: HistoryChange | None) -> None:
        """Follower's thread: there is a new state.

        If its history is another, begin a new one where we found out first.
        """
        if change is not None and change.proven:
            now_ms = int(self._clock.now().timestamp() * 1000)
            try:
                self._writer.submit(Operation(lambda uow: uow.log.begin_history(change.after.epoch, now_ms)))
            except Unavailable:
                _log.warning("no new history could be begun: the server is stopping or overloaded")
        self._on_loop(self._publish, (state, change))

    def _on_loop(self, function: Callable[[Any], None], value: Any) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(function, value)
        except RuntimeError:  # the loop is closed: nobody waits any more
            _log.debug("the event loop was closed before the store")

    def _settle(self, pairs: Sequence[tuple[Operation, Outcome]]) -> None:
        """Loop: answer refusals and reads now, writes as soon as the state includes them."""
        known = self.state.value.position.revision
        last = 0
        for operation, outcome in pairs:
            answer: asyncio.Future[Any] | None = operation.ticket
            if answer is None or answer.done():
                continue
            if outcome.error is not None:
                answer.set_exception(outcome.error)
            elif outcome.revision <= known:
                answer.set_result(outcome.value)
            else:
                last = max(last, outcome.revision)
                heapq.heappush(self._waiting, (outcome.revision, next(self._numbers), answer, outcome.value))
        if last and self._overdue is None:
            self._overdue = asyncio.get_running_loop().call_later(CAUGHT_UP_SECONDS, self._answer_overdue, last)

    def _answer_overdue(self, revision: int) -> None:
        """Loop: what has waited since this timer was set is stored, and is answered although it is not shown."""
        self._overdue = None
        self._answer(revision)
        if self._waiting:
            last = max(one[0] for one in self._waiting)
            self._overdue = asyncio.get_running_loop().call_later(CAUGHT_UP_SECONDS, self._answer_overdue, last)

    def _publish(self, news: tuple[State, HistoryChange | None]) -> None:
        """Loop: show the state, and tell of a new history before anything else can run on that state."""
        state, change = news
        self.state.publish(state)
        if change is not None and self.on_history_change is not None:
            self.on_history_change(change)
        self._answer(state.position.revision)

    def _answer(self, revision: int) -> None:
        """Loop: the changes up to `revision` are stored and shown, or have waited long enough for the follower."""
        while self._waiting and self._waiting[0][0] <= revision:
            _, _, answer, value = heapq.heappop(self._waiting)
            if not answer.done():
                answer.set_result(value)
