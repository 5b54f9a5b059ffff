"""One trust domain's server side behind a real front door, and dialers to it."""

from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
import pytest

from spiffe_core.bundle import BundleSet
from spiffe_core.clock import SystemClock
from spiffe_core.spiffe_id import SpiffeId
from spiffe_core.wire.dialer import Dialer
from spiffe_core.wire.front_door import FrontDoor, Limits
from spiffe_core.wire.server_proof import DialTrust
from spiffe_core.wire.tls import ServerTls, TlsIdentity
from tests.authority import SpiffeTestCA
from tests.doubles.door_service import serve

SERVER_ID = SpiffeId.parse("spiffe://example.org/spire/server")
AGENT_ID = SpiffeId.parse("spiffe://example.org/spire/agent/join_token/one")
CLOCK = SystemClock()
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


def identity_of(svid):
    return TlsIdentity(svid.chain, svid.key)


@dataclass
class Domain:
    """One trust domain's server side: what it presents and what it believes can both be replaced."""

    ca: SpiffeTestCA
    identity: TlsIdentity
    bundles: BundleSet
    door: FrontDoor | None = None
    port: int = 0

    def trust(self):
        return DialTrust(SERVER_ID, self.bundles.get)


@asynccontextmanager
async def listening(*, federated=(), **limits):
    ca = SpiffeTestCA("example.org")
    bundles = BundleSet(ca.bundle(), {other.trust_domain: other.bundle() for other in federated})
    domain = Domain(ca, identity_of(ca.issue(SERVER_ID)), bundles)
    domain.door = FrontDoor(limits=Limits(**limits))
    _, server = await serve(domain.door)
    tls = ServerTls(lambda: domain.identity, lambda: domain.bundles, CLOCK.now)
    _, domain.port = domain.door.listen_tcp("127.0.0.1", 0, tls)
    try:
        yield domain
    finally:
        await server.stop(0)
        await domain.door.close()


@asynccontextmanager
async def dialing(domain, svid=None, trust=None):
    dialer = Dialer(
        "127.0.0.1",
        domain.port,
        trust=trust or domain.trust,
        identity=lambda: identity_of(svid) if svid else None,
        now=CLOCK.now,
    )
    await dialer.start()
    try:
        yield dialer
    finally:
        await dialer.close()


async def who(dialer, timeout=5):
    return (await dialer.channel().unary_unary("/door.Test/Who")(b"", timeout=timeout)).decode()


async def refused(dialer):
    """The call fails; the dialer's words say why."""
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await who(dialer, timeout=3)
    assert failure.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
    return dialer.last_error
