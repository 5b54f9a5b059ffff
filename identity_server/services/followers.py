"""The push streams of this server: whom a change concerns, what each agent was sent, and how far each has come.

Theory of operation. A listener on the state sees every change, in order, before anybody else runs. It only marks: the
streams whose agents are reached through the parents of the entries that changed, with the ids to look at; all of them
when that cannot be told (an alias, the first child of an identity, a state that was loaded). Marking costs what the
change touches, not how many agents are connected. Each stream then makes its own delta when it can write
(`domain.propagation`), from what it sent last.

A stream is authorised by the certificate that opened it. When that certificate has ended, is no longer the agent's, or
no longer ends in the bundle, and on a ban or an eviction, the stream is *ended*, not answered: the agent opens it again
and the admission of that call, which confirms every *no* in the database, tells it why (architecture A8, A9).

What an agent had when its stream ended is kept for a while, so that it goes on from there. It costs references only.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from identity_server.domain.agents import AGENT_PREFIX
from identity_server.domain.entry_record import EntryRecord
from identity_server.domain.history import Position
from identity_server.domain.propagation import Delta, Sent, Stamps, compared, everything, since
from identity_server.domain.state import Change, State
from identity_server.ports import Store
from identity_server.services.admission import Admissions, Presented
from spiffe_core.clock import Clock
from spiffe_core.errors import Exhausted, Unavailable

MAX_STREAMS = 20_000
MAX_STREAMS_EACH = 16
"""Of one agent. It has one, and a few more for a minute when its connection broke unseen."""
MAX_TOUCHED = 1_000
"""A stream with more entries to look at looks at everything."""
MAX_LEFT = 20_000
LEFT_SECONDS = 600.0
"""So long an agent that went away goes on from where it was, on this server."""
HEARTBEAT_SECONDS = 30.0
OPEN_AGAIN = "what authorised this stream has changed; open it again"


@dataclass(slots=True, eq=False)
class Follower:
    """One open stream of one agent."""

    presented: Presented
    agent_path: str
    sent: Sent | None = None
    touched: set[str] | None = None
    """The entries to look at; None for all of them."""
    names: frozenset[str] = frozenset()
    ended: bool = False
    owed: int = 0
    """The revision of the newest message that is not acknowledged yet; 0 if all are."""
    settled: int = 0
    """The revision at which nothing was owed last."""
    streams_behind: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)


class Followers:
    """Every push stream of this server. Belongs to the event loop."""

    def __init__(self, *, store: Store, admissions: Admissions, clock: Clock) -> None:
        self._store = store
        self._admissions = admissions
        self._clock = clock
        self._open: set[Follower] = set()
        self._by_name: dict[str, set[Follower]] = {}
        self._by_agent: dict[str, set[Follower]] = {}
        self._left: OrderedDict[str, tuple[float, Sent]] = OrderedDict()
        self._state = store.state.value
        self.on_progress: list[Callable[[], None]] = []
        """Called when an agent acknowledged something, came or went."""
        store.state.listeners.append(self._changed)

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Follower]:
        return iter(tuple(self._open))

    @contextmanager
    def follow(self, presented: Presented, position: str) -> Iterator[Follower]:
        """A stream for the agent that presented itself, and that says it is at `position`.

        Raises:
            Exhausted: there are too many streams, of all or of this agent.
        """
        if len(self._open) >= MAX_STREAMS:
            raise Exhausted("too many agents follow this server; use another one", streams=MAX_STREAMS)
        assert presented.spiffe_id is not None, "the access table lets only agents in here"
        path = presented.spiffe_id.path
        if len(self._by_agent.get(path, ())) >= MAX_STREAMS_EACH:
            raise Exhausted("too many push streams of this agent are open; close some", streams=MAX_STREAMS_EACH)
        follower = Follower(presented, path)
        follower.sent = self._known(path, position)
        self._open.add(follower)
        self._by_agent.setdefault(path, set()).add(follower)
        self._index(follower)
        follower.news.set()
        self._tell()
        try:
            yield follower
        finally:
            self._remove(follower)
            self._tell()

    def first(self, follower: Follower, held: Stamps) -> Delta:
        """What an agent needs that is at no position this server knows, and holds the entries of these stamps."""
        state = self._store.state.value
        make = compared(state, follower.agent_path, held) if held else everything(state, follower.agent_path)
        follower.sent, delta = make
        follower.owed = follower.sent.position.revision
        follower.touched = set()
        follower.news.clear()
        self._index(follower)
        return delta

    def next(self, follower: Follower, *, heartbeat: bool = False) -> Delta:
        """What has changed for the agent since the last delta. It moves to a new position if it is told anything.

        Raises:
            Unavailable: the stream is over.
        """
        self.check(follower)
        assert follower.sent is not None, "a stream begins with `first`, or where it was left"
        state = self._store.state.value
        follower.news.clear()
        touched, follower.touched = follower.touched, set()
        before = follower.sent.position
        follower.sent, delta = since(follower.sent, state, follower.agent_path, touched)
        if touched is None:
            self._index(follower)
        if delta:
            follower.owed = follower.sent.position.revision
        else:
            if not heartbeat:
                follower.sent = replace(follower.sent, position=before)
            self._tell()
        return delta

    def revision_of(self, follower: Follower) -> int:
        """The revision up to which everything that concerns the agent is applied and delivered; 0 if none is known."""
        if follower.owed or follower.sent is None or follower.news.is_set():
            return follower.settled
        return self._state.position.revision

    def check(self, follower: Follower) -> None:
        """Raise Unavailable if what authorised the stream does no longer."""
        not_after = follower.presented.not_after
        if follower.ended or not_after is None or self._clock.now() >= not_after:
            raise Unavailable(OPEN_AGAIN)

    def seconds_left(self, follower: Follower) -> float:
        """How long the stream may last, by its certificate."""
        assert follower.presented.not_after is not None
        return (follower.presented.not_after - self._clock.now()).total_seconds()

    def acknowledge(self, follower: Follower, position: str, streams_behind: int) -> None:
        """The agent has applied what it was sent up to `position`. Anything but a position it was sent says nothing."""
        sent, reached = follower.sent, Position.parse(position)
        if sent is None or reached is None or reached.epoch != sent.position.epoch or reached > sent.position:
            return
        if reached.revision >= follower.owed:
            follower.owed = 0
            follower.settled = max(follower.settled, reached.revision)
        follower.streams_behind = min(max(streams_behind, 0), 1_000_000)
        self._tell()

    def _changed(self, state: State) -> None:
        before, self._state = self._state, state
        change = state.last
        if change is None or state.after != before.position:
            for follower in self._open:
                self._mark(follower, None)
                self._judge(follower, state)
            return
        for entry_id, record in change.entries.items():
            self._entry_changed(before, state, entry_id, record)
        for path in change.agents:
            for follower in self._by_agent.get(path, ()):
                self._mark(follower, None)
                self._judge(follower, state)
        if change.bundles:
            self._bundles_changed(change, state)

    def _entry_changed(self, before: State, state: State, entry_id: str, new: EntryRecord | None) -> None:
        old = before.entries.get(entry_id)
        for record in (old, new):
            if record is None:
                continue
            first_child = not record.parent.startswith(AGENT_PREFIX) and record.parent not in before.children
            if first_child:  # of an identity, or of nodes: an alias
                for follower in self._open:
                    self._mark(follower, None)
                return
            below = record.path in before.children or record.path in state.children
            for follower in self._by_name.get(record.parent, ()):
                self._mark(follower, None if below else entry_id)

    def _bundles_changed(self, change: Change, state: State) -> None:
        own = state.trust_domain in change.bundles
        for follower in self._open:
            if own:
                self._judge(follower, state)
            if follower.sent is not None and not follower.sent.domains.isdisjoint(change.bundles):
                follower.news.set()

    def _judge(self, follower: Follower, state: State) -> None:
        """End the stream if its certificate speaks for the agent no longer, as far as memory knows."""
        agent = state.agents.get(follower.agent_path)
        known = agent is not None and not agent.banned and follower.presented.serial in {agent.serial, agent.new_serial}
        if not known or self._admissions.speaks_for_nobody(follower.presented):
            follower.ended = True
            follower.news.set()

    def _mark(self, follower: Follower, entry_id: str | None) -> None:
        if entry_id is None or follower.touched is None or len(follower.touched) >= MAX_TOUCHED:
            follower.touched = None
        else:
            follower.touched.add(entry_id)
        follower.news.set()

    def _index(self, follower: Follower) -> None:
        names = self._store.state.value.parents_of(follower.agent_path)
        for name in follower.names - names:
            self._forget(name, follower)
        for name in names - follower.names:
            self._by_name.setdefault(name, set()).add(follower)
        follower.names = names

    def _forget(self, name: str, follower: Follower) -> None:
        members = self._by_name[name]
        members.discard(follower)
        if not members:
            del self._by_name[name]

    def _remove(self, follower: Follower) -> None:
        self._open.discard(follower)
        same = self._by_agent[follower.agent_path]
        same.discard(follower)
        if not same:
            del self._by_agent[follower.agent_path]
        for name in follower.names:
            self._forget(name, follower)
        if follower.sent is not None:
            self._left.pop(follower.agent_path, None)
            self._left[follower.agent_path] = (self._clock.monotonic(), follower.sent)
            if len(self._left) > MAX_LEFT:
                self._left.popitem(last=False)
        while self._left and not self._is_recent(next(iter(self._left.values()))[0]):
            self._left.popitem(last=False)

    def _known(self, agent_path: str, position: str) -> Sent | None:
        """What the agent holds, if it left this server at this position, or holds another stream here."""
        left_at, kept = self._left.pop(agent_path, (0.0, None))
        found = kept if kept is not None and self._is_recent(left_at) else None
        every = (found, *(other.sent for other in self._by_agent.get(agent_path, ())))
        return next((sent for sent in every if sent is not None and str(sent.position) == position), None)

    def _is_recent(self, left_at: float) -> bool:
        return self._clock.monotonic() - left_at <= LEFT_SECONDS

    def _tell(self) -> None:
        for listener in self.on_progress:
            listener()
