"""The Bundle service of a real server: our own bundle, those of other trust domains, and what agents get of them."""

from __future__ import annotations

import json
from itertools import combinations

import grpc.aio
import pytest

from spiffe_core.bundle import JwtAuthority, TrustBundle, WitAuthority
from spiffe_core.crypto.keys import KeyKind, generate, spki_der
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.types import bundle_pb2 as types_pb2
from spiffe_core.wire.convert import bundle_to_proto
from tests.builders import make_bundle
from tests.doubles.live_agent import OWN, agent_folder, live_agent, pem_bundle, token_file
from tests.doubles.live_server import entry, live_server, sign, wanted
from workload_api.client import Redacted

KEY, OTHER_KEY = (spki_der(generate(KeyKind.EC_P256).public_key()) for _ in range(2))
FED = make_bundle(
    trust_domain="fed.test",
    sequence=7,
    refresh_hint=60,
    jwt_authorities=(JwtAuthority("j", KEY, expires_at=9),),
    wit_authorities=(WitAuthority("w", KEY),),
)
FIELDS = ("x509_authorities", "jwt_authorities", "wit_authorities", "refresh_hint", "sequence_number")
MASKS = [set(some) for size in range(len(FIELDS) + 1) for some in combinations(FIELDS, size)]


@pytest.fixture
async def live():
    async with live_server() as server:
        yield server


def proto(bundle=FED, **over):
    message = bundle_to_proto(bundle)
    for name, value in over.items():
        setattr(message, name, value)
    return message


def mask(*names):
    return types_pb2.BundleMask(**dict.fromkeys(names, True))


async def refused(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code().name, caught.value.details()


async def batch(live, name, *bundles, **over):
    request = getattr(bundle_pb2, f"Batch{name}FederatedBundleRequest")(bundle=bundles, **over)
    return list((await getattr(live.bundle, f"Batch{name}FederatedBundle")(request, timeout=10)).results)


async def stored(live, name="fed.test"):
    return await live.bundle.GetFederatedBundle(bundle_pb2.GetFederatedBundleRequest(trust_domain=name), timeout=10)


async def delete(live, *names, mode="RESTRICT"):
    request = bundle_pb2.BatchDeleteFederatedBundleRequest(trust_domains=names, mode=mode)
    results = (await live.bundle.BatchDeleteFederatedBundle(request, timeout=20)).results
    return [(one.trust_domain, one.status.code, one.status.message) for one in results]


async def entries(live):
    return list((await live.entry.ListEntries(entry_pb2.ListEntriesRequest(), timeout=10)).entries)


def audited(live):
    path = live.server.settings.audit.file
    with open(path) as file:
        return [line for line in map(json.loads, file) if line["event"] == "bundle" and line["outcome"] == "begun"]


# --- other trust domains ----------------------------------------------------------------------------------------------


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


# --- deleting ---------------------------------------------------------------------------------------------------------


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


async def test_an_unknown_mode_refuses_the_call(live):
    await batch(live, "Create", proto())
    request = bundle_pb2.BatchDeleteFederatedBundleRequest(trust_domains=["fed.test"], mode=7)
    code, text = await refused(live.bundle.BatchDeleteFederatedBundle(request))
    assert (code, text.startswith("failed to parse deletion mode")) == ("INVALID_ARGUMENT", True)
    assert await stored(live) == proto()


# --- our own bundle ---------------------------------------------------------------------------------------------------


async def test_authorities_are_appended_once(live):
    before = await live.bundle.GetBundle(bundle_pb2.GetBundleRequest())
    request = bundle_pb2.AppendBundleRequest(
        x509_authorities=[{"asn1": FED.x509_roots[0], "tainted": True}],
        jwt_authorities=[{"public_key": KEY, "key_id": "theirs", "expires_at": 5, "tainted": True}],
        wit_authorities=[{"public_key": KEY, "key_id": "passed over"}],
    )
    for _ in range(2):
        after = await live.bundle.AppendBundle(request)
        assert after.sequence_number == before.sequence_number + 1
        assert after.x509_authorities[:-1] == before.x509_authorities
        assert after.x509_authorities[-1] == types_pb2.X509Certificate(asn1=FED.x509_roots[0])
        assert list(after.jwt_authorities) == [
            *before.jwt_authorities,
            types_pb2.JWTKey(public_key=KEY, key_id="theirs", expires_at=5),
        ]
        assert after.wit_authorities == before.wit_authorities
    assert await live.bundle.GetBundle(bundle_pb2.GetBundleRequest()) == after
    masked = await live.bundle.AppendBundle(
        bundle_pb2.AppendBundleRequest(jwt_authorities=request.jwt_authorities, output_mask=mask("sequence_number"))
    )
    assert masked == types_pb2.Bundle(trust_domain="example.org", sequence_number=after.sequence_number)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "no authorities to append"),
        ({"wit_authorities": [{"public_key": KEY, "key_id": "w"}]}, "no authorities to append"),
        ({"x509_authorities": [{"asn1": b"junk"}]}, "failed to convert X.509 authority: "),
        ({"x509_authorities": [{}]}, "failed to convert X.509 authority: "),
        ({"jwt_authorities": [{"key_id": "j", "public_key": b"junk"}]}, "failed to convert JWT authority: "),
        ({"jwt_authorities": [{"public_key": KEY}]}, "failed to convert JWT authority: "),
    ],
)
async def test_what_is_no_authority_is_not_appended(live, fields, words):
    before = await live.bundle.GetBundle(bundle_pb2.GetBundleRequest())
    code, text = await refused(live.bundle.AppendBundle(bundle_pb2.AppendBundleRequest(**fields)))
    assert (code, text.startswith(words)) == ("INVALID_ARGUMENT", True), text
    assert await live.bundle.GetBundle(bundle_pb2.GetBundleRequest()) == before


async def test_a_key_id_that_is_taken_keeps_its_key(live):
    first = bundle_pb2.AppendBundleRequest(jwt_authorities=[{"public_key": KEY, "key_id": "j"}])
    second = bundle_pb2.AppendBundleRequest(jwt_authorities=[{"public_key": OTHER_KEY, "key_id": "j"}])
    after = await live.bundle.AppendBundle(first)
    assert (await refused(live.bundle.AppendBundle(second)))[0] == "ALREADY_EXISTS"
    assert await live.bundle.GetBundle(bundle_pb2.GetBundleRequest()) == after


async def downstream(live):
    """A downstream server: somebody with the SVID of an entry that says so."""
    agent = await live.join()
    (entry_id,) = await live.entries(entry("/below", agent.path, downstream=True))
    key = generate(KeyKind.EC_P256)
    (result,) = await sign(agent, wanted(entry_id, key))
    return await live.agent_with(result.svid, key)


async def test_a_downstream_server_publishes_its_jwt_key(live):
    server = await downstream(live)
    key = types_pb2.JWTKey(public_key=KEY, key_id="below", expires_at=2_000_000_000)
    request = bundle_pb2.PublishJWTAuthorityRequest(jwt_authority=key)
    for _ in range(2):
        keys = (await server.bundle.PublishJWTAuthority(request, timeout=10)).jwt_authorities
        own = await live.bundle.GetBundle(bundle_pb2.GetBundleRequest())
        assert keys == own.jwt_authorities
        assert [one for one in keys if one.key_id == "below"] == [key]
    thief = bundle_pb2.PublishJWTAuthorityRequest(jwt_authority={"public_key": OTHER_KEY, "key_id": "below"})
    assert (await refused(server.bundle.PublishJWTAuthority(thief, timeout=10)))[0] == "ALREADY_EXISTS"


async def test_what_is_no_jwt_key_is_not_published(live):
    server = await downstream(live)
    for message, words in (
        (bundle_pb2.PublishJWTAuthorityRequest(), "missing JWT authority"),
        (bundle_pb2.PublishJWTAuthorityRequest(jwt_authority={}), "invalid JWT authority: "),
        (bundle_pb2.PublishJWTAuthorityRequest(jwt_authority={"public_key": KEY}), "invalid JWT authority: "),
    ):
        code, text = await refused(server.bundle.PublishJWTAuthority(message, timeout=10))
        assert (code, text.startswith(words)) == ("INVALID_ARGUMENT", True)
    code, _ = await refused(server.bundle.PublishWITAuthority(bundle_pb2.PublishWITAuthorityRequest(), timeout=10))
    assert code == "UNIMPLEMENTED"


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


# --- what it is for ---------------------------------------------------------------------------------------------------


async def test_an_entry_may_federate_only_with_trust_domains_whose_bundle_is_stored(live):
    """N-C-24, S31: on create and on update."""
    (entry_id,) = await live.entries(entry())
    wanted_entry = entry(id=entry_id, federates_with=["fed.test"])

    async def update():
        request = entry_pb2.BatchUpdateEntryRequest(entries=[wanted_entry])
        (result,) = (await live.entry.BatchUpdateEntry(request)).results
        return result.status

    status = await update()
    assert (status.code, 'unable to find federated bundle "fed.test"' in status.message) == (5, True)
    await batch(live, "Set", proto())
    assert (await update()).code == 0
    assert [list(item.federates_with) for item in await entries(live)] == [["fed.test"]]


async def test_a_foreign_certificate_opens_no_door_even_when_its_bundle_is_stored(live):
    """S1, S31, spire_wire section 1.1: federation is for workloads; only our own trust domain connects as somebody."""
    from spiffe_core.crypto.keys import to_pkcs8
    from spiffe_core.wire.tls import TlsIdentity
    from tests.authority import SpiffeTestCA

    ca = SpiffeTestCA("fed.test")
    await batch(live, "Set", proto(ca.bundle()))
    svid = ca.issue("spiffe://fed.test/spire/agent/join_token/x")
    stranger = await live.dial(TlsIdentity(svid.chain, to_pkcs8(svid.private_key)))
    code, _ = await refused(stranger.bundle.GetBundle(bundle_pb2.GetBundleRequest(), timeout=5))
    assert code == "UNAVAILABLE"


async def test_a_workload_gets_the_bundles_its_entries_federate_with(live):
    """End to end: set, changed and gone, on an open stream of a workload of a real agent."""
    await batch(live, "Set", proto(), proto(make_bundle(trust_domain="unused.test")))
    async with agent_folder() as folder:
        token = token_file(folder, await live.token())
        settings = {"trust_bundle_path": str(pem_bundle(live, folder)), "join_token_file": str(token)}
        async with live_agent(folder, live.server.address, **settings) as agent:
            await agent.until_joined()
            await live.entries(entry("/web", agent.path, OWN, federates_with=["fed.test"]))
            agent.sync_now()
            seen = []
            async for context in agent.client.watch_x509():
                if isinstance(context, Redacted):
                    continue
                roots = {str(name): bundle.x509_roots for name, bundle in context.bundles.federated.items()}
                seen.append(roots)
                if len(seen) == 1:
                    changed = TrustBundle(TrustDomain("fed.test"), FED.x509_authorities).with_x509_authority(
                        make_bundle(trust_domain="x.test").x509_roots[0]
                    )
                    await batch(live, "Set", proto(changed))
                elif len(seen) == 2:
                    await delete(live, "fed.test", mode="DISSOCIATE")
                else:
                    break
                agent.sync_now()
    assert seen == [{"fed.test": FED.x509_roots}, {"fed.test": changed.x509_roots}, {}]
