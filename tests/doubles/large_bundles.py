"""A trust bundle of 200 roots and 2 MB, and the bundles of 200 other trust domains, as an administrator brings them (R49)."""

from __future__ import annotations

import os
from datetime import timedelta

from cryptography import x509
from cryptography.x509.oid import ObjectIdentifier

from spiffe_core.crypto.keys import KeyKind, generate
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire._gen.spire.api.types import bundle_pb2 as types_pb2
from spiffe_core.wire.convert_bundle import bundle_to_proto
from tests.authority import SpiffeTestCA

ROOTS, DOMAINS = 200, 200
FILLER = 9_500
"""Bytes of an extension nobody knows: what post-quantum keys and signatures take."""
R49_SECONDS = 30.0
NAMES = [f"domain-{number}.test" for number in range(DOMAINS)]
KEY = generate(KeyKind.EC_P256)


def large_root(trust_domain, number):
    extension = x509.UnrecognizedExtension(ObjectIdentifier("1.3.6.1.4.1.55555.1"), os.urandom(FILLER))
    over = {"key": KEY, "name": f"large {number}", "ttl": timedelta(hours=1), "extensions": ((extension, False),)}
    return SpiffeTestCA(trust_domain, **over).der


async def fill(bundle, trust_domain="example.org"):
    """By a stub of the Bundle service on the admin socket."""
    roots = [types_pb2.X509Certificate(asn1=large_root(trust_domain, number)) for number in range(ROOTS)]
    await bundle.AppendBundle(bundle_pb2.AppendBundleRequest(x509_authorities=roots), timeout=30)
    others = [bundle_to_proto(SpiffeTestCA(name, key=KEY).bundle()) for name in NAMES]
    request = bundle_pb2.BatchSetFederatedBundleRequest(bundle=others)
    answer = await bundle.BatchSetFederatedBundle(request, timeout=30)
    assert {one.status.code for one in answer.results} == {0}
