"""The server's view of its database: one immutable value, replaced as a whole with every change of the log.

Theory of operation. The store's follower turns log events into a `Change` (the touched subjects, read again in one
snapshot) and `State.apply` makes the next state; everything untouched is shared with the one before (persistent maps),
so a change costs what it touches, however many entries there are. Queries, authorisation and signing take one `State`
and never the database. Every thread may read a `State`.

An entry is kept as the finished bytes of its wire message plus the few fields decisions need; what entries have in
common (parents, times, the absence of anything special) they share. Aliases (entries whose parent is /spire/server) are
not handed out to agents; they are indexed by one of their selectors, so an agent's node selectors find those that may
apply (spire_features section 15.2).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TypeVar

from immutables import Map

from identity_server.domain.agents import AttestedAgent
from identity_server.domain.authority import Authority
from identity_server.domain.entry_record import EntryRecord
from identity_server.domain.federation import FederationRelationship
from identity_server.domain.history import BEGINNING, Position
from identity_server.domain.orders import Order
from spiffe_core.bundle import BundleSet, TrustBundle
from spiffe_core.entitlement import applicable, reachable_parents
from spiffe_core.selectors import Selector
from spiffe_core.spiffe_id import TrustDomain

K = TypeVar("K")
V = TypeVar("V")
_MEMO_SLACK = 1024
"""The memo is emptied when it holds this many answers more than there are agents."""
_NO_RECORDS: Map[str, EntryRecord] = Map()
_path_of = attrgetter("path")
_node_selectors_of = attrgetter("node_selectors")


@dataclass(frozen=True, slots=True)
class Change:
    """What the next state differs in. None as a value means deleted; None for `authorities` or `orders`, untouched.

    `servers` says whether what servers have written down about themselves changed, `progress` of which servers somebody
    is told how far their agents are.
    """

    position: Position
    entries: Mapping[str, EntryRecord | None] = field(default_factory=dict)
    agents: Mapping[str, AttestedAgent | None] = field(default_factory=dict)
    bundles: Mapping[TrustDomain, TrustBundle | None] = field(default_factory=dict)
    relationships: Mapping[TrustDomain, FederationRelationship | None] = field(default_factory=dict)
    authorities: tuple[Authority, ...] | None = None
    orders: tuple[Order, ...] | None = None
    servers: bool = False
    progress: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class _Answer:
    """A remembered `authorised` answer and what it was computed from."""

    entries_at: Position
    agent: AttestedAgent | None
    start: frozenset[str]
    parents: Mapping[str, Map[str, EntryRecord]]
    entries: Mapping[str, EntryRecord]


@dataclass(frozen=True, slots=True)
class State:
    """Everything the server decides by, as of `position`."""

    position: Position
    trust_domain: TrustDomain
    entries: Map[str, EntryRecord] = field(default_factory=Map, repr=False)
    """Entry id -> record."""
    children: Map[str, Map[str, EntryRecord]] = field(default_factory=Map, repr=False)
    """Parent path -> entry id -> record; aliases are not in it."""
    aliases: Map[Selector, Map[str, EntryRecord]] = field(default_factory=Map, repr=False)
    """One selector of the alias -> entry id -> alias."""
    special: Map[str, tuple[EntryRecord, ...]] = field(default_factory=Map, repr=False)
    """SPIFFE ID path -> its entries that make callers administrators or downstream servers."""
    agents: Map[str, AttestedAgent] = field(default_factory=Map, repr=False)
    """Agent path -> agent."""
    trust_bundles: Map[TrustDomain, TrustBundle] = field(default_factory=Map, repr=False)
    bundles: BundleSet | None = field(default=None, repr=False)
    """Own and federated bundles; None until the first bundle of our own trust domain is stored."""
    relationships: Map[TrustDomain, FederationRelationship] = field(default_factory=Map, repr=False)
    """Where the bundles of other trust domains are fetched."""
    authorities: tuple[Authority, ...] = ()
    """The signing authorities of this server."""
    orders: tuple[Order, ...] = ()
    """The orders to all servers that this server has not carried out yet, oldest first."""
    entries_at: Position = BEGINNING
    """Where entries last changed."""
    servers_at: Position = field(default=BEGINNING, compare=False)
    """Where what the servers have written down about themselves last changed: a cue to read it."""
    last: Change | None = field(default=None, repr=False, compare=False)
    """The change that made this state out of the one at `after`; None for a state that was loaded."""
    after: Position = field(default=BEGINNING, compare=False)
    _memo: dict[str, _Answer] = field(default_factory=dict, repr=False, compare=False)

    def apply(self, change: Change) -> State:
        """The state after `change`."""
        entries, children, aliases, special = self.entries, self.children, self.aliases, self.special
        if change.entries:
            old = [record for record in map(self.entries.get, change.entries) if record is not None]
            new = [record for record in change.entries.values() if record is not None]
            entries = _edited(entries, change.entries)
            children = _children(children, old, new)
            aliases = _aliases(aliases, old, new)
            special = _special(special, old, new)
        trust_bundles = _edited(self.trust_bundles, change.bundles)
        return State(
            position=change.position,
            trust_domain=self.trust_domain,
            entries=entries,
            children=children,
            aliases=aliases,
            special=special,
            agents=_edited(self.agents, change.agents),
            trust_bundles=trust_bundles,
            bundles=_bundle_set(self.trust_domain, trust_bundles) if change.bundles else self.bundles,
            relationships=_edited(self.relationships, change.relationships),
            authorities=self.authorities if change.authorities is None else change.authorities,
            orders=self.orders if change.orders is None else change.orders,
            entries_at=change.position if change.entries else self.entries_at,
            servers_at=change.position if change.servers else self.servers_at,
            last=change if self.position.revision else None,  # what loads everything is not worth keeping
            after=self.position,
            _memo=self._memo,
        )

    def authorised(self, agent_path: str) -> Mapping[str, EntryRecord]:
        """The entries an agent may have, by id (spire_features section 15.2).

        The answer is remembered: a poll of an unchanged state costs one look-up, and the *same object* comes back as
        long as nothing the agent is authorised for has changed, so finished responses can be cached by identity.
        An agent that is not attested yet gets its direct children and their children, and no aliases.
        """
        agent = self.agents.get(agent_path)
        known = self._memo.get(agent_path)
        if known is not None and known.agent is agent and known.entries_at == self.entries_at:
            return known.entries
        start = self.names_of(agent_path)
        if known is not None and known.start == start and self._still(known):
            answer = _Answer(self.entries_at, agent, start, known.parents, known.entries)
        else:
            answer = self._closure(agent, start)
        if len(self._memo) > len(self.agents) + _MEMO_SLACK:
            self._memo.clear()
        self._memo[agent_path] = answer
        return answer.entries

    def names_of(self, agent_path: str) -> frozenset[str]:
        """The agent's own path and the paths of the aliases whose selectors are all among its node selectors."""
        agent = self.agents.get(agent_path)
        if agent is None:
            return frozenset((agent_path,))
        candidates = (
            alias for selector in agent.selectors for alias in self.aliases.get(selector, _NO_RECORDS).values()
        )
        names = {alias.path for alias in applicable(candidates, agent.selectors, _node_selectors_of)}
        return frozenset((agent_path, *names))

    def parents_of(self, agent_path: str) -> frozenset[str]:
        """The paths by which the agent's entries are reached: every entry below one of them is among `authorised`."""
        self.authorised(agent_path)
        answer = self._memo[agent_path]
        return answer.start.union(answer.parents)

    def entries_for_path(self, path: str) -> tuple[EntryRecord, ...]:
        """The entries with the admin or downstream flag whose SPIFFE ID has exactly this path."""
        return self.special.get(path, ())

    def is_admin(self, path: str) -> bool:
        """True if an entry makes the holder of this SPIFFE ID an administrator."""
        return any(record.admin for record in self.special.get(path, ()))

    def is_downstream(self, path: str) -> bool:
        """True if an entry makes the holder of this SPIFFE ID a downstream server."""
        return any(record.downstream for record in self.special.get(path, ()))

    def _still(self, known: _Answer) -> bool:
        """True if every parent the answer was computed from has the very children it had then."""
        reached = set(known.start)
        reached.update(record.path for record in known.entries.values())
        return all(self.children.get(path) is known.parents.get(path) for path in reached)

    def _closure(self, agent: AttestedAgent | None, start: frozenset[str]) -> _Answer:
        def children_of(path: str) -> Iterable[EntryRecord]:
            return self.children.get(path, _NO_RECORDS).values()

        paths = reachable_parents(sorted(start), children_of, _path_of)
        parents = {path: found for path in paths if (found := self.children.get(path)) is not None}
        entries: Mapping[str, EntryRecord]
        if len(parents) == 1:  # the usual case: nothing to merge, nothing to keep
            (entries,) = parents.values()
        else:
            entries = {entry_id: record for found in parents.values() for entry_id, record in found.items()}
        return _Answer(self.entries_at, agent, start, parents, entries)


def _edited(before: Map[K, V], edits: Mapping[K, V | None]) -> Map[K, V]:
    """`before` with the edits made; None deletes."""
    if not edits:
        return before
    draft = before.mutate()
    for key, value in edits.items():
        if value is not None:
            draft[key] = value
        elif key in draft:
            del draft[key]
    return draft.finish()


def _grouped(
    before: Map[K, Map[str, EntryRecord]], old: Iterable[tuple[K, str]], new: Iterable[tuple[K, EntryRecord]]
) -> Map[K, Map[str, EntryRecord]]:
    """A map of maps with some members taken out and others put in; groups that become empty go."""
    edits: dict[K, dict[str, EntryRecord | None]] = {}
    for group, entry_id in old:
        edits.setdefault(group, {})[entry_id] = None
    for group, record in new:
        edits.setdefault(group, {})[record.id] = record
    return _edited(
        before, {group: _edited(before.get(group, _NO_RECORDS), members) or None for group, members in edits.items()}
    )


def _children(
    before: Map[str, Map[str, EntryRecord]], old: list[EntryRecord], new: list[EntryRecord]
) -> Map[str, Map[str, EntryRecord]]:
    return _grouped(
        before,
        ((record.parent, record.id) for record in old if not record.alias),
        ((record.parent, record) for record in new if not record.alias),
    )


def _aliases(
    before: Map[Selector, Map[str, EntryRecord]], old: list[EntryRecord], new: list[EntryRecord]
) -> Map[Selector, Map[str, EntryRecord]]:
    """Each alias stands under its greatest selector; one without selectors never applies and stands nowhere."""
    return _grouped(
        before,
        ((max(record.node_selectors), record.id) for record in old if record.node_selectors),
        ((max(record.node_selectors), record) for record in new if record.node_selectors),
    )


def _special(
    before: Map[str, tuple[EntryRecord, ...]], old: list[EntryRecord], new: list[EntryRecord]
) -> Map[str, tuple[EntryRecord, ...]]:
    edits: dict[str, dict[str, EntryRecord]] = {}
    for record in (*old, *new):
        if (record.admin or record.downstream) and record.path not in edits:
            edits[record.path] = {kept.id: kept for kept in before.get(record.path, ())}
    for record in old:
        if record.path in edits:
            edits[record.path].pop(record.id, None)
    for record in new:
        if record.admin or record.downstream:
            edits[record.path][record.id] = record
    return _edited(before, {path: tuple(records.values()) or None for path, records in edits.items()})


def _bundle_set(trust_domain: TrustDomain, bundles: Map[TrustDomain, TrustBundle]) -> BundleSet | None:
    own = bundles.get(trust_domain)
    if own is None:
        return None
    return BundleSet(own, {name: bundle for name, bundle in bundles.items() if name != trust_domain})
