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
from spiffe_core.crypto.keys import KeyKind, generate, spki_der
from spiffe_core.spiffe_id import SpiffeId
from spiffe_core.wire._gen.spire.api.server.svid.v1 import svid_pb2
from tests.doubles.live_server import TD, entry, live_server, sign, wanted

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "spiffe_ids.json").read_text())
KEY = generate(KeyKind.EC_P256)


def request_for(uri):
    """A CSR that claims `uri`, whatever it is; None for what no certificate can carry."""
    try:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
        builder = x509.CertificateSigningRequestBuilder(x509.Name([])).add_extension(names, critical=True)
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
