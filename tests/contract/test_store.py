"""Every database keeps what the Store port promises."""

import asyncio
import hashlib
from dataclasses import replace

import pytest

from identity_server.domain.agents import banned
from identity_server.domain.authority import Status
from identity_server.store.sql_store import SqlStore
from spiffe_core.bundle import JwtAuthority, WitAuthority
from spiffe_core.crypto.keys import KeyKind, generate, spki_der
from spiffe_core.entry import similarity
from spiffe_core.errors import Conflict, Internal, NotFound
from tests.builders import OTHER_TD, TD, make_bundle, make_entry, selectors, sid
from tests.databases import SERVER, encode
from tests.doubles.store_values import AGENT, AUTHORITY, FULL_ENTRY, token


async def test_an_entry_comes_back_as_it_was(store: SqlStore) -> None:
    plain = make_entry(id="plain")
    await store.execute(lambda uow: uow.entries.add([FULL_ENTRY, plain]))
    found = await store.read(lambda uow: uow.entries.many(["full", "plain", "absent"]))
    assert found == {"full": FULL_ENTRY, "plain": plain}
    assert await store.read(lambda uow: uow.entries.get("absent")) is None


async def test_entries_are_replaced_and_removed_with_all_their_parts(store: SqlStore) -> None:
    changed = replace(FULL_ENTRY, selectors=selectors("unix:uid:2"), federates_with=(), revision_number=8)
    await store.execute(lambda uow: uow.entries.add([FULL_ENTRY]))
    await store.execute(lambda uow: uow.entries.replace([changed]))
    assert await store.read(lambda uow: uow.entries.get("full")) == changed
    assert await store.read(lambda uow: uow.entries.similar([FULL_ENTRY])) == {}
    await store.execute(lambda uow: uow.entries.remove(["full", "absent"]))
    assert await store.read(lambda uow: uow.entries.get("full")) is None
    await store.execute(lambda uow: uow.entries.add([FULL_ENTRY]))
    assert "full" in store.state.value.entries


async def test_replacing_what_is_not_there_is_not_found_and_changes_nothing(store: SqlStore) -> None:
    await store.execute(lambda uow: uow.entries.add([FULL_ENTRY]))
    before = store.state.value.position
    with pytest.raises(NotFound):
        await store.execute(lambda uow: uow.entries.replace([replace(FULL_ENTRY, hint="x"), make_entry(id="absent")]))
    assert await store.read(lambda uow: uow.entries.get("full")) == FULL_ENTRY
    assert store.state.value.position == before


async def test_a_similar_entry_is_found_by_its_digest_and_refused(store: SqlStore) -> None:
    twin = replace(FULL_ENTRY, id="twin", hint="other")
    await store.execute(lambda uow: uow.entries.add([FULL_ENTRY]))
    assert await store.read(lambda uow: uow.entries.similar([twin])) == {similarity(twin): FULL_ENTRY}
    with pytest.raises(Conflict):
        await store.execute(lambda uow: uow.entries.add([twin]))
    with pytest.raises(Conflict):
        await store.execute(lambda uow: uow.entries.add([make_entry(id="full", spiffe_id="/other")]))
    with pytest.raises(Conflict):
        await store.execute(lambda uow: uow.entries.add([make_entry(id="x"), make_entry(id="y")]))
    assert set(store.state.value.entries) == {"full"}


async def test_ids_that_differ_in_case_only_are_different(store: SqlStore) -> None:
    """S63, A8: no collation decides about identity."""
    pair = [make_entry(id="A", spiffe_id="/A"), make_entry(id="a", spiffe_id="/a")]
    await store.execute(lambda uow: uow.entries.add(pair))
    assert await store.read(lambda uow: uow.entries.many(["A", "a"])) == {one.id: one for one in pair}


async def test_an_operation_sees_its_own_writes_and_the_batch_before_it(store: SqlStore) -> None:
    first, second = make_entry(id="1", spiffe_id="/1"), make_entry(id="2", spiffe_id="/2")

    def command(uow):
        uow.entries.add([first])
        assert uow.entries.get("1") == first
        assert uow.entries.similar([replace(first, id="other")]) == {similarity(first): first}
        uow.entries.add([second])
        uow.entries.replace([replace(first, hint="new")])
        uow.entries.remove(["2"])
        assert uow.entries.many(["1", "2"]) == {"1": replace(first, hint="new")}

    await store.execute(command)
    assert await store.read(lambda uow: uow.entries.many(["1", "2"])) == {"1": replace(first, hint="new")}


async def test_agents_are_kept_banned_and_removed(store: SqlStore) -> None:
    path = AGENT.spiffe_id.path
    await store.execute(lambda uow: uow.agents.put(AGENT))
    assert await store.read(lambda uow: uow.agents.get(path)) == AGENT
    assert store.state.value.agents[path] == AGENT
    gone = replace(banned(AGENT), selectors=selectors("os:bsd"))
    await store.execute(lambda uow: uow.agents.put(gone))
    assert await store.read(lambda uow: uow.agents.get(path)) == gone
    await store.execute(lambda uow: uow.agents.remove(path))
    assert await store.read(lambda uow: uow.agents.get(path)) is None
    assert path not in store.state.value.agents
    with pytest.raises(Internal):
        await store.execute(
            lambda uow: uow.agents.put(replace(AGENT, spiffe_id=sid("spiffe://fed.test/spire/agent/a")))
        )


async def test_bundles_with_every_kind_of_authority_come_back(store: SqlStore) -> None:
    key = spki_der(generate(KeyKind.EC_P256).public_key())
    own = replace(
        make_bundle(),
        jwt_authorities=(JwtAuthority("j1", key, expires_at=9, tainted=True),),
        wit_authorities=(WitAuthority("w1", key),),
    )
    foreign = make_bundle(trust_domain="fed.test")
    assert store.state.value.bundles is None
    await store.execute(lambda uow: uow.bundles.put(foreign))
    assert store.state.value.bundles is None, "there is no bundle of our own yet"
    await store.execute(lambda uow: uow.bundles.put(own))
    assert await store.read(lambda uow: (uow.bundles.get(TD), uow.bundles.count())) == (own, 2)
    assert store.state.value.bundles is not None
    assert store.state.value.bundles.all() == (own, foreign)
    tainted = own.with_x509_tainted(own.x509_authorities[0].key_id)
    await store.execute(lambda uow: uow.bundles.put(tainted))
    assert await store.read(lambda uow: uow.bundles.get(TD)) == tainted
    await store.execute(lambda uow: uow.bundles.remove([OTHER_TD]))
    assert store.state.value.bundles.all() == (tainted,)
    assert await store.read(lambda uow: uow.bundles.get(OTHER_TD)) is None


async def test_the_authority_journal_is_kept_per_server(store: SqlStore) -> None:
    """R33: what signs is what was stored; the state holds this server's authorities only."""
    other = replace(AUTHORITY, authority_id="cd" * 20, server_id="server-2")
    await store.execute(lambda uow: (uow.authorities.put(AUTHORITY), uow.authorities.put(other)))
    active = replace(AUTHORITY, status=Status.ACTIVE, published_at=5, tainted=True)
    await store.execute(lambda uow: uow.authorities.put(active))
    assert await store.read(lambda uow: uow.authorities.of_server(SERVER)) == (active,)
    assert await store.read(lambda uow: uow.authorities.of_server("server-2")) == (other,)
    assert store.state.value.authorities == (active,)
    await store.execute(lambda uow: uow.authorities.remove(active.authority_id))
    assert store.state.value.authorities == ()


@pytest.mark.parametrize(
    "text",
    [
        "'; DROP TABLE entry; --",
        '"quoted" \\ back\\\\slash',
        "% _ [a-z] ^ $ * ? {x}",
        "nul\x00inside",
        "line\nfeed\r\ttab",
        "émoji 🦊 ﬀ İ ß",
        "a\u0301 and á",
        " leading and trailing ",
        ":bind %s %(x)s ?1 @x $1",
        "x" * 8000,
    ],
)
async def test_meta_characters_are_stored_and_found_verbatim(store: SqlStore, text: str) -> None:
    """S63"""
    from identity_server.domain.listing import EntryFilter

    hint = text[:200]
    stored = make_entry(selectors=[f"t'\"%:{text}", "unix:uid:1"], hint=hint)
    agent = replace(AGENT, attestation_type=hint, agent_version=hint, selectors=stored.selectors)
    await store.execute(lambda uow: (uow.entries.add([stored]), uow.agents.put(agent)))
    assert await store.read(lambda uow: uow.entries.get(stored.id)) == stored
    assert await store.read(lambda uow: uow.agents.get(agent.spiffe_id.path)) == agent
    by_hint = EntryFilter(hint=hint)
    by_selector = EntryFilter(selectors=stored.selectors)
    assert await store.read(lambda uow: uow.entries.page(by_hint).items) == (stored,)
    assert await store.read(lambda uow: uow.entries.page(by_selector).items) == (stored,)
    assert await store.read(lambda uow: uow.entries.count(EntryFilter(hint=hint + "'"))) == 0
    assert encode(stored) == store.state.value.entries[stored.id].wire


async def test_a_join_token_redeemed_100_times_at_once_has_one_winner(store: SqlStore) -> None:
    """S26, A18: different keys, one wins; the same key may repeat within the grace."""
    one = token("t")
    await store.execute(lambda uow: uow.join_tokens.add(one))
    keys = [hashlib.sha256(bytes([number])).digest() for number in range(100)]
    won = await asyncio.gather(
        *(store.execute(lambda uow, key=key: uow.join_tokens.redeem(one.digest, key, 500, 300)) for key in keys)
    )
    assert sum(won) == 1
    winner = keys[won.index(True)]
    stored = await store.read(lambda uow: uow.join_tokens.get(one.digest))
    assert stored == replace(one, redeemed_key=winner, redeemed_at=500)

    async def redeem(key: bytes, now: int) -> bool:
        return await store.execute(lambda uow: uow.join_tokens.redeem(one.digest, key, now, 300))

    assert await redeem(winner, 799)
    assert not await redeem(keys[won.index(False)], 500)
    assert not await redeem(winner, 800), "the grace counts from the first redemption"
    assert await store.read(lambda uow: uow.join_tokens.get(one.digest)) == stored


async def test_a_lost_reply_may_be_repeated_after_the_token_expired(store: SqlStore) -> None:
    """A18: expiry stops the first redemption only."""
    one = token("t", expires_at=1_000)
    await store.execute(lambda uow: uow.join_tokens.add(one))
    key = hashlib.sha256(b"k").digest()
    assert not await store.execute(lambda uow: uow.join_tokens.redeem(one.digest, key, 1_000, 300))
    assert await store.execute(lambda uow: uow.join_tokens.redeem(one.digest, key, 999, 300))
    assert await store.execute(lambda uow: uow.join_tokens.redeem(one.digest, key, 1_001, 300))


async def test_join_tokens_are_unique_removed_and_pruned(store: SqlStore) -> None:
    await store.execute(lambda uow: [uow.join_tokens.add(token(str(at), expires_at=at)) for at in (10, 20, 30)])
    with pytest.raises(Conflict):
        await store.execute(lambda uow: uow.join_tokens.add(token("10")))
    assert not await store.execute(lambda uow: uow.join_tokens.redeem(token("absent").digest, b"k" * 32, 1, 300))
    await store.execute(lambda uow: uow.join_tokens.remove(token("30").digest))
    assert await store.execute(lambda uow: uow.join_tokens.prune(20)) == 1
    left = [
        at for at in ("10", "20", "30") if await store.read(lambda uow, at=at: uow.join_tokens.get(token(at).digest))
    ]
    assert left == ["20"]


async def test_expired_entries_are_found_oldest_first(store: SqlStore) -> None:
    entries = [make_entry(id=str(at), spiffe_id=f"/{at}", expires_at=at) for at in (0, 30, 10, 20, 40)]
    await store.execute(lambda uow: uow.entries.add(entries))
    assert [one.id for one in await store.read(lambda uow: uow.entries.expired(40, 10))] == ["10", "20", "30"]
    assert [one.id for one in await store.read(lambda uow: uow.entries.expired(40, 2))] == ["10", "20"]


async def test_a_writer_reads_its_own_write_in_the_state(store: SqlStore) -> None:
    for number in range(20):
        entry = make_entry(id=str(number), spiffe_id=f"/{number}")
        await store.execute(lambda uow, entry=entry: uow.entries.add([entry]))
        assert store.state.value.entries[entry.id].wire == encode(entry)


async def test_nothing_changed_means_no_revision(store: SqlStore) -> None:
    bundle = make_bundle()
    await store.execute(
        lambda uow: (
            uow.entries.add([FULL_ENTRY]),
            uow.agents.put(AGENT),
            uow.bundles.put(bundle),
            uow.authorities.put(AUTHORITY),
        )
    )
    before = store.state.value.position
    await store.execute(
        lambda uow: (
            uow.entries.replace([FULL_ENTRY]),
            uow.entries.remove(["absent"]),
            uow.agents.put(AGENT),
            uow.agents.remove("/spire/agent/absent"),
            uow.bundles.put(bundle),
            uow.bundles.remove([OTHER_TD]),
            uow.authorities.put(AUTHORITY),
            uow.authorities.remove("absent"),
            uow.join_tokens.prune(0),
        )
    )
    await store.execute(lambda uow: uow.entries.remove(["full"]))
    assert store.state.value.position.revision == before.revision + 1
