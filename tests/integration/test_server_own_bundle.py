"""What is added to the own bundle, and what foreign bundles do for workloads and for nobody else (spire_wire section 5.3)."""

from __future__ import annotations

import pytest

from spiffe_core.bundle import TrustBundle
from spiffe_core.crypto.keys import KeyKind, generate
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.types import bundle_pb2 as types_pb2
from tests.builders import make_bundle
from tests.doubles.bundle_calls import FED, KEY, OTHER_KEY, batch, delete, entries, mask, proto, refused
from tests.doubles.live_agent import OWN, agent_folder, live_agent, pem_bundle, token_file
from tests.doubles.live_server import entry, live_server, sign, wanted
from workload_api.client import Redacted


@pytest.fixture
async def live():
    async with live_server() as server:
        yield server


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
