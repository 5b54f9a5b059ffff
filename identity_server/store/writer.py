"""The one writer of a server: a thread that runs its callers' operations in shared transactions.

Theory of operation. Operations queue up while a transaction is on its way to the disk; the next one takes up to 64 of
them, so the cost of a sync is shared and nobody lingers. Inside the transaction the log's head is locked first and
moved last. Then:

- An operation that raises before its first write is refused; it changed nothing, and the others go on.
- An operation that raises after a write has poisoned the transaction: it is rolled back and the operations run one by
  one, so only the guilty one fails. A broken uniqueness rule is treated alike.
- A transient failure (a lock, a deadlock) is retried with jitter, a few times; a full disk or a lost connection once.
  Then every caller gets Unavailable and nothing was written.
- A failure *of COMMIT* leaves the outcome unknown. It is settled by locking the head again, which waits for the old
  transaction if it still lives, and looking for our own token. Found: it is committed. Not found: it never will be.

Operations may therefore run more than once; they act through their unit of work only. Callers learn the outcome from
`deliver`, on this thread, after COMMIT.
"""

from __future__ import annotations

import logging
import queue
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from identity_server.store.entry_repository import NewEntries
from identity_server.store.event_log import TOKEN_BITS, EventRow, Head, Recorder, advance, lock_head, token_at
from identity_server.store.failures import Nature, nature_of, refusal_of
from identity_server.store.own_writes import Changes, OwnWrites
from identity_server.store.unit_of_work import SqlUnitOfWork
from spiffe_core.clock import Clock
from spiffe_core.errors import Internal, Unavailable
from spiffe_core.spiffe_id import TrustDomain

MAX_BATCH = 64
MAX_WAITING = 10_000
RETRY_SECONDS = 10.0
"""How long a transient failure is retried before the callers are told to come back later."""
UNKNOWN = "the database did not say whether the change was stored; look before retrying"
SETTLE_SECONDS = 30.0
"""How long we try to find out what became of a COMMIT."""
REST_SECONDS = 1.0
"""When nothing was written for so long, memory that large writes have taken is given back."""
LARGE_WRITE = 500
"""So many changes since the last rest are worth one."""
_FIRST_DELAY, _LONGEST_DELAY = 0.01, 1.0
_STARVED_TRIES = 2
_MOST_TRIES = 30

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an operation: a value or an error; `revision` is 0 if nothing was written."""

    value: Any = None
    error: Exception | None = None
    revision: int = 0


class Operation:
    """One caller's command. Either the writer begins it or its caller withdraws it, whoever comes first."""

    __slots__ = ("_unclaimed", "command", "ticket")

    def __init__(self, command: Callable[[SqlUnitOfWork], Any], ticket: Any = None) -> None:
        self.command = command
        self.ticket = ticket
        self._unclaimed = [True]

    def claim(self) -> bool:
        """True for the first who asks: the writer, which then runs it, or the caller, for whom it then never runs."""
        try:
            return self._unclaimed.pop()
        except IndexError:
            return False


class _PoisonedError(Exception):
    """An operation raised after it had written."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("poisoned transaction")
        self.cause = cause


class _CommitError(Exception):
    """COMMIT raised: perhaps it happened, perhaps not."""

    def __init__(self, cause: SQLAlchemyError, head: Head, written: bool, outcomes: list[Outcome]) -> None:
        super().__init__("commit failed")
        self.cause = cause
        self.head = head
        self.written = written
        self.outcomes = outcomes


class Writer:
    """Owns the writing connection. `start` it once; `close` finishes what is queued."""

    def __init__(
        self,
        engine: Engine,
        trust_domain: TrustDomain,
        *,
        place: str,
        clock: Clock,
        deliver: Callable[[Sequence[tuple[Operation, Outcome]]], None],
        announce: str = "",
        own_writes: OwnWrites | None = None,
        rest: Callable[[Connection], None] | None = None,
        token: Callable[[], int] = lambda: secrets.randbits(TOKEN_BITS),
    ) -> None:
        self._engine = engine
        self._trust_domain = trust_domain
        self._place = place
        self._clock = clock
        self._deliver = deliver
        self._announce = announce
        self._own_writes = own_writes or OwnWrites()
        self._rest = rest
        self._token = token
        self._unrested = 0
        """Changes since the last rest."""
        self._connection: Connection | None = None
        self._queue: queue.SimpleQueue[Operation | None] = queue.SimpleQueue()
        self._gate = threading.Lock()
        self._closing = False
        self._away = False
        self._thread = threading.Thread(target=self._serve, name="store-writer", daemon=True)

    def start(self) -> None:
        """Begin to serve the queue."""
        self._thread.start()

    def submit(self, operation: Operation) -> None:
        """Queue an operation; Unavailable if too many wait or the writer is closing."""
        with self._gate:
            if self._closing:
                raise Unavailable("the server is stopping; try again")
            if self._queue.qsize() >= MAX_WAITING:
                raise Unavailable("too many writes are waiting; try again later", waiting=MAX_WAITING)
            self._queue.put(operation)

    def close(self, timeout: float) -> None:
        """Refuse new operations, finish the queued ones within `timeout` seconds, and let the connection go."""
        with self._gate:  # nothing stands in the queue behind the end
            self._closing = True
            self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _serve(self) -> None:
        while (batch := self._collect()) is not None:
            if batch:
                self._run(batch)
        self._discard()

    def _collect(self) -> list[Operation] | None:
        """Wait for an operation, and take those that wait already. None ends the thread."""
        first = self._first()
        if first is None:
            return None
        batch = [first]
        while len(batch) < MAX_BATCH:
            try:
                more = self._queue.get_nowait()
            except queue.Empty:
                break
            if more is None:
                self._queue.put(None)  # close() waits for this batch, then for the end
                break
            batch.append(more)
        return [operation for operation in batch if operation.claim()]

    def _first(self) -> Operation | None:
        """Wait for an operation; if a large write was the last for a while, let the database rest meanwhile."""
        if self._rest is None or self._unrested < LARGE_WRITE:
            return self._queue.get()
        try:
            return self._queue.get(timeout=REST_SECONDS)
        except queue.Empty:
            self._unrested = 0
        if self._connection is not None:
            try:
                self._rest(self._connection)
            except Exception:  # noqa: BLE001  # a driver's error, of whatever kind: the next write gets a new connection
                _log.debug("resting failed", exc_info=True)
                self._discard()
        return self._queue.get()

    def _run(self, batch: Sequence[Operation]) -> None:
        """Run a batch to its end; every operation gets an outcome."""
        outcomes: list[Outcome] | None
        try:
            outcomes = self._settled(batch)
        except Exception as error:  # noqa: BLE001  # the thread must live on, and every caller must get an answer
            _log.exception("the store's writer failed")
            self._discard()
            outcomes = [Outcome(error=Internal("internal error in the database", cause=str(error)))] * len(batch)
        if outcomes is not None:
            self._deliver(list(zip(batch, outcomes, strict=True)))

    def _settled(self, batch: Sequence[Operation]) -> list[Outcome] | None:
        """The outcomes; None if the batch was taken apart and its parts have had theirs."""
        begun = self._clock.monotonic()
        tries = 0
        while True:
            tries += 1
            try:
                return self._try(batch)
            except _PoisonedError as poisoned:
                if len(batch) == 1:
                    return [Outcome(error=poisoned.cause)]
                break
            except SQLAlchemyError as error:
                nature = nature_of(error)
                if nature is not Nature.CONSTRAINT:
                    self._discard()
                if nature in {Nature.CONSTRAINT, Nature.FAULT} and len(batch) > 1:
                    break
                again = nature is Nature.TRANSIENT or (nature is Nature.STARVED and tries < _STARVED_TRIES)
                if not again or tries >= _MOST_TRIES or self._clock.monotonic() - begun > RETRY_SECONDS:
                    return [Outcome(error=self._refused(error, nature))] * len(batch)
            self._pause(tries)
        for operation in batch:
            self._run([operation])
        return None

    def _try(self, batch: Sequence[Operation]) -> list[Outcome]:
        """One transaction, its outcome known for sure, or refused as unknown."""
        try:
            return self._attempt(batch)
        except _CommitError as failed:
            self._discard()
            committed = self._find(failed)
            if committed:
                return failed.outcomes
            if committed is None:
                unknown = Unavailable(UNKNOWN)
                return [Outcome(error=unknown) if one.revision else one for one in failed.outcomes]
            raise failed.cause from None

    def _refused(self, error: SQLAlchemyError, nature: Nature) -> Exception:
        refusal = refusal_of(error, self._place)
        if nature is Nature.CONSTRAINT:
            return refusal
        level = logging.DEBUG if self._away and nature is not Nature.FAULT else logging.ERROR  # once, not for an hour
        _log.log(level, "a write failed: %s", refusal.public, extra={"facts": refusal.facts})
        self._away = True
        return refusal

    def _attempt(self, batch: Sequence[Operation]) -> list[Outcome]:
        """One transaction. Whatever it raises, nothing was written, except perhaps after _CommitError."""
        connection = self._connected()
        transaction = connection.begin()
        try:
            before = head = lock_head(connection)
            outcomes: list[Outcome] = []
            rows: list[EventRow] = []
            changes: Changes = {}
            new_entries = NewEntries()
            untold = False  # something was written that nobody follows
            for operation in batch:
                recorder = Recorder(head.revision + 1)
                work = SqlUnitOfWork(connection, recorder, self._trust_domain, new_entries)
                outcome = _applied(operation, work, recorder)
                outcomes.append(outcome)
                if outcome.error is None:
                    untold = untold or recorder.touched
                    head = self._moved(head, recorder, rows)
                    changes.update(recorder.events)
            new_entries.write(connection)
            if head != before:
                advance(connection, head, rows)
            elif not untold:
                transaction.rollback()
                return outcomes
            if changes:
                self._own_writes.add(before.position, head.position, changes)
            if rows and self._announce:
                connection.exec_driver_sql(self._announce)  # delivered with the COMMIT, to every server's listener
        except BaseException:
            _rolled_back(transaction)
            raise
        try:
            transaction.commit()
        except SQLAlchemyError as error:
            raise _CommitError(error, head, bool(rows), outcomes) from error
        self._unrested += len(rows)
        if self._away:
            self._away = False
            _log.info("the database takes changes again")
        return outcomes

    def _moved(self, head: Head, recorder: Recorder, rows: list[EventRow]) -> Head:
        """The head after an operation; its events are added to `rows`."""
        if recorder.floor is not None:
            head = replace(head, floor=recorder.floor)
        if not recorder.events:
            return head
        token = self._token()
        rows.extend(
            (recorder.revision, seq, token, int(kind), subject) for seq, (kind, subject) in enumerate(recorder.events)
        )
        epoch = head.epoch if recorder.epoch is None else recorder.epoch
        return replace(head, epoch=epoch, revision=recorder.revision, token=token)

    def _find(self, failed: _CommitError) -> bool | None:
        """Whether a COMMIT that failed has happened; None if the database cannot be asked."""
        begun = self._clock.monotonic()
        tries = 0
        while tries < _MOST_TRIES and self._clock.monotonic() - begun < SETTLE_SECONDS:
            tries += 1
            try:
                with self._connected().begin():
                    lock_head(self._connected())
                    return failed.written and token_at(self._connected(), failed.head.revision) == failed.head.token
            except SQLAlchemyError:
                self._discard()
                self._pause(tries)
        return None

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = self._engine.connect()
        return self._connection

    def _discard(self) -> None:
        """Close the connection for good: its state is not to be trusted."""
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.invalidate()
                connection.close()
            except SQLAlchemyError:
                _log.warning("closing a broken database connection failed", exc_info=True)

    def _pause(self, tries: int) -> None:
        longest = min(_LONGEST_DELAY, _FIRST_DELAY * 2.0**tries)
        time.sleep(longest * (0.5 + secrets.randbelow(1000) / 2000))


def _applied(operation: Operation, work: SqlUnitOfWork, recorder: Recorder) -> Outcome:
    """Run one operation: its value, or its refusal if it had not written yet."""
    try:
        value = operation.command(work)
    except SQLAlchemyError:
        raise
    except Exception as error:  # carried to the caller, whatever it is
        if recorder.touched:
            raise _PoisonedError(error) from error
        return Outcome(error=error)
    return Outcome(value, revision=recorder.revision if recorder.events else 0)


def _rolled_back(transaction: Any) -> None:
    """Roll back; a connection too broken for it is discarded by the caller anyway."""
    try:
        transaction.rollback()
    except SQLAlchemyError:
        _log.debug("rollback failed", exc_info=True)
