"""Every database keeps federation relationships, and pages of bundles and relationships, as the port promises."""

from dataclasses import replace

import pytest

from identity_server.domain.federation import EndpointProfile, FederationRelationship
from identity_server.domain.listing import AgentFilter, EntryFilter, Match
from identity_server.store.sql_store import SqlStore
from spiffe_core.bundle import TrustBundle
from spiffe_core.errors import InvalidRequest
from spiffe_core.spiffe_id import TrustDomain
from tests.builders import OTHER_TD, TD, make_bundle, make_entry, selectors, sid

WEB = FederationRelationship(OTHER_TD, "https://fed.test/bundle", EndpointProfile.HTTPS_WEB)
SPIFFE = FederationRelationship(
    TrustDomain("a.test"), "https://a.test:8443/", EndpointProfile.HTTPS_SPIFFE, sid("spiffe://a.test/spire/server")
)


async def test_relationships_come_back_as_they_were(store: SqlStore) -> None:
    await store.execute(lambda uow: (uow.relationships.put(WEB), uow.relationships.put(SPIFFE)))
    found = await store.read(lambda uow: [uow.relationships.get(one.trust_domain) for one in (WEB, SPIFFE)])
    assert found == [WEB, SPIFFE]
    assert await store.read(lambda uow: uow.relationships.get(TD)) is None


async def test_relationships_are_replaced_and_removed(store: SqlStore) -> None:
    await store.execute(lambda uow: uow.relationships.put(SPIFFE))
    changed = replace(WEB, trust_domain=SPIFFE.trust_domain)
    await store.execute(lambda uow: uow.relationships.put(changed))
    assert await store.read(lambda uow: uow.relationships.page().items) == (changed,)
    await store.execute(lambda uow: uow.relationships.remove(SPIFFE.trust_domain))
    assert await store.read(lambda uow: uow.relationships.page().items) == ()


async def test_storing_what_stands_there_writes_no_event(store: SqlStore) -> None:
    await store.execute(lambda uow: uow.relationships.put(WEB))
    before = store.state.value.position
    await store.execute(lambda uow: uow.relationships.put(WEB))
    await store.execute(lambda uow: uow.relationships.remove(TD))
    assert store.state.value.position == before


async def test_relationships_are_paged_in_the_order_of_creation(store: SqlStore) -> None:
    names = [f"{letter}.test" for letter in "edcba"]
    await store.execute(
        lambda uow: [uow.relationships.put(replace(WEB, trust_domain=TrustDomain(name))) for name in names]
    )
    seen, token = [], ""
    for _ in range(3):
        page = await store.read(lambda uow, token=token: uow.relationships.page(token, 2))
        seen += [one.trust_domain.name for one in page]
        token = page.next_token
    assert seen == names
    assert token == ""


async def bundles(store: SqlStore, after: str, limit: int) -> tuple[list[str], str]:
    page = await store.read(lambda uow: uow.bundles.page(TD, after, limit))
    return [one.trust_domain.name for one in page], page.next_token


async def test_bundles_are_paged_by_name_without_the_own_one(store: SqlStore) -> None:
    names = ["a.test", "b.test", "example.com", "example.org", "z.test"]
    await store.execute(lambda uow: [uow.bundles.put(TrustBundle(TrustDomain(name))) for name in reversed(names)])
    names.remove(TD.name)
    assert await bundles(store, "", 0) == (names, "")
    first, token = await bundles(store, "", 3)
    assert first == names[:3]
    await store.execute(lambda uow: uow.bundles.remove([TrustDomain("example.com")]))
    assert await bundles(store, token, 3) == (names[3:], "")
    assert await bundles(store, "", 3) == (["a.test", "b.test", "z.test"], "")


async def test_bundles_are_asked_after_and_removed_many_at_a_time(store: SqlStore) -> None:
    """S27: more than one IN list holds; those that are absent are passed over and write nothing."""
    names = [TrustDomain(f"t{number}.test") for number in range(1100)]
    await store.execute(lambda uow: [uow.bundles.put(TrustBundle(name)) for name in names[:600]])
    await store.execute(lambda uow: uow.bundles.put(make_bundle()))
    assert await store.read(lambda uow: uow.bundles.stored(names)) == set(names[:600])
    await store.execute(lambda uow: uow.bundles.remove(names[1:]))
    assert await store.read(lambda uow: uow.bundles.stored(names)) == {names[0]}
    assert set(store.state.value.bundles.federated) == {names[0]}
    before = store.state.value.position
    await store.execute(lambda uow: uow.bundles.remove(names[1:]))
    assert store.state.value.position == before


async def test_entries_are_counted_for_each_trust_domain_they_federate_with(store: SqlStore) -> None:
    a, b, c = map(TrustDomain, ("a.test", "b.test", "c.test"))
    domains = [(a, b), (b,), ()]
    found = [make_entry(id=str(number), spiffe_id=f"/{number}", federates_with=of) for number, of in enumerate(domains)]
    counts = await store.execute(lambda uow: (uow.entries.add(found), uow.entries.federating([a, b, c]))[1])
    assert counts == {a: 1, b: 2}
    assert await store.read(lambda uow: (uow.entries.federating([b]), uow.entries.federating([]))) == ({b: 2}, {})


async def tokens(store: SqlStore) -> dict[str, str]:
    """One page token of each list, and of one list asked differently."""

    def ask(uow):
        return {
            "entries": uow.entries.page(EntryFilter(), "", 1),
            "some entries": uow.entries.page(EntryFilter(selectors=selectors("a:1", "b:1"), hint=""), "", 1),
            "other entries": uow.entries.page(
                EntryFilter(selectors=selectors("a:1", "b:1"), selectors_match=Match.SUPERSET, hint=""), "", 1
            ),
            "bundles": uow.bundles.page(TD, "", 1),
            "relationships": uow.relationships.page("", 1),
        }

    return {name: page.next_token for name, page in (await store.read(ask)).items()}


async def test_a_page_token_continues_only_the_list_it_was_given_out_for(store: SqlStore) -> None:
    """S58."""
    pair = [make_entry(id=name, spiffe_id=f"/{name}", selectors=["a:1", "b:1"]) for name in "xy"]
    await store.execute(lambda uow: uow.entries.add(pair))
    for one in (WEB, SPIFFE):
        await store.execute(lambda uow, one=one: uow.relationships.put(one))
        await store.execute(lambda uow, one=one: uow.bundles.put(make_bundle(trust_domain=one.trust_domain.name)))
    given = await tokens(store)
    assert len(set(given.values())) == len(given)
    assert all(given.values())
    lists = {
        "entries": lambda uow, token: uow.entries.page(EntryFilter(), token, 1),
        "some entries": lambda uow, token: uow.entries.page(
            EntryFilter(selectors=selectors("b:1", "a:1"), hint=""), token, 1
        ),
        "agents": lambda uow, token: uow.agents.page(AgentFilter(), token, 1),
        "bundles": lambda uow, token: uow.bundles.page(TD, token, 1),
        "relationships": lambda uow, token: uow.relationships.page(token, 1),
    }
    for name, ask in lists.items():
        for of, token in given.items():
            if of == name:
                await store.read(lambda uow, ask=ask, token=token: ask(uow, token))
                continue
            with pytest.raises(InvalidRequest, match="page_token"):
                await store.read(lambda uow, ask=ask, token=token: ask(uow, token))


@pytest.mark.parametrize("made_up", ["bundle:", "bundle:A", "bundle:a b", "a.test", "bundle:'; --", "\x00"])
async def test_a_made_up_token_for_bundles_is_invalid(store: SqlStore, made_up: str) -> None:
    """S58."""
    with pytest.raises(InvalidRequest, match="page_token"):
        await bundles(store, made_up, 1)


async def test_memory_follows_relationships(store: SqlStore) -> None:
    """FED-46: creating, changing and ending one shows in the state when the command returns, and after loading anew."""
    await store.execute(lambda uow: (uow.relationships.put(WEB), uow.relationships.put(SPIFFE)))
    assert dict(store.state.value.relationships) == {WEB.trust_domain: WEB, SPIFFE.trust_domain: SPIFFE}
    changed = replace(WEB, endpoint_url="https://elsewhere.test/")
    await store.execute(lambda uow: (uow.relationships.put(changed), uow.relationships.remove(SPIFFE.trust_domain)))
    assert dict(store.state.value.relationships) == {WEB.trust_domain: changed}
    before = store.state.value
    await store.execute(lambda uow: uow.bundles.put(make_bundle(trust_domain="fed.test")))
    assert store.state.value.relationships is before.relationships, "untouched"
