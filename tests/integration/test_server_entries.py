"""The Entry service as administrators use it: batches, masks, filters, paging (spire_wire section 5.2)."""

import grpc
import grpc.aio
import pytest

from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.types import entry_pb2 as entry_types
from tests.doubles.live_server import entry, live_server, spiffe_id


@pytest.fixture
async def live():
    async with live_server() as server:
        yield server


async def refused(awaitable):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    return caught.value.code().name, caught.value.details()


async def create(live, *messages, **over):
    request = entry_pb2.BatchCreateEntryRequest(entries=messages, **over)
    return (await live.entry.BatchCreateEntry(request, timeout=30)).results


async def update(live, *messages, **over):
    request = entry_pb2.BatchUpdateEntryRequest(entries=messages, **over)
    return (await live.entry.BatchUpdateEntry(request, timeout=30)).results


async def delete(live, *ids):
    return (await live.entry.BatchDeleteEntry(entry_pb2.BatchDeleteEntryRequest(ids=ids), timeout=30)).results


async def listed(live, **over):
    return await live.entry.ListEntries(entry_pb2.ListEntriesRequest(**over), timeout=30)


def codes(results):
    return [(result.status.code, result.status.message) for result in results]


async def test_an_entry_is_stored_as_it_was_asked_for(live):
    """The server sets id, revision and time of creation, and nothing else."""
    asked = entry(
        x509_svid_ttl=60,
        jwt_svid_ttl=70,
        admin=True,
        downstream=True,
        expires_at=2**40,
        dns_names=["a.example", "*.b.example"],
        hint="internal",
        revision_number=77,
        created_at=5,
        additional_attributes={"disable_x509_svid_prefetch": True, "jwt_svid_include_jti": True},
    )
    (result,) = await create(live, asked)
    assert codes([result]) == [(0, "OK")]
    got = await live.entry.GetEntry(entry_pb2.GetEntryRequest(id=result.entry.id))
    assert got == result.entry
    assert got.revision_number == 0
    assert abs(got.created_at - live.clock.now().timestamp()) < 10
    expected = entry_types.Entry(**asked, id=got.id)
    expected.revision_number, expected.created_at = 0, got.created_at
    assert got == expected


async def test_a_similar_entry_answers_with_the_existing_one(live):
    """spire_wire 5.3, 12.6: the controller-manager reads results[0].entry on AlreadyExists."""
    probe = entry(
        "/spire-controller-manager/unsupported-fields-test",
        "/spire-controller-manager/unsupported-fields-test",
        selectors=(("a", "1"),),
        x509_svid_ttl=60,
        jwt_svid_ttl=60,
        store_svid=True,
        hint="hint",
    )
    (first,) = await create(live, probe)
    (second,) = await create(live, {**probe, "id": "other-id", "hint": "different"})
    assert codes([second]) == [(6, "similar entry already exists")]
    assert second.entry == first.entry
    assert codes(await delete(live, first.entry.id)) == [(0, "OK")]


async def test_order_of_selectors_and_repeats_make_no_difference_to_similarity(live):
    await create(live, entry(selectors=(("a", "1"), ("b", "2"))))
    (second,) = await create(live, entry(selectors=(("b", "2"), ("a", "1"), ("a", "1"))))
    assert second.status.code == 6


async def test_a_batch_is_answered_item_by_item(live):
    """S27, R2: one bad item at any place leaves the others."""
    good = [entry(f"/w{number}") for number in range(3)]
    bad = [
        entry("/spire/server"),
        entry("/web", selectors=()),
        entry(x509_svid_ttl=-1),
        entry(path=""),
        {**entry(), "spiffe_id": spiffe_id("/x", "other.org")},
        {**entry(), "parent_id": spiffe_id("")},
        entry("/other", id="bad id"),
        entry("/other", dns_names=["-bad-"]),
        entry("/other", hint="h" * 1025),
        entry("/other", federates_with=["Not A Domain"]),
        {},
    ]
    results = await create(live, *bad[:5], good[0], *bad[5:], good[1], good[2])
    statuses = codes(results)
    assert [index for index, (code, _) in enumerate(statuses) if code == 0] == [5, 12, 13]
    assert [result.entry.spiffe_id.path for result in results if result.status.code == 0] == ["/w0", "/w1", "/w2"]
    for code, text in statuses:
        assert (code, text) == (0, "OK") or (code == 3 and text.startswith("failed to convert entry: "))
    assert not any(result.HasField("entry") for result in results if result.status.code)


async def test_the_second_of_two_equal_items_of_one_batch_finds_the_first(live):
    results = await create(live, entry("/a"), entry("/a"), entry("/b", id="one"), entry("/c", id="one"))
    assert [code for code, _ in codes(results)] == [0, 6, 0, 6]
    assert results[1].entry.id == results[0].entry.id


async def test_federation_with_an_unknown_trust_domain_is_refused(live):
    """N-C-24."""
    (result,) = await create(live, entry(federates_with=["fed.test"]))
    assert result.status.code == 5
    assert 'unable to find federated bundle "fed.test"' in result.status.message


async def test_a_batch_longer_than_one_transaction_is_stored_whole(live):
    results = await create(live, *(entry(f"/w{number}") for number in range(1100)), output_mask={"spiffe_id": True})
    assert {result.status.code for result in results} == {0}
    assert [result.entry.spiffe_id.path for result in results] == [f"/w{number}" for number in range(1100)]
    assert (await live.entry.CountEntries(entry_pb2.CountEntriesRequest())).count == 1100


async def test_an_update_without_mask_replaces_everything(live):
    (entry_id,) = await live.entries(entry(hint="old", dns_names=["a.example"], x509_svid_ttl=60))
    before = await live.entry.GetEntry(entry_pb2.GetEntryRequest(id=entry_id))
    (result,) = await update(live, entry("/new", id=entry_id))
    assert codes([result]) == [(0, "OK")]
    assert (result.entry.spiffe_id.path, result.entry.hint, list(result.entry.dns_names)) == ("/new", "", [])
    assert (result.entry.revision_number, result.entry.created_at) == (1, before.created_at)


async def test_an_update_with_mask_writes_only_what_it_names(live):
    """spire_wire section 3: zero values included."""
    (entry_id,) = await live.entries(entry(hint="old", x509_svid_ttl=60, admin=True))
    mask = {"hint": True, "admin": True}
    (result,) = await update(live, {"id": entry_id, "hint": "new", "x509_svid_ttl": 5}, input_mask=mask)
    assert (result.entry.hint, result.entry.admin, result.entry.x509_svid_ttl) == ("new", False, 60)
    assert result.entry.spiffe_id.path == "/web"


async def test_each_update_counts_the_revision_up_also_twice_in_one_batch(live):
    (entry_id,) = await live.entries(entry())
    mask = {"hint": True}
    results = await update(
        live, {"id": entry_id, "hint": "one"}, {"id": entry_id, "hint": "two"}, input_mask=mask, output_mask=mask
    )
    assert [result.entry.hint for result in results] == ["one", "two"]
    got = await live.entry.GetEntry(entry_pb2.GetEntryRequest(id=entry_id))
    assert (got.hint, got.revision_number) == ("two", 2)


async def test_an_update_that_cannot_be_says_why(live):
    first, second = await live.entries(entry("/a"), entry("/b"))
    results = await update(live, entry("/a", id=second), entry(id="missing"), entry(), entry("/spire/x", id=first))
    assert codes(results[1:3]) == [
        (5, "failed to update entry: entry not found"),
        (3, "failed to convert entry: missing ID"),
    ]
    assert (results[0].status.code, results[0].entry.id) == (6, first)
    assert results[3].status.code == 3
    assert (await live.entry.GetEntry(entry_pb2.GetEntryRequest(id=second))).revision_number == 0


async def test_an_update_with_the_same_content_is_not_similar_to_itself(live):
    (entry_id,) = await live.entries(entry())
    assert codes(await update(live, entry(id=entry_id))) == [(0, "OK")]


async def test_deleting_answers_for_each_id(live):
    (entry_id,) = await live.entries(entry())
    results = await delete(live, "", entry_id, "missing", entry_id, "bad\0id", "x" * 5000)
    assert [(result.id[:40], result.status.code, result.status.message) for result in results] == [
        ("", 3, "missing entry ID"),
        (entry_id, 0, "OK"),
        ("missing", 5, "entry not found"),
        (entry_id, 5, "entry not found"),
        ("bad\0id", 5, "entry not found"),
        ("x" * 40, 5, "entry not found"),
    ]


async def test_getting_names_what_is_missing(live):
    assert await refused(live.entry.GetEntry(entry_pb2.GetEntryRequest())) == ("INVALID_ARGUMENT", "missing ID")
    for entry_id in ("missing", "bad\0id", "é" * 1000):
        assert await refused(live.entry.GetEntry(entry_pb2.GetEntryRequest(id=entry_id))) == (
            "NOT_FOUND",
            "entry not found",
        )


async def test_every_subset_of_the_mask_gives_the_unmasked_values(live):
    """S22: the values of masked answers equal the unmasked ones; `admin` never shows up as `downstream`."""
    (entry_id,) = await live.entries(
        entry(admin=True, hint="h", dns_names=["a.example"], x509_svid_ttl=9, expires_at=2**33)
    )
    whole = await live.entry.GetEntry(entry_pb2.GetEntryRequest(id=entry_id))
    names = [bit.name for bit in entry_types.EntryMask.DESCRIPTOR.fields]
    for number in range(len(names) + 1):
        for flagged in ({names[number]} if number < len(names) else set(), set(names[:number])):
            mask = entry_types.EntryMask(**dict.fromkeys(flagged, True))
            shown = await live.entry.GetEntry(entry_pb2.GetEntryRequest(id=entry_id, output_mask=mask))
            expected = entry_types.Entry()
            expected.CopyFrom(whole)
            for name in set(names) - flagged:
                expected.ClearField(name)
            assert shown == expected


async def test_pages_cover_everything_once(live):
    """spire_features section 22: 200 a page until the token is empty."""
    ids = await live.entries(*(entry(f"/w{number}") for number in range(450)))
    seen, token, sizes = [], "", []
    while True:
        page = await listed(live, page_size=200, page_token=token)
        seen += [item.id for item in page.entries]
        sizes.append(len(page.entries))
        token = page.next_page_token
        if not token:
            break
    assert seen == ids
    assert sizes == [200, 200, 50]
    everything = await listed(live)
    assert [item.id for item in everything.entries] == ids
    assert everything.next_page_token == ""


async def test_a_page_holds_at_most_a_thousand(live):
    """S58: a huge page_size preallocates nothing and is capped."""
    await live.entries(*(entry(f"/w{number}") for number in range(1001)))
    page = await listed(live, page_size=2**31 - 1)
    assert len(page.entries) == 1000
    rest = await listed(live, page_size=2**31 - 1, page_token=page.next_page_token)
    assert (len(rest.entries), rest.next_page_token) == (1, "")


async def test_filters(live):
    await live.entries(
        entry("/a", "/p1", (("x", "1"),), hint="h1"),
        entry("/b", "/p1", (("x", "1"), ("x", "2")), downstream=True),
        entry("/c", "/p2", (("x", "3"),), hint="h2"),
    )

    async def paths(**wanted):
        found = {item.spiffe_id.path for item in (await listed(live, filter=wanted)).entries}
        count = await live.entry.CountEntries(entry_pb2.CountEntriesRequest(filter=wanted))
        assert count.count == len(found)
        return found

    def by(match, *values):
        return {"by_selectors": {"selectors": [{"type": "x", "value": v} for v in values], "match": match}}

    assert await paths() == {"/a", "/b", "/c"}
    assert await paths(by_spiffe_id=spiffe_id("/a")) == {"/a"}
    assert await paths(by_parent_id=spiffe_id("/p1")) == {"/a", "/b"}
    assert await paths(**by("MATCH_EXACT", "1")) == {"/a"}
    assert await paths(**by("MATCH_SUBSET", "1", "2")) == {"/a", "/b"}
    assert await paths(**by("MATCH_SUPERSET", "1")) == {"/a", "/b"}
    assert await paths(**by("MATCH_ANY", "2", "3")) == {"/b", "/c"}
    assert await paths(by_hint={"value": "h2"}) == {"/c"}
    assert await paths(by_hint={"value": ""}) == {"/a", "/b", "/c"}, "as in SPIRE"
    assert await paths(by_downstream={"value": True}) == {"/b"}
    assert await paths(by_downstream={"value": False}) == {"/a", "/b", "/c"}, "as in SPIRE, whose CLI always sends it"
    assert await paths(by_parent_id=spiffe_id("/p1"), by_hint={"value": "h1"}) == {"/a"}


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"by_spiffe_id": {}}, "malformed SPIFFE ID filter: "),
        ({"by_spiffe_id": spiffe_id("/a", "other.org")}, "malformed SPIFFE ID filter: "),
        ({"by_parent_id": spiffe_id("no-slash")}, "malformed parent ID filter: "),
        ({"by_selectors": {}}, "malformed selectors filter: empty selector set"),
        ({"by_selectors": {"selectors": [{"type": "", "value": "x"}]}}, "malformed selectors filter: "),
        ({"by_selectors": {"selectors": [{"type": "a", "value": "x"}], "match": 9}}, "filter.by_selectors.match: "),
        ({"by_federates_with": {}}, "malformed federates with filter: empty trust domain set"),
        ({"by_federates_with": {"trust_domains": ["Bad Name"]}}, "malformed federates with filter: "),
        ({"by_selectors": {"selectors": [{"type": "a", "value": "x"}] * 10_000}}, "malformed selectors filter: "),
    ],
)
async def test_a_malformed_filter_is_refused(live, wanted, words):
    """S24, S58: unknown enum numbers, empty sets, 10,000 selectors."""
    for awaitable in (
        live.entry.ListEntries(entry_pb2.ListEntriesRequest(filter=wanted)),
        live.entry.CountEntries(entry_pb2.CountEntriesRequest(filter=wanted)),
    ):
        code, text = await refused(awaitable)
        assert (code, text.startswith(words)) == ("INVALID_ARGUMENT", True), text


async def test_page_sizes_and_tokens_of_strangers_are_refused(live):
    """S58."""
    code, _ = await refused(live.entry.ListEntries(entry_pb2.ListEntriesRequest(page_size=-1)))
    assert code == "INVALID_ARGUMENT"
    for token in ("garbage", "-5", "1e3", "\uff19"):
        code, _ = await refused(live.entry.ListEntries(entry_pb2.ListEntriesRequest(page_size=1, page_token=token)))
        assert code == "INVALID_ARGUMENT"


async def test_entries_survive_a_restart_with_the_same_authority(tmp_path):
    """R1, R2: the same CA, the same agents, no lost entry."""
    short = tmp_path / "s"
    short.mkdir()
    async with live_server(short) as live:
        agent = await live.join()
        ids = await live.entries(entry("/a", agent.path), entry("/b", agent.path))
        authority = live.server.authorities.active.authority_id
        key, svid = agent.key, agent.own
    async with live_server(short) as live:
        assert live.server.authorities.active.authority_id == authority
        again = await live.agent_with(svid, key)
        got = await again.entry.GetAuthorizedEntries(entry_pb2.GetAuthorizedEntriesRequest())
        assert {item.id for item in got.entries} == set(ids)
        assert (await live.agent.CountAgents(agent_pb2.CountAgentsRequest())).count == 1


async def test_expired_entries_are_pruned_and_the_others_stay(live):
    """spire_features 15.1."""
    now = int(live.clock.now().timestamp())
    _, kept, endless = await live.entries(
        entry("/a", expires_at=now + 10), entry("/b", expires_at=now + 10_000), entry("/c")
    )
    live.clock.move(60)
    assert await live.server.registration.prune() == 1
    assert [item.id for item in (await listed(live)).entries] == [kept, endless]
    assert await live.server.registration.prune() == 0
