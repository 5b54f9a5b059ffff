"""States of a server, one revision after the other, without a database."""

from __future__ import annotations

from identity_server.domain.agents import AttestedAgent
from identity_server.domain.entry_record import EntryRecord, record_of
from identity_server.domain.history import Position
from identity_server.domain.state import Change, State
from identity_server.services.admission import Presented
from spiffe_core.runtime.watch import Watch
from spiffe_core.wire.convert_entry import entry_to_proto
from tests.builders import TD, make_entry, selectors, sid

AGENT = "/spire/agent/a"


def record(entry_id: str, path: str, parent: str = AGENT, **over: object) -> EntryRecord:
    entry = make_entry(id=entry_id, spiffe_id=path, parent_id=parent, **over)
    return record_of(entry, entry_to_proto(entry).SerializeToString())


def attested(*texts: str, path: str = AGENT, serial: str = "1", **over: object) -> AttestedAgent:
    return AttestedAgent(sid(path), "join_token", serial, 2**40, selectors=selectors(*texts), **over)


class StateMaker:
    """The Store port as far as reading goes: `state`, published at each change."""

    def __init__(self, epoch: int = 1) -> None:
        self.state: Watch[State] = Watch(State(Position(0, 0, 0), TD))
        self._epoch = epoch

    def __call__(self, *records: EntryRecord, gone: tuple[str, ...] = (), **more: object) -> State:
        entries = {**{one.id: one for one in records}, **dict.fromkeys(gone)}
        return self.apply(entries=entries, **more)

    def apply(self, **changes: object) -> State:
        revision = self.state.value.position.revision + 1
        change = Change(Position(self._epoch, revision, revision * 7 + 1), **changes)
        self.last = change
        self.state.publish(self.state.value.apply(change))
        return self.state.value

    def load(self, state: State) -> None:
        """What a server knows after it has read everything anew."""
        whole = Change(
            state.position, entries=dict(state.entries), agents=dict(state.agents), bundles=dict(state.trust_bundles)
        )
        self.state.publish(State(Position(0, 0, 0), TD).apply(whole))


class FreeAdmission:
    """Every certificate counts, but for the serials in `void`."""

    def __init__(self) -> None:
        self.void: set[str] = set()

    def speaks_for_nobody(self, presented: Presented) -> bool:
        return presented.serial in self.void
