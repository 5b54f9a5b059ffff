"""Calls of the Bundle service, as an administrator makes them."""

from __future__ import annotations

import grpc.aio
import pytest

from spiffe_core.bundle import JwtAuthority, WitAuthority
from spiffe_core.crypto.keys import KeyKind, generate, spki_der
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.types import bundle_pb2 as types_pb2
from spiffe_core.wire.convert import bundle_to_proto
from tests.builders import make_bundle

KEY, OTHER_KEY = (spki_der(generate(KeyKind.EC_P256).public_key()) for _ in range(2))
FED = make_bundle(
    trust_domain="fed.test",
    sequence=7,
    refresh_hint=60,
    jwt_authorities=(JwtAuthority("j", KEY, expires_at=9),),
    wit_authorities=(WitAuthority("w", KEY),),
)


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


async def delete(live, *names, mode="RESTRICT"):
    request = bundle_pb2.BatchDeleteFederatedBundleRequest(trust_domains=names, mode=mode)
    results = (await live.bundle.BatchDeleteFederatedBundle(request, timeout=20)).results
    return [(one.trust_domain, one.status.code, one.status.message) for one in results]


async def entries(live):
    return list((await live.entry.ListEntries(entry_pb2.ListEntriesRequest(), timeout=10)).entries)
