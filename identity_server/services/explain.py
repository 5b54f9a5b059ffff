"""Use-case: what a workload of some agent is entitled to, and why not to more (architecture A10).

The decision is the one that hands entries out (`State.authorised`) and matches them (`spiffe_core.entitlement`). An
administrator gets all of it. An agent learns of entries that are not its own no more than how many match its workload,
and below which parent.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable

from identity_server.domain.agents import SERVER_PATH
from identity_server.domain.entry_record import EntryRecord
from identity_server.domain.listing import EntryFilter, Match
from identity_server.domain.state import State
from identity_server.ports import Store
from identity_server.services.progress import Progress
from spiffe_core.clock import Clock
from spiffe_core.edit_distance import closest
from spiffe_core.entry import RegistrationEntry
from spiffe_core.errors import Exhausted
from spiffe_core.explanation import explain
from spiffe_core.explanation_facts import AgentFacts, Elsewhere, Explanation, Findings
from spiffe_core.mending import selector_flags, update_command
from spiffe_core.runtime.supervise import spawn
from spiffe_core.selectors import Selector, canonical
from spiffe_core.spiffe_id import SpiffeId

MAX_LOOKED_AT = 5_000
"""So many entries of an agent are looked at for near misses."""
MAX_ELSEWHERE = 1_000
SLICE = 250
MAX_ASKING = 16
"""So many questions of agents wait for their turn."""
MAX_ASKING_EACH = 4
"""And so many of one agent."""


class ExplainEntitlement:
    """Belongs to the event loop."""

    def __init__(self, *, store: Store, clock: Clock, progress: Progress) -> None:
        self._store = store
        self._clock = clock
        self._progress = progress
        self._turn = asyncio.Semaphore(1)
        self._questions: set[asyncio.Task[Elsewhere | None]] = set()
        self._asking: Counter[str] = Counter()

    async def of(
        self, agent: SpiffeId, selectors: frozenset[Selector], decode: Callable[[bytes], RegistrationEntry]
    ) -> Explanation:
        """What a workload with `selectors` gets from this agent. `decode` reads an entry's finished bytes."""
        state = self._store.state.value
        facts = self._facts(agent, state)
        entries = await _decoded(state.authorised(agent.path).values(), decode)
        found = Findings(facts, selectors=selectors, entries=entries, signed=False)
        if not facts.unknown:
            found = Findings(
                facts,
                selectors=selectors,
                entries=entries,
                elsewhere=await self._elsewhere(agent, selectors, state),
                signed=False,
            )
        return explain(found, self._clock.now())

    async def elsewhere(self, agent: SpiffeId, selectors: frozenset[Selector]) -> Elsewhere | None:
        """Entries that match and are not this agent's; what an agent may know of them.

        Raises:
            Exhausted: many agents ask already, or this one asks too much at once. It is the one question of theirs
                that looks through the tables, and by all of the threads that read for them it would keep renewals
                waiting.
        """
        if self._asking[agent.path] >= MAX_ASKING_EACH:
            raise Exhausted(
                "this agent asks about others' entries too often; ask again shortly", asking=MAX_ASKING_EACH
            )
        if len(self._questions) >= MAX_ASKING:
            raise Exhausted("too many agents ask about others' entries just now; ask again shortly", asking=MAX_ASKING)
        question = spawn(self._in_turn(agent, selectors), f"elsewhere {agent}", self._questions)
        self._asking[agent.path] += 1
        question.add_done_callback(lambda task: self._answered(agent.path, task))
        found = await asyncio.shield(question)  # the thread goes on reading for one who left, so his turn lasts
        return None if found is None else Elsewhere(found.count, found.parent_id)

    def _answered(self, path: str, question: asyncio.Task[Elsewhere | None]) -> None:
        """Looks at what became of it, in case nobody waits any more."""
        _ = question.cancelled() or question.exception()
        self._asking[path] -= 1
        if not self._asking[path]:
            del self._asking[path]

    async def _in_turn(self, agent: SpiffeId, selectors: frozenset[Selector]) -> Elsewhere | None:
        async with self._turn:
            return await self._elsewhere(agent, selectors, self._store.state.value)

    async def _elsewhere(self, agent: SpiffeId, selectors: frozenset[Selector], state: State) -> Elsewhere | None:
        wanted = EntryFilter(selectors=selectors, selectors_match=Match.SUBSET)
        matching = await self._store.read(lambda uow: uow.entries.page(wanted, "", MAX_ELSEWHERE))
        own = state.authorised(agent.path)
        names = state.names_of(agent.path)
        foreign = [
            one
            for one in matching
            if one.id not in own and one.parent_id.path not in names and not _is_alias(one, state)
        ]
        if not foreign:
            return None
        first = foreign[0]
        why, fix = _not_in_group(agent, first, state)
        return Elsewhere(len(foreign), str(first.parent_id), first, why, fix)

    def _facts(self, agent: SpiffeId, state: State) -> AgentFacts:
        known = state.agents.get(agent.path)
        if known is None:
            near = closest(agent.path, list(state.agents)[:MAX_LOOKED_AT])
            return AgentFacts(str(agent), unknown=True, why=str(SpiffeId(state.trust_domain, near)) if near else "")
        progress = self._progress.of(agent.path)
        return AgentFacts(
            str(agent),
            banned=known.banned,
            member=known.expires_at > self._clock.now().timestamp(),
            why="its SVID has expired: it has not been here for a while",
            advice="start it, or read its log: it attests anew by itself as soon as it reaches this server",
            ready=True,
            pushed=progress is not None and progress.connected,
            position=f"revision {progress.revision} of {self._progress.revision}" if progress is not None else "",
        )


async def _decoded(
    records: Iterable[EntryRecord], decode: Callable[[bytes], RegistrationEntry]
) -> tuple[RegistrationEntry, ...]:
    """The entries behind records, in slices so that others get their turn."""
    made: list[RegistrationEntry] = []
    for record in records:
        if len(made) >= MAX_LOOKED_AT:
            break
        made.append(decode(record.wire))
        if not len(made) % SLICE:
            await asyncio.sleep(0)
    return tuple(made)


def _is_alias(entry: RegistrationEntry, state: State) -> bool:
    record = state.entries.get(entry.id)
    return record is not None and record.alias


def _not_in_group(agent: SpiffeId, entry: RegistrationEntry, state: State) -> tuple[str, str]:
    """If the entry is a group's: why the agent is not in the group, and what puts it there; else nothing."""
    path = entry.parent_id.path
    alias = next((one for group in state.aliases.values() for one in group.values() if one.path == path), None)
    node = state.agents.get(agent.path)
    if alias is None or node is None:
        return "", ""
    lacks = ", ".join(map(str, canonical(alias.node_selectors - node.selectors)))
    why = (
        f"its parent is the group {entry.parent_id}, which this agent is not in: node entry {alias.id} asks for {lacks}"
    )
    if not node.selectors:
        return f"{why}; this agent has no node selectors", update_command(entry, parent=str(agent))
    kept = alias.node_selectors & node.selectors
    return why, (
        f"identity-server entry update -entryID {alias.id} -parentID spiffe://{state.trust_domain}{SERVER_PATH} "
        f"-spiffeID {entry.parent_id} {selector_flags(kept or node.selectors)}"
    )
