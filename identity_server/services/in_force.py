"""Use-case: at how many of the agents that may have an entry it is in force as it is now (architecture A9)."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from identity_server.domain.state import State
from identity_server.ports import Store
from identity_server.services.progress import SHOWN, Progress

MAX_CHANGES = 10_000
"""Of so many entries it is kept when they changed last. For others it was before the oldest of these changed."""
SLICE = 64
"""So many agents are looked at before anything else may run."""


@dataclass(slots=True)
class EntryStanding:
    """At how many agents one entry is in force."""

    entry_id: str
    agents: int = 0
    """Connected and polling agents that may have it."""
    behind: list[str] = field(default_factory=list)
    """The paths of some that have an older one, or none."""
    behind_count: int = 0
    polling: int = 0
    unknown: int = 0
    """Agents that only a server knows which does not answer."""


class InForce:
    """Remembers at which revision entries changed. Belongs to the event loop."""

    def __init__(self, *, store: Store, progress: Progress) -> None:
        self._store, self._progress = store, progress
        self._changes: OrderedDict[str, int] = OrderedDict()
        self._floor = store.state.value.position.revision
        store.state.listeners.append(self._changed)

    async def of(self, entry_ids: Sequence[str]) -> list[EntryStanding]:
        """How many agents have each of these entries.

        Raises:
            Unavailable: the database cannot be used now.
        """
        agents = await self._progress.fresh()
        state = self._store.state.value
        found = {one: EntryStanding(one) for one in entry_ids}
        for number, one in enumerate(agents.values()):
            if number % SLICE == SLICE - 1:
                await asyncio.sleep(0)
            for entry_id in found.keys() & state.authorised(one.agent_path).keys():
                standing = found[entry_id]
                if one.unknown_since:
                    standing.unknown += 1
                    continue
                standing.agents += 1
                standing.polling += not one.connected
                if one.revision < self._changes.get(entry_id, self._floor):
                    standing.behind_count += 1
                    if len(standing.behind) < SHOWN:
                        standing.behind.append(one.agent_path)
        return [found[one] for one in entry_ids]

    def _changed(self, state: State) -> None:
        if state.last is None:  # loaded: when each changed is not known
            self._changes.clear()
            self._floor = state.position.revision
            return
        for entry_id in state.last.entries:
            self._changes.pop(entry_id, None)
            self._changes[entry_id] = state.position.revision
        while len(self._changes) > MAX_CHANGES:
            _, self._floor = self._changes.popitem(last=False)
