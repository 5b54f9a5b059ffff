"""Requests that a real server must not sign as they stand: N-C-10, N-C-17, N-C-19 of the catalogue of negative cases."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from spiffe_core.crypto.csr import build_csr
from spiffe_core.crypto.keys import KeyKind, generate, spki_der, to_pkcs8
from spiffe_core.spiffe_id import SpiffeId
from spiffe_core.wire._gen.spire.api.server.svid.v1 import svid_pb2
from spiffe_core.wire.tls import TlsIdentity
from tests.doubles.live_server import TD, entry, live_server, sign, wanted

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "spiffe_ids.json").read_text())
KEY = generate(KeyKind.EC_P256)


BAD_CA_NAMES = (
    ("spiffe://example.org/path",),
    ("spiffe://example.org/",),
    ("spiffe://elsewhere.org",),
    ("spiffe://example.org.evil.test",),
    ("spiffe://EXAMPLE.org",),
    ("https://example.org",),
    ("spiffe://example.org", "spiffe://example.org/path"),
    ("spiffe://example.org", "spiffe://elsewhere.org"),
)


def request_for(*uris):
    """A CSR that claims `uris`, whatever they are; None for what no certificate can carry."""
    try:
        builder = x509.CertificateSigningRequestBuilder(x509.Name([]))
        if uris:
            names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
            builder = builder.add_extension(names, critical=True)
        return builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.DER)
    except ValueError:
        return None


async def test_a_malformed_id_in_a_request_is_never_minted():
    """N-C-10: every malformed SPIFFE ID of the catalogue (N-ID) that a certificate can carry at all."""
    asked = 0
    async with live_server() as live:
        for vector in VECTORS:
            for uri in vector["inputs"]:
                csr = request_for(uri)
                if csr is None:
                    continue
                asked += 1
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await live.svid.MintX509SVID(svid_pb2.MintX509SVIDRequest(csr=csr), timeout=10)
                assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT, (vector["id"], uri)
    assert asked > 50


async def test_a_replayed_request_gives_another_agent_its_own_entry_at_most():
    """N-C-17: the same CSR, replayed by B, is signed for B's own entry or not at all, and always for the key it proves."""
    async with live_server() as live:
        first, second = await live.join(), await live.join()
        mine, theirs = await live.entries(entry("/a", parent=first.path), entry("/b", parent=second.path))
        csr = build_csr(KEY, spiffe_id=SpiffeId(TD, "/a"))
        (good,) = await sign(first, wanted(mine, csr=csr))
        (refused,) = await sign(second, wanted(mine, csr=csr))
        (own,) = await sign(second, wanted(theirs, csr=csr))
        assert (good.status.code, good.svid.id.path) == (0, "/a")
        assert refused.status.code == grpc.StatusCode.NOT_FOUND.value[0]
        assert not refused.svid.cert_chain
        assert (own.status.code, own.svid.id.path) == (0, "/b")
        assert spki_der(x509.load_der_x509_certificate(own.svid.cert_chain[0]).public_key()) == spki_der(
            KEY.public_key()
        )


async def test_a_downstream_ca_needs_the_entitlement():
    """N-C-19, first half: an agent that is no downstream gets no CA, whatever its request claims."""
    async with live_server() as live:
        agent = await live.join()
        await live.entries(entry("/w", parent=agent.path))
        for uri in ("spiffe://example.org", "spiffe://example.org/path", "spiffe://elsewhere.org"):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await agent.svid.NewDownstreamX509CA(
                    svid_pb2.NewDownstreamX509CARequest(csr=request_for(uri)), timeout=10
                )
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_downstream_ca_is_asked_for_under_the_trust_domains_own_id():
    """N-C-19, second half, X509-09: a path, a foreign domain or a second name is refused, and no CA carries one.

    A request with the trust domain's ID, as SPIRE's server sends it, and one without any get the same certificate.
    """
    async with live_server() as live:
        agent = await live.join()
        (entry_id,) = await live.entries(entry("/nested", parent=agent.path, downstream=True))
        (answer,) = await sign(agent, wanted(entry_id, KEY))
        nested = await live.dial(TlsIdentity(tuple(answer.svid.cert_chain), to_pkcs8(KEY)))

        async def new_ca(*uris):
            request = svid_pb2.NewDownstreamX509CARequest(csr=request_for(*uris))
            return await nested.svid.NewDownstreamX509CA(request, timeout=10)

        for uris in BAD_CA_NAMES:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await new_ca(*uris)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT, uris
            assert "spiffe://example.org, without a path" in refused.value.details()
        for uris in (("spiffe://example.org",), ()):
            made = x509.load_der_x509_certificate((await new_ca(*uris)).ca_cert_chain[0])
            names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://example.org"]
