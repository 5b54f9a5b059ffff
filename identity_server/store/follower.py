"""The change follower: turns the log into the next `State`, without a gap and without a guess.

Theory of operation. One thread and one reading connection. Each step is one repeatable-read snapshot: read the head;
if it stands where we stand, done. Otherwise read the events from our own position on, *including our own*: its token
proves that this is still the history we followed. Then read again each subject the events name, in the same snapshot,
so memory is exactly the tables at that revision. Where every transaction up to the head was this process's own, what
they wrote is known and nothing but the head is read (`own_writes`). Whatever cannot be followed is loaded whole:

- another epoch: somebody began a new history;
- our position was pruned, or is more than 10,000 revisions behind: loading is cheaper;
- an event kind this version does not know: never skipped;
- another token at our position, a head behind ours, or a hole: our history is not the database's. That is reported,
  and a new history is begun, so every other server learns it too.

The step is woken after each commit of this process and every second besides.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Iterable

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from identity_server.domain.agents import AttestedAgent
from identity_server.domain.entry_record import EntryRecord, record_of
from identity_server.domain.history import HistoryChange, Position
from identity_server.domain.state import Change, State
from identity_server.store.event_log import PAGE, Event, EventKind, Head, ReadOnly, events_since, read_head
from identity_server.store.failures import Nature, nature_of, refusal_of
from identity_server.store.own_writes import UNREAD, Changes, OwnWrites
from identity_server.store.progress_repository import SUBJECT
from identity_server.store.unit_of_work import SqlUnitOfWork
from spiffe_core.entry import RegistrationEntry
from spiffe_core.spiffe_id import TrustDomain

RECONCILE_SECONDS = 1.0
FAR = 10_000
"""So many revisions behind, loading everything is no dearer than catching up."""

_log = logging.getLogger(__name__)
_FOLLOWED = frozenset(EventKind) - {EventKind.HISTORY}
_NOT_IN_STATE = frozenset({EventKind.JOIN_TOKEN})


class _HistoryLostError(Exception):
    """The log does not continue from our position."""


class Follower:
    """Keeps `state` at the head of the log. `step` is one poll; `start` runs it in a thread."""

    def __init__(
        self,
        engine: Engine,
        trust_domain: TrustDomain,
        server_id: str,
        *,
        encode: Callable[[RegistrationEntry], bytes],
        publish: Callable[[State, HistoryChange | None], None],
        own_writes: OwnWrites | None = None,
        behind_is_proof_after: int = 1,
        far: int = FAR,
        page: int = PAGE,
    ) -> None:
        self._engine = engine
        self._trust_domain = trust_domain
        self._server_id = server_id
        self._encode = encode
        self._publish = publish
        self._own_writes = own_writes or OwnWrites()
        self._behind_is_proof_after = behind_is_proof_after
        self._far = far
        self._page = page
        self._behind = 0
        self._proven = False
        self._found: HistoryChange | None = None
        self._connection: Connection | None = None
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="store-follower", daemon=True)
        self.trouble = ""
        """Why the last step failed; "" if it did not."""
        self.on_reload: Callable[[float], None] | None = None
        """Told on this thread how many seconds it took to follow what was new."""
        self._agreed_at = time.monotonic()
        self.state = State(Position(0, 0, 0), trust_domain)

    def load(self) -> State:
        """Read everything: the first state."""
        self.state = self._within_snapshot(self._snapshot)
        return self.state

    def start(self) -> None:
        """Follow in a thread of its own."""
        self._thread.start()

    @property
    def lag(self) -> float:
        """How many seconds ago memory was last seen to agree with the database."""
        return time.monotonic() - self._agreed_at

    def wake(self) -> None:
        """Something was committed."""
        self._wake.set()

    def stop(self) -> None:
        """Follow no further than the step under way."""
        self._closing.set()
        self._wake.set()

    def close(self, timeout: float) -> None:
        """End the thread and let the connection go."""
        self.stop()
        if self._thread.is_alive():
            self._thread.join(timeout)
        else:
            self._discard()

    def step(self) -> bool:
        """One poll; True if there was something new, which is then in `state` and published."""
        before, began = self.state, time.monotonic()
        after = self._within_snapshot(self._next)
        self._agreed_at = time.monotonic()
        if after is before:
            return False
        self.state = after
        if self.on_reload is not None:
            self.on_reload(self._agreed_at - began)
        found, self._found = self._found, None
        if found is not None:
            _log.error("%s (was at %s, now at %s)", found.reason, found.before, found.after)
        self._publish(after, found)
        return True

    def _serve(self) -> None:
        while not self._closing.is_set():
            self._wake.wait(RECONCILE_SECONDS)
            self._wake.clear()
            try:
                self.step()
            except Exception as error:  # noqa: BLE001  # the database may be gone for an hour: keep asking
                if not self.trouble:
                    self._complain(error)
                self.trouble = f"{type(error).__name__}: the change follower cannot read the database"
                self._discard()
                self._closing.wait(RECONCILE_SECONDS)
            else:
                if self.trouble:
                    _log.info("following the event log again")
                self.trouble = ""
        self._discard()

    def _complain(self, error: Exception) -> None:
        """Once for each time the database goes away; in full only if it is our own mistake."""
        text = "following the event log failed; trying again every second"
        if isinstance(error, SQLAlchemyError) and nature_of(error) is not Nature.FAULT:
            _log.error("%s: %s", text, refusal_of(error, "").facts["cause"])
        else:
            _log.error(text, exc_info=error)

    def _within_snapshot(self, read: Callable[[Connection], State]) -> State:
        """Run `read` in one read transaction, and end that transaction: the next one must see newer data."""
        if self._connection is None:
            self._connection = self._engine.connect()
        with self._connection.begin():
            return read(self._connection)

    def _next(self, connection: Connection) -> State:
        head = read_head(connection)
        known = self.state.position
        if head.position == known:
            self._behind = 0
            return self.state
        if head.epoch != known.epoch:
            after = self._snapshot(connection)
            if not self._proven:  # another server, or a restore, began it
                reason = "the database has a new history"
                self._found = self._change_of_history(reason, after, proven=False)
            self._proven = False
            return after
        try:
            if head.revision <= known.revision:
                return self._behind_us(head)
            if known.revision < head.floor or head.revision - known.revision > self._far:
                return self._snapshot(connection)
            return self._catch_up(connection, head)
        except _HistoryLostError as lost:
            after = self._snapshot(connection)
            self._proven = True
            self._found = self._change_of_history(str(lost), after, proven=True)
            return after

    def _change_of_history(self, reason: str, after: State, *, proven: bool) -> HistoryChange:
        before = self.state
        own = before.bundles.own if before.bundles is not None else None
        return HistoryChange(reason, before.position, after.position, proven, before.authorities, own)

    def _behind_us(self, head: Head) -> State:
        """A head that is not ahead of us: lag of a replica, until it is proof that our revisions are gone."""
        self._behind += 1
        if head.revision == self.state.position.revision or self._behind >= self._behind_is_proof_after:
            self._behind = 0
            raise _HistoryLostError("revisions this server has seen are gone from the database")
        return self.state

    def _catch_up(self, connection: Connection, head: Head) -> State:
        known = self.state.position
        own = self._own_writes.take(known, head.position)
        if own is not None:
            return self._applied(connection, head, own)
        events = events_since(connection, known.revision, self._page)
        if not _continues(next(events, None), known):
            raise _HistoryLostError("the database has another revision where this server stood")
        touched: Changes = {}
        last, token = known.revision, known.token
        for event in events:
            if event.revision not in (last, last + 1):
                raise _HistoryLostError("the event log has a hole")
            last, token = event.revision, event.token
            if event.revision > known.revision:
                touched[event.kind, event.subject] = UNREAD
        if (last, token) != (head.revision, head.token):
            raise _HistoryLostError("the event log does not end where its head says")
        return self._applied(connection, head, touched)

    def _applied(self, connection: Connection, head: Head, touched: Changes) -> State:
        if any(kind not in _FOLLOWED for kind, _ in touched):
            return self._snapshot(connection)
        return self.state.apply(self._change(connection, head, touched))

    def _change(self, connection: Connection, head: Head, touched: Changes) -> Change:
        """What the subjects are now: read in this snapshot, but for those whose content is known."""
        uow = SqlUnitOfWork(connection, ReadOnly(), self._trust_domain)
        unread: dict[int, list[str]] = {}
        named: list[str] = []
        known_entries: list[RegistrationEntry] = []
        agents: dict[str, AttestedAgent | None] = {}
        told: set[str] = set()
        for (kind, subject), value in touched.items():
            if kind == EventKind.SERVER and subject.startswith(SUBJECT):
                told.add(subject.removeprefix(SUBJECT).decode(errors="replace"))
                continue
            name = subject.decode() if kind not in _NOT_IN_STATE else ""
            if kind == EventKind.ENTRY:
                named.append(name)
            elif kind == EventKind.AGENT:
                agents[name] = value if isinstance(value, AttestedAgent) else None
            if isinstance(value, RegistrationEntry):
                known_entries.append(value)
            elif value is UNREAD and name:
                unread.setdefault(kind, []).append(name)
        stored = uow.entries.many(unread.get(EventKind.ENTRY, ()))
        records = dict(self._records((*known_entries, *stored.values())))  # its keys, which stay, are the records' ids
        entries = {**records, **dict.fromkeys(name for name in named if name not in records)}
        agents.update(uow.agents.many(unread.get(EventKind.AGENT, ())))
        names = unread.get(EventKind.BUNDLE, ())
        related = unread.get(EventKind.RELATIONSHIP, ())
        return Change(
            position=head.position,
            entries=entries,
            agents=agents,
            bundles={**dict.fromkeys(map(TrustDomain, names)), **uow.bundles.many(names)},
            relationships={**dict.fromkeys(map(TrustDomain, related)), **uow.relationships.many(related)},
            authorities=uow.authorities.of_server(self._server_id) if EventKind.AUTHORITY in unread else None,
            orders=uow.orders.waiting_for(self._server_id) if EventKind.ORDER in unread else None,
            servers=EventKind.SERVER in unread,
            progress=frozenset(told),
        )

    def _snapshot(self, connection: Connection) -> State:
        """Everything, in the snapshot of the caller. The collector waits: nothing of this is garbage."""
        uow = SqlUnitOfWork(connection, ReadOnly(), self._trust_domain)
        collecting = gc.isenabled()
        gc.disable()
        try:
            return State(Position(0, 0, 0), self._trust_domain).apply(
                Change(
                    position=read_head(connection).position,
                    entries=dict(self._records(uow.entries.all())),
                    agents={agent.spiffe_id.path: agent for agent in uow.agents.all()},
                    bundles={bundle.trust_domain: bundle for bundle in uow.bundles.all()},
                    relationships={one.trust_domain: one for one in uow.relationships.all()},
                    authorities=uow.authorities.of_server(self._server_id),
                    orders=uow.orders.waiting_for(self._server_id),
                    servers=True,
                )
            )
        finally:
            if collecting:
                gc.enable()

    def _records(self, entries: Iterable[RegistrationEntry]) -> Iterable[tuple[str, EntryRecord]]:
        """Records by id; an entry of another trust domain is nobody's here (spire_features section 15.2)."""
        for entry in entries:
            if entry.spiffe_id.member_of(self._trust_domain) and entry.parent_id.member_of(self._trust_domain):
                yield entry.id, record_of(entry, self._encode(entry))

    def _discard(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.invalidate()
                connection.close()
            except SQLAlchemyError:
                _log.debug("closing a broken database connection failed", exc_info=True)


def _continues(first: Event | None, known: Position) -> bool:
    return first is not None and (first.revision, first.token) == (known.revision, known.token)
