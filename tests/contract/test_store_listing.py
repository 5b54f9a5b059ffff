"""Lists, counts and pages give the same answers on every database as plain set arithmetic (spire_wire section 3)."""

from dataclasses import replace
from itertools import product

import pytest

from identity_server.domain.agents import AttestedAgent, banned
from identity_server.domain.listing import AgentFilter, EntryFilter, Match
from identity_server.store.sql_store import SqlStore
from spiffe_core.errors import InvalidRequest
from spiffe_core.spiffe_id import TrustDomain
from tests.builders import make_entry, selectors, sid

A, B, C = "unix:uid:1", "unix:uid:2", "k8s:ns:x"
SETS = [(A,), (B,), (A, B), (A, B, C), (C,)]
DOMAINS = [(), ("a.test",), ("b.test",), ("a.test", "b.test"), ("a.test", "c.test")]
ENTRIES = [
    make_entry(
        id=f"{number}",
        spiffe_id=f"/app/{number}",
        parent_id=f"/spire/agent/{number % 2}",
        selectors=SETS[number],
        federates_with=tuple(map(TrustDomain, DOMAINS[number])),
        hint="h" if number % 2 else "",
        downstream=number == 3,
    )
    for number in range(5)
]
AGENTS = [
    AttestedAgent(
        spiffe_id=sid(f"/spire/agent/{number}"),
        attestation_type="join_token" if number % 2 else "x509pop",
        serial=str(number + 1),
        expires_at=100 * number,
        selectors=selectors(*SETS[number]) if number else frozenset(),
        can_reattest=number > 2,
    )
    for number in range(5)
]
AGENTS[4] = banned(AGENTS[4])


def matches(held: frozenset, given: frozenset, match: Match) -> bool:
    return {
        Match.EXACT: held == given,
        Match.SUBSET: held <= given and bool(held),
        Match.SUPERSET: held >= given,
        Match.ANY: bool(held & given),
    }[match]


@pytest.fixture
async def filled(store: SqlStore) -> SqlStore:
    await store.execute(lambda uow: uow.entries.add(ENTRIES))
    await store.execute(lambda uow: [uow.agents.put(agent) for agent in AGENTS])
    return store


async def entry_ids(store: SqlStore, wanted: EntryFilter) -> list[str]:
    page, count = await store.read(lambda uow: (uow.entries.page(wanted), uow.entries.count(wanted)))
    assert count == len(page)
    assert page.next_token == ""
    return [entry.id for entry in page]


async def agent_names(store: SqlStore, wanted: AgentFilter) -> list[str]:
    page, count = await store.read(lambda uow: (uow.agents.page(wanted), uow.agents.count(wanted)))
    assert count == len(page)
    return [agent.spiffe_id.path.rpartition("/")[2] for agent in page]


async def test_entries_by_selectors(filled: SqlStore) -> None:
    for given, match in product([*SETS, ("unix:uid:9",), (B, C)], Match):
        wanted = EntryFilter(selectors=selectors(*given), selectors_match=match)
        expected = [one.id for one in ENTRIES if matches(one.selectors, selectors(*given), match)]
        assert await entry_ids(filled, wanted) == expected, (given, match)


async def test_entries_by_federation(filled: SqlStore) -> None:
    for given, match in product([*DOMAINS[1:], ("z.test",)], Match):
        names = frozenset(map(TrustDomain, given))
        wanted = EntryFilter(federates_with=names, federates_with_match=match)
        expected = [one.id for one in ENTRIES if matches(frozenset(one.federates_with), names, match)]
        assert await entry_ids(filled, wanted) == expected, (given, match)


async def test_agents_by_selectors(filled: SqlStore) -> None:
    for given, match in product(SETS, Match):
        wanted = AgentFilter(selectors=selectors(*given), selectors_match=match)
        expected = [str(n) for n, one in enumerate(AGENTS) if matches(one.selectors, selectors(*given), match)]
        assert await agent_names(filled, wanted) == expected, (given, match)


async def test_entries_by_the_other_conditions(filled: SqlStore) -> None:
    assert await entry_ids(filled, EntryFilter()) == ["0", "1", "2", "3", "4"]
    assert await entry_ids(filled, EntryFilter(spiffe_id=sid("/app/2"))) == ["2"]
    assert await entry_ids(filled, EntryFilter(spiffe_id=sid("/APP/2"))) == []
    assert await entry_ids(filled, EntryFilter(parent_id=sid("/spire/agent/1"))) == ["1", "3"]
    assert await entry_ids(filled, EntryFilter(hint="h")) == ["1", "3"]
    assert await entry_ids(filled, EntryFilter(hint="")) == ["0", "2", "4"]
    assert await entry_ids(filled, EntryFilter(downstream=True)) == ["3"]
    assert await entry_ids(filled, EntryFilter(downstream=False)) == ["0", "1", "2", "4"]
    both = EntryFilter(parent_id=sid("/spire/agent/1"), selectors=selectors(B), selectors_match=Match.SUPERSET)
    assert await entry_ids(filled, both) == ["1", "3"]


async def test_agents_by_the_other_conditions(filled: SqlStore) -> None:
    assert await agent_names(filled, AgentFilter(attestation_type="join_token")) == ["1", "3"]
    assert await agent_names(filled, AgentFilter(banned=True)) == ["4"]
    assert await agent_names(filled, AgentFilter(banned=False)) == ["0", "1", "2", "3"]
    assert await agent_names(filled, AgentFilter(can_reattest=True)) == ["3", "4"]
    assert await agent_names(filled, AgentFilter(expires_before=200)) == ["0", "1"]
    assert await agent_names(filled, AgentFilter(can_reattest=True, banned=False)) == ["3"]


async def test_pages_follow_each_other_and_outlive_changes(filled: SqlStore) -> None:
    everything = EntryFilter()
    first = await filled.read(lambda uow: uow.entries.page(everything, "", 2))
    assert [one.id for one in first] == ["0", "1"]
    await filled.execute(lambda uow: uow.entries.remove(["1", "2"]))
    await filled.execute(lambda uow: uow.entries.replace([replace(ENTRIES[0], hint="changed")]))
    await filled.execute(lambda uow: uow.entries.add([make_entry(id="new", spiffe_id="/new")]))
    second = await filled.read(lambda uow: uow.entries.page(everything, first.next_token, 2))
    assert [one.id for one in second] == ["3", "4"]
    third = await filled.read(lambda uow: uow.entries.page(everything, second.next_token, 2))
    assert [one.id for one in third] == ["new"]
    assert third.next_token == ""


async def test_a_full_last_page_has_no_next(filled: SqlStore) -> None:
    page = await filled.read(lambda uow: uow.entries.page(EntryFilter(), "", 5))
    assert len(page) == 5
    assert page.next_token == ""


@pytest.mark.parametrize("made_up", ["x", "-1", "1.5", " 1", "٣", "9" * 30, "1'; --"])
async def test_a_made_up_page_token_is_invalid(filled: SqlStore, made_up: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        await filled.read(lambda uow: uow.entries.page(EntryFilter(), made_up, 5))
    assert refusal.value.field == "page_token"
    with pytest.raises(InvalidRequest):
        await filled.read(lambda uow: uow.agents.page(AgentFilter(), made_up, 5))
