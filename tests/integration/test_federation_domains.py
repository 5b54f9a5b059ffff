"""Two trust domains with real servers, endpoints and TLS between them: they invite, accept, refresh and part."""

from __future__ import annotations

import grpc.aio
import pytest

from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.wire._gen.muniment.server.federation.v1 import federation_pb2
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire._gen.spire.api.server.localauthority.v1 import localauthority_pb2 as local
from spiffe_core.wire._gen.spire.api.server.trustdomain.v1 import trustdomain_pb2
from spiffe_core.wire.convert import bundle_to_proto
from tests.doubles.federated import accepted, create, domain, invited, refreshed, related, settled, state_of, until

A, B = TrustDomain("a.test"), TrustDomain("b.test")


@pytest.fixture
async def pair():
    async with domain("a.test") as a, domain("b.test") as b:
        yield a, b


async def test_one_line_in_each_direction_federates_two_domains(pair):
    """Issue 6 item 4: an invitation, its acceptance, and the line for the way back; both sides hold the other's keys."""
    a, b = pair
    answer = await accepted(b, await invited(a))
    assert b.state.bundles.get(A).x509_roots == a.state.bundles.own.x509_roots
    await accepted(a, answer.invitation)
    assert a.state.bundles.get(B).x509_roots == b.state.bundles.own.x509_roots
    await refreshed(a, "b.test")
    state = await state_of(a, "b.test")
    assert (state.error, state.failures, state.has_bundle) == ("", 0, True)
    assert state.sequence == b.state.bundles.own.sequence
    assert state.next_at > state.fetched_at > 0
    assert state.relationship.https_spiffe.endpoint_spiffe_id == "spiffe://b.test/spire/server"


async def test_a_new_authority_of_the_peer_arrives(pair):
    """FED-13, FED-42, FED-43: the first fetch is verified with the bundle from out of band, later ones with the newest."""
    a, b = pair
    await create(a, related(b, trust_domain_bundle=bundle_to_proto(b.state.bundles.own)))
    await b.local.PrepareX509Authority(local.PrepareX509AuthorityRequest(), timeout=10)
    own = b.state.bundles.own
    await settled(b)
    await refreshed(a, "b.test")
    assert a.state.bundles.get(B).x509_roots == own.x509_roots
    assert len(own.x509_roots) == 2


async def test_a_relationship_takes_effect_at_once_and_ends_at_once(pair):
    """FED-46, FED-35: creating one fetches without being asked, deleting it ends the polling; the bundle is deleted apart."""
    a, b = pair
    await create(a, related(b, trust_domain_bundle=bundle_to_proto(b.state.bundles.own)))
    await b.local.PrepareX509Authority(local.PrepareX509AuthorityRequest(), timeout=10)
    await settled(b)
    await create_again(a, related(b, bundle_endpoint_url=b.url + "?again"))
    await until(a, lambda state: len(state.bundles.get(B).x509_roots) == 2)
    request = trustdomain_pb2.BatchDeleteFederationRelationshipRequest(trust_domains=["b.test"])
    await a.trust_domain.BatchDeleteFederationRelationship(request, timeout=10)
    assert a.server.refresh.report() == []
    assert a.state.bundles.get(B) is not None, "as SPIRE; `bundle delete` ends the trust"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await refreshed(a, "b.test")
    assert caught.value.code().name == "NOT_FOUND"


async def create_again(live, relationship):
    request = trustdomain_pb2.BatchUpdateFederationRelationshipRequest(federation_relationships=[relationship])
    await live.trust_domain.BatchUpdateFederationRelationship(request, timeout=10)


async def refusal(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code().name, caught.value.details()


async def test_an_endpoint_that_is_somebody_else_is_refused_and_the_last_bundle_stays(pair):
    """S62, N-F-06, N-F-07, FED-42, FED-47: the wrong SPIFFE ID, the wrong trust domain's chain; no other profile is tried."""
    a, b = pair
    stored = bundle_to_proto(b.state.bundles.own)
    wrong = {"https_spiffe": {"endpoint_spiffe_id": "spiffe://b.test/other"}}
    await create(a, related(b, trust_domain_bundle=stored, **wrong))
    code, text = await refusal(refreshed(a, "b.test"))
    assert (code, "expected spiffe://b.test/other" in text) == ("UNAVAILABLE", True)
    async with domain("c.test", polls=False) as c:
        await create_again(a, related(b, bundle_endpoint_url=c.url))  # c's endpoint, for b's bundle
        code, text = await refusal(refreshed(a, "b.test"))
        assert (code, "TLS failed" in text) == ("UNAVAILABLE", True), text
    assert a.state.bundles.get(B).x509_roots == b.state.bundles.own.x509_roots
    state = await state_of(a, "b.test")
    assert state.failures >= 1
    assert "TLS failed" in state.error


async def test_an_endpoint_of_another_trust_domain_needs_that_domains_bundle(pair):
    """N-F-04, FED-39, FED-44: not self-serving; refused with what to do, and well as soon as the bundle is there."""
    a, b = pair
    await create(a, related(b, trust_domain_bundle=bundle_to_proto(b.state.bundles.own)))
    elsewhere = related(b)
    elsewhere.trust_domain = "hosted.test"
    async with domain("a2.test") as fresh:
        await create(fresh, elsewhere)
        code, text = await refusal(refreshed(fresh, "hosted.test"))
        assert (code, "no bundle of b.test is stored" in text) == ("UNAVAILABLE", True)
        await create(fresh, related(b, trust_domain_bundle=bundle_to_proto(b.state.bundles.own)))
        await refreshed(fresh, "hosted.test")
        hosted = fresh.state.bundles.get(TrustDomain("hosted.test"))
        assert hosted.trust_domain.name == "hosted.test", "TDB-01: filed under the name it was asked for"


async def test_loopback_is_refused_unless_it_is_listed(pair):
    """S60: the setting is named, and nothing of the endpoint's answer is told."""
    _, b = pair
    async with domain("strict.test", federation={"bundle_client": {}}) as strict:
        await create(strict, related(b, trust_domain_bundle=bundle_to_proto(b.state.bundles.own)))
        code, text = await refusal(refreshed(strict, "b.test"))
        assert code == "UNAVAILABLE"
        assert "127.0.0.1 is a loopback address" in text
        assert "federation.bundle_client.allowed_networks" in text


async def test_an_invitation_of_which_the_keys_changed_is_refused(pair):
    """Issue 6 item 4: a key the line does not name; shown keys that are not those at the endpoint."""
    a, b = pair
    line = await invited(a)
    offer = await b.states.Preview(federation_pb2.PreviewRequest(invitation=line), timeout=20)
    assert [key.use for key in offer.keys] == ["x509-svid", "jwt-svid"]
    wrong = federation_pb2.AcceptRequest(invitation=line, fingerprints=[offer.keys[0].fingerprint])
    assert (await refusal(b.states.Accept(wrong, timeout=20)))[0] == "FAILED_PRECONDITION"
    await a.local.PrepareX509Authority(local.PrepareX509AuthorityRequest(), timeout=10)
    await settled(a)
    code, text = await refusal(b.states.Preview(federation_pb2.PreviewRequest(invitation=line), timeout=20))
    assert (code, "has a key the invitation does not name" in text) == ("UNAVAILABLE", True)
    assert b.state.bundles.get(A) is None
    assert not b.state.relationships


async def test_what_is_written_in_the_configuration_is_fetched(pair):
    """spire_features section 4.3: `federates_with` with SPIRE's key names; it comes before a stored relationship."""
    _, b = pair
    table = {
        "bundle_endpoint_url": b.url,
        "bundle_endpoint_profile": {"https_spiffe": {"endpoint_spiffe_id": b.own_id}},
    }
    section = {"federates_with": {"b.test": table}}
    async with domain(
        "static.test", federation={"bundle_client": {"allowed_networks": ["127.0.0.1"]}, **section}
    ) as live:
        await create(live, related(b, bundle_endpoint_url="https://nowhere.test/"))
        request = bundle_pb2.BatchSetFederatedBundleRequest(bundle=[bundle_to_proto(b.state.bundles.own)])
        await live.bundle.BatchSetFederatedBundle(request, timeout=10)
        await refreshed(live, "b.test")
        state = await state_of(live, "b.test")
        assert (state.configured, state.error) == (True, "")
        assert state.relationship.bundle_endpoint_url == b.url
