"""The Bundle service of a real server: bundles of other trust domains, in batches, lists and deletions."""

from __future__ import annotations

import json
from itertools import combinations

import pytest

from identity_server.services.federated_bundles import in_parts
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.types import bundle_pb2 as types_pb2
from tests.builders import make_bundle
from tests.doubles.bundle_calls import FED, KEY, batch, delete, entries, mask, proto, refused
from tests.doubles.live_server import entry, live_server

FIELDS = ("x509_authorities", "jwt_authorities", "wit_authorities", "refresh_hint", "sequence_number")
MASKS = [set(some) for size in range(len(FIELDS) + 1) for some in combinations(FIELDS, size)]


@pytest.fixture
async def live():
    async with live_server() as server:
        yield server


async def stored(live, name="fed.test"):
    return await live.bundle.GetFederatedBundle(bundle_pb2.GetFederatedBundleRequest(trust_domain=name), timeout=10)


def audited(live):
    path = live.server.settings.audit.file
    with open(path) as file:
        return [line for line in map(json.loads, file) if line["event"] == "bundle" and line["outcome"] == "begun"]


async def test_a_bundle_is_created_once_and_comes_back_as_it_was(live):
    first, second = await batch(live, "Create", proto(), proto())
    assert (first.status.code, first.status.message) == (0, "OK")
    assert first.bundle == proto()
    assert (second.status.code, second.status.message) == (6, "bundle already exists")
    assert not second.HasField("bundle")
    assert await stored(live) == proto()
    assert (await live.bundle.CountBundles(bundle_pb2.CountBundlesRequest())).count == 2


async def test_setting_stores_whether_or_not_there_was_one(live):
    (made,) = await batch(live, "Set", proto())
    (again,) = await batch(live, "Set", proto(refresh_hint=3, sequence_number=1))
    assert (made.status.code, again.status.code) == (0, 0)
    assert (await stored(live)) == proto(refresh_hint=3, sequence_number=1)


async def test_a_key_that_speaks_for_two_trust_domains_is_told_to_the_operator(live, caplog):
    """TDB-28: stored, for whose mistake it is cannot be known here; with our own domain as with another one's."""
    await batch(live, "Set", proto())
    assert "whoever holds it" not in caplog.text
    await batch(live, "Set", proto(trust_domain="other.test"))
    assert caplog.text.count("an authority's key of other.test is one of fed.test too: whoever holds it speaks") == 1
    own = (await live.bundle.GetBundle(bundle_pb2.GetBundleRequest())).x509_authorities
    await batch(live, "Set", types_pb2.Bundle(trust_domain="third.test", x509_authorities=own))
    assert f"an authority's key of third.test is one of {live.state.bundles.own.trust_domain} too" in caplog.text


async def test_a_key_that_speaks_for_many_is_told_once_a_bundle(live, caplog):
    """TDB-28, S27: a batch of 500 with one key is 500 lines at the most, not one for each pair."""
    await batch(live, "Set", *(proto(trust_domain=f"t{number}.test") for number in range(60)))
    assert "an authority's key of t9.test is one of t0.test, t1.test, t10.test and " in caplog.text
    assert caplog.text.count("whoever holds it") <= 60


async def test_updating_needs_one(live):
    (missing,) = await batch(live, "Update", proto())
    assert (missing.status.code, missing.status.message) == (5, "bundle not found")
    await batch(live, "Create", proto())
    (done,) = await batch(live, "Update", types_pb2.Bundle(trust_domain="fed.test"))
    assert done.status.code == 0
    assert await stored(live) == types_pb2.Bundle(trust_domain="fed.test"), "without a mask everything is written"


async def test_an_update_writes_what_the_input_mask_names_and_nothing_else(live):
    """S22, on input: each subset of fields; what the mask leaves out is not even looked at."""
    roots = make_bundle(trust_domain="x.test").x509_authorities
    other = proto(make_bundle(trust_domain="fed.test", x509_authorities=roots, sequence=9, refresh_hint=1))
    for bits in MASKS:
        await batch(live, "Set", proto())
        given = types_pb2.Bundle()
        given.CopyFrom(other)
        for name in set(FIELDS) - bits:
            if name == "refresh_hint":
                given.refresh_hint = -1
            elif name.endswith("authorities"):
                getattr(given, name).add()
        (result,) = await batch(live, "Update", given, input_mask=mask(*bits))
        assert result.status.message == "OK"
        after = await stored(live)
        for name in FIELDS:
            assert getattr(after, name) == getattr(other if name in bits else proto(), name), (bits, name)
        assert result.bundle == after


async def test_every_output_mask_shows_its_fields_and_the_trust_domain(live):
    """S22: every subset, on every call that shows bundles."""
    await batch(live, "Create", proto())
    own = await live.bundle.GetBundle(bundle_pb2.GetBundleRequest())
    for bits in MASKS:
        shown = mask(*bits)
        (put,) = await batch(live, "Set", proto(), output_mask=shown)
        (updated,) = await batch(live, "Update", proto(), output_mask=shown)
        got = await live.bundle.GetFederatedBundle(
            bundle_pb2.GetFederatedBundleRequest(trust_domain="fed.test", output_mask=shown)
        )
        (listed,) = (
            await live.bundle.ListFederatedBundles(bundle_pb2.ListFederatedBundlesRequest(output_mask=shown))
        ).bundles
        mine = await live.bundle.GetBundle(bundle_pb2.GetBundleRequest(output_mask=shown))
        for found, whole in (
            (put.bundle, proto()),
            (updated.bundle, proto()),
            (got, proto()),
            (listed, proto()),
            (mine, own),
        ):
            expected = types_pb2.Bundle()
            expected.CopyFrom(whole)
            for name in set(FIELDS) - bits:
                expected.ClearField(name)
            assert found == expected, bits


@pytest.mark.parametrize("name", ["Create", "Set", "Update"])
async def test_each_item_stands_alone(live, name):
    """S27, S31: a bad item at every position; the others are stored."""
    await batch(live, "Create", *(proto(make_bundle(trust_domain=f"u{n}.test")) for n in range(3)))
    bad = {
        "own": (proto(trust_domain="example.org"), "for the server's own trust domain is not allowed"),
        "own with scheme": (proto(trust_domain="spiffe://example.org"), "server's own trust domain is not allowed"),
        "none": (proto(trust_domain=""), "trust domain argument is not valid: "),
        "upper case": (proto(trust_domain="Fed.test"), "trust domain argument is not valid: "),
        "look-alike": (proto(trust_domain="f\u0435d.test"), "trust domain argument is not valid: "),
        "garbage": (
            types_pb2.Bundle(trust_domain="fed.test", x509_authorities=[{"asn1": b"no certificate"}]),
            "failed to convert bundle: x509_authorities[0]",
        ),
        "two certificates": (
            types_pb2.Bundle(trust_domain="fed.test", x509_authorities=[{"asn1": FED.x509_roots[0] * 2}]),
            "failed to convert bundle: x509_authorities[0]",
        ),
        "bad key": (
            types_pb2.Bundle(trust_domain="fed.test", jwt_authorities=[{"key_id": "j", "public_key": b"\0"}]),
            "failed to convert bundle: jwt_authorities[0]",
        ),
        "no kid": (
            types_pb2.Bundle(trust_domain="fed.test", jwt_authorities=[{"public_key": KEY}]),
            "failed to convert bundle: jwt_authorities[0]",
        ),
        "hint": (types_pb2.Bundle(trust_domain="fed.test", refresh_hint=-1), "failed to convert bundle: refresh_hint"),
    }
    for number, (message, words) in enumerate(bad.values()):
        prefix = f"n{number}-" if name == "Create" else "u"
        items = [proto(make_bundle(trust_domain=f"{prefix}{n}.test")) for n in range(2)]
        items.insert(number % 3, message)
        results = await batch(live, name, *items)
        for position, (item, result) in enumerate(zip(items, results, strict=True)):
            if position == number % 3:
                assert result.status.code == 3, result.status
                assert words in result.status.message, result.status
                assert not result.HasField("bundle")
            else:
                assert (result.status.code, result.bundle.trust_domain) == (0, item.trust_domain)
    assert (await refused(stored(live)))[0] == "NOT_FOUND"


async def test_others_cannot_taint_an_authority(live):
    tainted = proto()
    for name in ("x509_authorities", "jwt_authorities", "wit_authorities"):
        getattr(tainted, name)[0].tainted = True
    (result,) = await batch(live, "Set", tainted)
    assert result.bundle == proto()


@pytest.mark.parametrize("name", ["example.org", "spiffe://example.org", "", "No Name", "ex\u0430mple.org"])
async def test_a_federated_bundle_of_nobody_is_an_invalid_argument(live, name):
    """S31."""
    assert (await refused(stored(live, name)))[0] == "INVALID_ARGUMENT"


async def test_a_bundle_that_is_not_there_is_not_found(live):
    assert await refused(stored(live)) == ("NOT_FOUND", "bundle not found")


async def listed(live, **over):
    page = await live.bundle.ListFederatedBundles(bundle_pb2.ListFederatedBundlesRequest(**over))
    return [one.trust_domain for one in page.bundles], page.next_page_token


async def test_lists_are_paged_by_name_without_our_own(live):
    names = ["a.test", "b.test", "example.com", "example.org.test", "z.test"]
    await batch(live, "Create", *(proto(make_bundle(trust_domain=name)) for name in reversed(names)))
    assert await listed(live) == (names, "")
    first, token = await listed(live, page_size=2)
    second, after = await listed(live, page_size=2, page_token=token)
    third, end = await listed(live, page_size=2, page_token=after)
    assert (first + second + third, end) == (names, "")


async def test_page_sizes_and_tokens_of_strangers_are_refused(live):
    """S58: a huge page costs nothing, garbage and tokens of another list are refused."""
    await batch(live, "Create", *(proto(make_bundle(trust_domain=name)) for name in ("a.test", "b.test")))
    await live.entries(entry("/a"), entry("/b"))
    assert (await listed(live, page_size=2**31 - 1))[0] == ["a.test", "b.test"]
    others = await live.entry.ListEntries(entry_pb2.ListEntriesRequest(page_size=1))
    for token in ("garbage", "bundle:", "bundle:NO", "9", others.next_page_token, "\x00"):
        code, text = await refused(listed(live, page_size=1, page_token=token))
        assert (code, "page_token" in text) == ("INVALID_ARGUMENT", True)
    assert (await refused(listed(live, page_size=-1)))[0] == "INVALID_ARGUMENT"
    _, token = await listed(live, page_size=1)
    code, _ = await refused(live.entry.ListEntries(entry_pb2.ListEntriesRequest(page_size=1, page_token=token)))
    assert code == "INVALID_ARGUMENT"


async def federating(live):
    """Two entries, one of which federates with fed.test too."""
    await batch(live, "Create", proto(), proto(make_bundle(trust_domain="b.test")))
    return await live.entries(
        entry("/one", federates_with=["fed.test", "b.test"]), entry("/two", federates_with=["b.test"])
    )


async def test_restricted_a_bundle_in_use_stays(live):
    await federating(live)
    (result,) = await delete(live, "fed.test")
    assert result[:2] == ("fed.test", 9)
    assert "federated with 1 registration entries" in result[2]
    assert await stored(live) == proto()


async def test_dissociated_entries_stay_and_agents_notice(live):
    """The revision number goes up: by it agents know that the entry changed."""
    one, two = await federating(live)
    assert await delete(live, "fed.test", mode="DISSOCIATE") == [("fed.test", 0, "OK")]
    found = {item.id: item for item in await entries(live)}
    assert (list(found[one].federates_with), found[one].revision_number) == (["b.test"], 1)
    assert (list(found[two].federates_with), found[two].revision_number) == (["b.test"], 0)
    assert (await refused(stored(live)))[0] == "NOT_FOUND"


async def test_deleted_the_entries_go_too(live):
    _, two = await federating(live)
    assert await delete(live, "fed.test", mode="DELETE") == [("fed.test", 0, "OK")]
    assert [item.id for item in await entries(live)] == [two]


async def test_more_entries_than_one_step_takes_are_all_seen_to(live):
    await batch(live, "Create", proto())
    await live.entries(*(entry(f"/{number}", federates_with=["fed.test"]) for number in range(1203)))
    assert (await delete(live, "fed.test"))[0][1] == 9
    assert (await delete(live, "fed.test", mode="DISSOCIATE"))[0][1] == 0
    assert [list(item.federates_with) for item in await entries(live)] == [[]] * 1203


async def test_each_trust_domain_is_answered_by_its_name(live):
    await batch(live, "Create", proto())
    results = await delete(live, "example.org", "fed.test", "gone.test", "", "fed.test", "BAD")
    assert [(name, code) for name, code, _ in results] == [
        ("example.org", 3),
        ("fed.test", 0),
        ("gone.test", 5),
        ("", 3),
        ("fed.test", 5),
        ("BAD", 3),
    ]
    assert results[0][2] == "removing the bundle for the server trust domain is not allowed"
    assert (await live.bundle.GetBundle(bundle_pb2.GetBundleRequest())).x509_authorities


@pytest.mark.parametrize("mode", ["RESTRICT", "DISSOCIATE", "DELETE"])
async def test_bundles_that_nobody_uses_are_deleted_in_one_write(live, mode):
    """S27: a batch of 500 that waits for the disk 500 times misses its deadline on a busy machine."""
    names = [f"t{number}.test" for number in range(120)]
    await batch(live, "Set", *(proto(trust_domain=name) for name in names))
    before = live.state.position.revision
    assert await delete(live, *names, mode=mode) == [(name, 0, "OK") for name in names]
    assert live.state.position.revision - before == 1


async def test_a_batch_that_changes_many_entries_takes_as_many_writes_as_it_needs(live):
    """R34: other writers get their turn. Two trust domains with 400 entries each do not go in one write."""
    names = ["a.test", "b.test", "c.test", "fed.test"]
    await batch(live, "Set", *(proto(trust_domain=name) for name in names))
    for name in ("a.test", "b.test"):
        await live.entries(*(entry(f"/{name}/{number}", federates_with=[name]) for number in range(400)))
    before = live.state.position.revision
    results = await delete(live, "a.test", "gone.test", "b.test", "c.test", "a.test", mode="DISSOCIATE")
    assert [code for _, code, _ in results] == [0, 5, 0, 0, 5]
    assert live.state.position.revision - before == 2
    assert [list(item.federates_with) for item in await entries(live)] == [[]] * 800


def test_parts_are_bounded_by_bundles_and_by_entries_and_keep_the_order():
    names = [TrustDomain(f"t{number}.test") for number in range(1201)]
    assert [len(part) for part in in_parts(names, {})] == [500, 500, 201]
    assert in_parts([], {}) == []
    writes = {names[0]: 9000, names[2]: 499, names[3]: 1, names[4]: 1}
    parts = in_parts(names[:6], writes)
    assert parts == [names[:1], names[1:4], names[4:6]]


async def test_an_unknown_mode_refuses_the_call(live):
    await batch(live, "Create", proto())
    request = bundle_pb2.BatchDeleteFederatedBundleRequest(trust_domains=["fed.test"], mode=7)
    code, text = await refused(live.bundle.BatchDeleteFederatedBundle(request))
    assert (code, text.startswith("failed to parse deletion mode")) == ("INVALID_ARGUMENT", True)
    assert await stored(live) == proto()


async def test_every_write_is_audited(live):
    await batch(live, "Create", proto())
    await batch(live, "Set", proto())
    await batch(live, "Update", proto())
    await delete(live, "fed.test", mode="DISSOCIATE")
    await live.bundle.AppendBundle(bundle_pb2.AppendBundleRequest(jwt_authorities=[{"public_key": KEY, "key_id": "j"}]))
    lines = audited(live)
    assert [(line["change"], line["trust_domain"]) for line in lines] == [
        ("create", "fed.test"),
        ("set", "fed.test"),
        ("update", "fed.test"),
        ("delete", "fed.test"),
        ("append", "example.org"),
    ]
    assert lines[3]["mode"] == "dissociate"
    assert lines[4]["authority_ids"] == "j"
    assert all("local" in line["actor"] for line in lines)
