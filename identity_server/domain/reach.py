"""Which parents lead to an agent, and where the way from a parent to an agent breaks off (needs 1 and 30).

Whom an agent may act for is decided by the engine that hands entries out (`spiffe_core.entitlement`); here its answers
for all agents are put together, and a parent that none of them reaches is followed up to the first link that is
missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from operator import attrgetter
from typing import Final

from identity_server.domain.agents import AGENT_PREFIX
from identity_server.domain.entry_record import EntryRecord
from identity_server.domain.lint_codes import LintCode
from identity_server.domain.state import State
from spiffe_core.edit_distance import closest
from spiffe_core.entitlement import reachable_parents
from spiffe_core.selectors import Selector, canonical

MOST_LINKS: Final = 32
"""So many parents above each other are followed."""
MOST_COMPARED: Final = 5_000
"""So many names are looked through for one that is close."""
MOST_AGENTS_COMPARED: Final = 2_000
MOST_LOOKS: Final = 20
"""For so many parents and node entries the closest is looked for; a fleet with more of them has another trouble."""
_path_of = attrgetter("path")


@dataclass(frozen=True, slots=True)
class Broken:
    """Why no agent reaches a parent. `near` is the SPIFFE ID path that was perhaps meant, or ""."""

    code: LintCode
    text: str
    near: str = ""


class Reach:
    """What is reached by whom, as of one state.

    `why_not` remembers its answers: thousands of entries share a parent.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._banned = {path for path, agent in state.agents.items() if agent.banned}
        self._known: dict[str, Broken | None] = {}
        self._looks = MOST_LOOKS

    @cached_property
    def _reached(self) -> frozenset[str]:
        starts: dict[str, None] = {}
        for path in self._state.agents:
            if path not in self._banned:
                starts.update(dict.fromkeys(self._state.names_of(path)))
        return frozenset(reachable_parents(starts, self._children, _path_of))

    @cached_property
    def _owners(self) -> dict[str, EntryRecord]:
        """SPIFFE ID path -> an entry that gives it."""
        found: dict[str, EntryRecord] = {}
        for record in self._state.entries.values():
            if not record.alias:
                found.setdefault(record.path, record)
        return found

    @cached_property
    def _groups(self) -> dict[str, list[EntryRecord]]:
        """Path -> the node entries that give it."""
        found: dict[str, list[EntryRecord]] = {}
        for members in self._state.aliases.values():
            for record in members.values():
                found.setdefault(record.path, []).append(record)
        return found

    @cached_property
    def _holders(self) -> dict[Selector, list[str]]:
        """Node selector -> the agents that have it, those that are not banned."""
        found: dict[Selector, list[str]] = {}
        for path, agent in self._state.agents.items():
            for selector in () if agent.banned else agent.selectors:
                found.setdefault(selector, []).append(path)
        return found

    @cached_property
    def _live(self) -> list[str]:
        return [path for path in self._state.agents if path not in self._banned]

    def why_not(self, parent: str) -> Broken | None:
        """Why no agent may act for entries below `parent`; None if one may."""
        if parent in self._state.agents and parent not in self._banned:  # the usual case needs no look at all entries
            return None
        if parent in self._reached:
            return None
        if parent not in self._known:
            self._known[parent] = self._follow(parent)
        return self._known[parent]

    def matches_none(self, alias: EntryRecord) -> Broken | None:
        """Why a node entry gives its name to no agent; None if it gives it to one."""
        wanted = alias.node_selectors
        agents = self._state.agents
        few = min((self._holders.get(selector, []) for selector in wanted), key=len, default=[])
        if any(wanted <= agents[path].selectors for path in few):
            return None
        if not self._live:
            return Broken(LintCode.NODES_MATCH_NONE, "no agent has attested yet that could have its selectors")
        text = "no attested agent has all its selectors"
        if not self._may_look():
            return Broken(LintCode.NODES_MATCH_NONE, text)
        some = self._live[:MOST_AGENTS_COMPARED]
        best = min(some, key=lambda path: (len(wanted - agents[path].selectors), path))
        missing = ", ".join(map(str, canonical(wanted - agents[best].selectors)))
        return Broken(LintCode.NODES_MATCH_NONE, f"{text}; the closest, {self._id(best)}, lacks {missing}", best)

    def _may_look(self) -> bool:
        self._looks -= 1
        return self._looks >= 0

    def _closest(self, name: str, candidates: Iterable[str]) -> str:
        return (closest(name, islice(candidates, MOST_COMPARED)) or "") if self._may_look() else ""

    def _children(self, path: str) -> Iterable[EntryRecord]:
        found: Mapping[str, EntryRecord] | None = self._state.children.get(path)
        return () if found is None else found.values()

    def _follow(self, parent: str) -> Broken:
        """Up from `parent`: an entry's ID leads to that entry's parent, until there is nobody."""
        links = [parent]
        while True:
            here = links[-1]
            broken = self._end(here)
            if broken is not None:
                return broken if len(links) == 1 else self._above(parent, here, broken)
            above = self._owners[here].parent
            if above in links or len(links) >= MOST_LINKS:
                names = " below ".join(map(self._id, [*links[:3], above]))
                return Broken(LintCode.PARENT_LOOP, f"the parents lead in a circle: {names}")
            links.append(above)

    def _above(self, parent: str, here: str, broken: Broken) -> Broken:
        text = (
            f"its parent {self._id(parent)} is the SPIFFE ID of an entry, and no agent may act for that one: "
            f"above it stands {self._id(here)}, and {broken.text}"
        )
        return Broken(LintCode.PARENT_NOT_REACHED, text, broken.near)

    def _end(self, here: str) -> Broken | None:
        """What is wrong at this link; None if it is the SPIFFE ID of an entry, whose parent is to be looked at."""
        if here in self._banned:
            return Broken(LintCode.PARENT_BANNED, f"the agent {self._id(here)} is banned")
        if here in self._groups:
            alias = self._groups[here][0]
            why = self.matches_none(alias)
            return Broken(
                LintCode.PARENT_NOT_REACHED,
                f"{self._id(here)} is a group of nodes that no agent is in (node entry {alias.id}): "
                + (why.text if why is not None else "only banned agents have its selectors"),
            )
        if here in self._owners:
            return None
        if here.startswith(f"{AGENT_PREFIX}/"):
            return self._stranger(here)
        near = self._closest(here, chain(self._groups, self._live, self._owners))
        text = f"{self._id(here)} is neither an agent, nor a group of nodes, nor an entry's SPIFFE ID"
        return Broken(LintCode.UNKNOWN_PARENT, f"{text}{self._perhaps(near)}", near)

    def _stranger(self, here: str) -> Broken:
        live = self._live
        near = self._closest(here, live) or (live[0] if len(live) == 1 else "")
        text = f"no agent {self._id(here)} has attested"
        more = self._perhaps(near) or (f"; {len(live)} others have" if live else ", nor any other")
        return Broken(LintCode.UNKNOWN_AGENT, f"{text}{more}", near)

    def _perhaps(self, near: str) -> str:
        return f"; the closest is {self._id(near)}" if near else ""

    def _id(self, path: str) -> str:
        return f"spiffe://{self._state.trust_domain}{path}"
