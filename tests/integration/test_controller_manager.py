"""The calls of spire-controller-manager, in its order and with its expectations (spire_features section 22)."""

from __future__ import annotations

import uuid

from spiffe_core.crypto.csr import build_csr
from spiffe_core.crypto.keys import KeyKind, generate
from spiffe_core.spiffe_id import SpiffeId
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.server.svid.v1 import svid_pb2
from spiffe_core.wire._gen.spire.api.server.trustdomain.v1 import trustdomain_pb2
from tests.doubles.live_server import entry, live_server

PROBE = "/spire-controller-manager/unsupported-fields-test"


async def listed(live):
    """Pages of 200 until the token is empty."""
    found, token = [], ""
    while True:
        page = await live.entry.ListEntries(entry_pb2.ListEntriesRequest(page_size=200, page_token=token))
        found += page.entries
        token = page.next_page_token
        if not token:
            return found


async def test_its_whole_round_works():
    async with live_server() as live:
        probe = entry(PROBE, PROBE, (("a", "1"),), x509_svid_ttl=60, jwt_svid_ttl=60, store_svid=True, hint="hint")
        create = entry_pb2.BatchCreateEntryRequest(entries=[probe])
        (first,) = (await live.entry.BatchCreateEntry(create)).results
        (second,) = (await live.entry.BatchCreateEntry(create)).results
        assert (first.status.code, second.status.code) == (0, 6)
        assert second.entry == first.entry, "the probe reads the entry even of a second create"
        assert (second.entry.hint, second.entry.jwt_svid_ttl, second.entry.store_svid) == ("hint", 60, True)
        gone = await live.entry.BatchDeleteEntry(entry_pb2.BatchDeleteEntryRequest(ids=[second.entry.id]))
        assert [one.status.message for one in gone.results] == ["OK"]

        wanted = [entry(f"/pod/{number}", "/node", id=f"cluster.{uuid.uuid4()}") for number in range(250)]
        for start in range(0, len(wanted), 50):
            chunk = entry_pb2.BatchCreateEntryRequest(entries=wanted[start : start + 50])
            assert {one.status.code for one in (await live.entry.BatchCreateEntry(chunk)).results} == {0}
        found = await listed(live)
        assert [one.id for one in found] == [one["id"] for one in wanted]
        found[0].dns_names.append("pod.example.org")
        (updated,) = (await live.entry.BatchUpdateEntry(entry_pb2.BatchUpdateEntryRequest(entries=found[:1]))).results
        assert (updated.status.code, updated.entry.revision_number) == (0, 1)

        relationships = trustdomain_pb2.BatchCreateFederationRelationshipRequest()
        made = relationships.federation_relationships.add(
            trust_domain="fed.test", bundle_endpoint_url="https://fed.test/"
        )
        made.https_web.SetInParent()
        (result,) = (await live.trust_domain.BatchCreateFederationRelationship(relationships)).results
        assert result.status.code == 0
        page = await live.trust_domain.ListFederationRelationships(
            trustdomain_pb2.ListFederationRelationshipsRequest(page_size=200)
        )
        assert [one.HasField("https_web") for one in page.federation_relationships] == [True]
        update = trustdomain_pb2.BatchUpdateFederationRelationshipRequest(
            federation_relationships=page.federation_relationships
        )
        (result,) = (await live.trust_domain.BatchUpdateFederationRelationship(update)).results
        assert result.status.code == 0
        delete = trustdomain_pb2.BatchDeleteFederationRelationshipRequest(trust_domains=["fed.test"])
        (result,) = (await live.trust_domain.BatchDeleteFederationRelationship(delete)).results
        assert result.status.code == 0

        who = SpiffeId.parse("spiffe://example.org/spire-controller-manager-webhook")
        csr = build_csr(generate(KeyKind.EC_P256), spiffe_id=who)
        minted = await live.svid.MintX509SVID(svid_pb2.MintX509SVIDRequest(csr=csr, ttl=3600))
        assert (minted.svid.id.trust_domain, minted.svid.id.path) == ("example.org", who.path)
        assert (await live.bundle.GetBundle(bundle_pb2.GetBundleRequest())).x509_authorities
        ids = [one.id for one in found]
        for start in range(0, len(ids), 200):
            chunk = entry_pb2.BatchDeleteEntryRequest(ids=ids[start : start + 200])
            assert {one.status.code for one in (await live.entry.BatchDeleteEntry(chunk)).results} == {0}
        assert await listed(live) == []
