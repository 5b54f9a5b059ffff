"""The immutable view: what an agent is entitled to, what is shared, what it costs."""

import gc
import tracemalloc
import uuid
from dataclasses import replace

import pytest

from identity_server.domain.agents import AttestedAgent
from identity_server.domain.entry_record import EntryRecord, record_of
from identity_server.domain.history import Position
from identity_server.domain.state import Change, State
from spiffe_core.selectors import Selector
from spiffe_core.spiffe_id import SpiffeId
from spiffe_core.wire.convert_entry import entry_to_proto
from tests.builders import OTHER_TD, TD, make_bundle, make_entry, selectors, sid

AGENT = "/spire/agent/a"
EMPTY = State(Position(0, 0, 0), TD)


def record(entry_id: str, path: str, parent: str = AGENT, **over: object) -> EntryRecord:
    entry = make_entry(id=entry_id, spiffe_id=path, parent_id=parent, **over)
    return record_of(entry, entry_to_proto(entry).SerializeToString())


def agent(*texts: str, path: str = AGENT) -> AttestedAgent:
    return AttestedAgent(sid(path), "join_token", "1", 2, selectors=selectors(*texts))


class Maker:
    """Applies changes one revision after the other."""

    def __init__(self) -> None:
        self.state = State(Position(0, 0, 0), TD)  # each with a memo of its own

    def __call__(self, *records: EntryRecord, gone: tuple[str, ...] = (), agents: dict | None = None) -> State:
        entries = {**{one.id: one for one in records}, **dict.fromkeys(gone)}
        revision = self.state.position.revision + 1
        change = Change(Position(1, revision, revision * 7), entries=entries, agents=agents or {})
        self.state = self.state.apply(change)
        return self.state


@pytest.fixture
def make() -> Maker:
    return Maker()


def test_an_agent_gets_its_children_and_their_children(make: Maker) -> None:
    state = make(record("1", "/a"), record("2", "/b", "/a"), record("3", "/c", "/b"), record("4", "/d", "/elsewhere"))
    assert set(state.authorised(AGENT)) == {"1", "2", "3"}
    assert set(state.authorised("/spire/agent/none")) == set()


def test_a_cycle_of_parents_ends(make: Maker) -> None:
    state = make(record("1", "/a"), record("2", "/b", "/a"), record("3", "/a", "/b"), record("4", "/s", "/s"))
    assert set(state.authorised(AGENT)) == {"1", "2", "3"}
    assert set(state.authorised("/s")) == {"4"}


def test_an_alias_applies_when_all_its_selectors_are_the_nodes(make: Maker) -> None:
    """spire_features section 15.2: the alias itself is not handed out."""
    alias = record("n", "/node", "/spire/server", selectors=["os:linux", "zone:b"])
    below = record("1", "/a", "/node")
    state = make(alias, below, agents={AGENT: agent("os:linux", "zone:a")})
    assert set(state.authorised(AGENT)) == set()
    state = make(agents={AGENT: agent("os:linux", "zone:b", "extra:1")})
    assert set(state.authorised(AGENT)) == {"1"}
    assert state.names_of(AGENT) == {AGENT, "/node"}
    state = make(gone=("n",))
    assert set(state.authorised(AGENT)) == set()
    assert not state.aliases


def test_an_agent_that_is_not_attested_yet_has_no_aliases(make: Maker) -> None:
    state = make(
        record("n", "/node", "/spire/server", selectors=["os:linux"]), record("1", "/a", "/node"), record("2", "/b")
    )
    assert set(state.authorised(AGENT)) == {"2"}
    assert state.names_of(AGENT) == {AGENT}


def test_an_alias_without_selectors_never_applies(make: Maker) -> None:
    bare = EntryRecord("n", b"", "/node", "/spire/server", 0, 0)
    state = make(bare, record("1", "/a", "/node"), agents={AGENT: agent("os:linux")})
    assert set(state.authorised(AGENT)) == set()


def test_a_moved_entry_is_only_at_its_new_place(make: Maker) -> None:
    make(record("1", "/a"))
    state = make(record("1", "/b", "/other"))
    assert set(state.authorised(AGENT)) == set()
    assert set(state.authorised("/other")) == {"1"}
    assert AGENT not in state.children, "empty groups go"
    alias = make(record("1", "/node", "/spire/server", selectors=["os:linux"]))
    assert not alias.children
    assert set(alias.aliases) == {Selector("os", "linux")}


def test_the_answer_stays_the_same_object_until_it_changes(make: Maker) -> None:
    """A poll of an unchanged state is one look-up, and finished responses can be cached by identity."""
    state = make(record("1", "/a"), record("2", "/b", "/a"), agents={AGENT: agent("os:linux")})
    answer = state.authorised(AGENT)
    assert state.authorised(AGENT) is answer
    elsewhere = make(record("9", "/z", "/spire/agent/z"), agents={"/spire/agent/z": agent(path="/spire/agent/z")})
    assert elsewhere.authorised(AGENT) is answer
    assert make(agents={AGENT: agent("os:linux", "zone:a")}).authorised(AGENT) is answer
    changed = make(record("3", "/c", "/b"))
    assert set(changed.authorised(AGENT)) == {"1", "2", "3"}
    assert set(state.authorised(AGENT)) == {"1", "2"}, "an older state still answers as of then"
    assert set(changed.authorised(AGENT)) == {"1", "2", "3"}


def test_a_first_child_below_a_leaf_is_noticed(make: Maker) -> None:
    before = make(record("1", "/a"))
    assert set(before.authorised(AGENT)) == {"1"}
    assert set(make(record("2", "/b", "/a")).authorised(AGENT)) == {"1", "2"}


def test_what_is_remembered_is_bounded(make: Maker) -> None:
    state = make(record("1", "/a"))
    for number in range(5_000):
        state.authorised(f"/spire/agent/{number}")
    assert len(state._memo) < 1_100


def test_admin_and_downstream_entries_are_found_by_path(make: Maker) -> None:
    state = make(
        record("1", "/a", admin=True),
        record("2", "/a", "/x", downstream=True),
        record("3", "/a", "/y"),
        record("4", "/b"),
    )
    assert {one.id for one in state.entries_for_path("/a")} == {"1", "2"}
    assert (state.is_admin("/a"), state.is_downstream("/a")) == (True, True)
    assert (state.is_admin("/b"), state.is_downstream("/b")) == (False, False)
    state = make(record("1", "/a"), gone=("2",))
    assert state.entries_for_path("/a") == ()
    assert not state.is_admin("/a")


def test_states_share_what_did_not_change(make: Maker) -> None:
    before = make(*(record(str(number), f"/{number}", f"/p/{number % 10}") for number in range(100)))
    after = make(record("new", "/new", "/p/0"))
    assert after.children["/p/1"] is before.children["/p/1"]
    assert len(before.entries) == 100
    assert after.entries_at == after.position


def test_bundles_and_authorities_are_replaced_only_when_they_change(make: Maker) -> None:
    make(record("1", "/a"))
    own, foreign = make_bundle(), make_bundle(trust_domain="fed.test")
    state = make.state.apply(Change(Position(1, 2, 3), bundles={OTHER_TD: foreign}))
    assert state.bundles is None
    state = state.apply(Change(Position(1, 3, 4), bundles={TD: own}))
    assert state.bundles is not None
    assert state.bundles.get(OTHER_TD) == foreign
    later = state.apply(Change(Position(1, 4, 5), agents={AGENT: agent()}))
    assert later.bundles is state.bundles
    assert later.entries is state.entries
    assert state.apply(Change(Position(1, 4, 5), bundles={TD: None})).bundles is None


def test_a_record_does_not_show_its_bytes() -> None:
    assert "wire" not in repr(record("1", "/a"))


def test_an_entry_costs_at_most_600_bytes() -> None:
    """A8: 20,000 entries with three selectors each, 100 to an agent, 100 made in a second."""

    def entries():
        for number in range(20_000):
            entry = make_entry(
                id=str(uuid.UUID(int=number * 2**64 + number)),
                spiffe_id=SpiffeId(TD, f"/ns/production/sa/app-{number}"),
                parent_id=SpiffeId(TD, f"/spire/agent/join_token/{uuid.UUID(int=number // 100)}"),
                selectors=["k8s:ns:production", f"k8s:sa:app-{number}", f"unix:uid:{number % 1000}"],
                created_at=1_700_000_000 + number // 100,
            )
            yield record_of(entry, entry_to_proto(entry).SerializeToString())

    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    state = EMPTY.apply(Change(Position(1, 1, 1), entries={one.id: one for one in entries()}))
    gc.collect()
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert len(state.entries) == 20_000
    assert used / 20_000 <= 600


def test_a_change_costs_what_it_touches(make: Maker) -> None:
    """Nothing walks over all entries: a small change to a large state allocates little."""
    state = make(*(record(str(number), f"/{number}", f"/p/{number % 100}") for number in range(5_000)))
    state.authorised("/p/1")
    change = Change(Position(1, 9, 9), entries={"x": record("x", "/x", "/p/1")})
    tracemalloc.start()
    after = state.apply(change)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000
    assert after.apply(replace(change, entries={"x": None})).entries == state.entries
