"""The other end: speaks SPIRE's API as administrators and agents do, whoever serves it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from benchmarks.targets import TRUST_DOMAIN, Target
from spiffe_core.bundle import TrustBundle, X509Authority
from spiffe_core.clock import SystemClock
from spiffe_core.crypto.csr import build_csr
from spiffe_core.crypto.keys import KeyKind, PrivateKey, generate, to_pkcs8
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.server.svid.v1 import svid_pb2
from spiffe_core.wire._gen.spire.api.types import entry_pb2 as entry_types
from spiffe_core.wire._gen.spire.api.types import x509svid_pb2
from spiffe_core.wire.channels import unix_channel
from spiffe_core.wire.dialer import Dialer
from spiffe_core.wire.server_proof import DialTrust
from spiffe_core.wire.services import Stub
from spiffe_core.wire.tls import TlsIdentity

AGENT = agent_pb2.DESCRIPTOR.services_by_name["Agent"]
BUNDLE = bundle_pb2.DESCRIPTOR.services_by_name["Bundle"]
ENTRY = entry_pb2.DESCRIPTOR.services_by_name["Entry"]
SVID = svid_pb2.DESCRIPTOR.services_by_name["SVID"]
BATCH = 500
DOMAIN = TrustDomain(TRUST_DOMAIN)
SERVER_ID = SpiffeId(DOMAIN, "/spire/server")


class Driver:
    """An administrator's channel, and as many agents' connections as wanted."""

    def __init__(self, target: Target, stack: contextlib.AsyncExitStack) -> None:
        self.target = target
        self._stack = stack

    async def begin(self) -> None:
        channel = await self._stack.enter_async_context(unix_channel(self.target.admin_socket))
        self.agent, self.entry, self.bundles = Stub(channel, AGENT), Stub(channel, ENTRY), Stub(channel, BUNDLE)
        found = await self.bundles.GetBundle(bundle_pb2.GetBundleRequest(), timeout=30)
        roots = tuple(X509Authority(one.asn1) for one in found.x509_authorities)
        self.bundle = TrustBundle(DOMAIN, roots)

    async def dial(self, identity: TlsIdentity | None = None) -> Dialer:
        """A TLS connection to the agents' port, kept to the end."""
        dialer = self.dialer(identity)
        await dialer.start()
        self._stack.push_async_callback(dialer.close)
        return dialer

    def dialer(self, identity: TlsIdentity | None = None) -> Dialer:
        trust = DialTrust(SERVER_ID, lambda _: self.bundle)
        return Dialer(
            "127.0.0.1", self.target.port, trust=lambda: trust, identity=lambda: identity, now=SystemClock().now
        )

    async def tokens(self, count: int) -> list[str]:
        """Join tokens."""
        request = agent_pb2.CreateJoinTokenRequest(ttl=3600)
        return [(await self.agent.CreateJoinToken(request, timeout=30)).value for _ in range(count)]

    @staticmethod
    def attestation(token: str, csr: bytes) -> agent_pb2.AttestAgentRequest:
        """What a node sends to join with a token."""
        params = agent_pb2.AttestAgentRequest.Params()
        params.data.type, params.data.payload = "join_token", token.encode()
        params.params.csr = csr
        return agent_pb2.AttestAgentRequest(params=params)

    async def attest(self, dialer: Dialer, token: str, key: PrivateKey) -> x509svid_pb2.X509SVID:
        """One AttestAgent call with a join token."""
        call = Stub(dialer.channel(), AGENT).AttestAgent(timeout=60)
        await call.write(self.attestation(token, build_csr(key, spiffe_id=None)))
        response = await call.read()
        await call.done_writing()
        return response.result.svid

    async def join(self) -> tuple[TlsIdentity, str]:
        """An agent of the name its token gives it; its identity and path."""
        key = generate(KeyKind.EC_P256)
        (token,) = await self.tokens(1)
        svid = await self.attest(await self.dial(), token, key)
        return TlsIdentity(tuple(svid.cert_chain), to_pkcs8(key)), svid.id.path

    async def create_entries(self, parent: str, count: int, *, size: int = BATCH) -> list[str]:
        """Entries below the agent, `size` a call; their ids."""
        ids: list[str] = []
        for start in range(0, count, size):
            batch = [
                entry_types.Entry(
                    spiffe_id={"trust_domain": TRUST_DOMAIN, "path": f"/load/service-{i}"},
                    parent_id={"trust_domain": TRUST_DOMAIN, "path": parent},
                    selectors=[
                        {"type": "k8s", "value": f"ns:load-{i % 50}"},
                        {"type": "k8s", "value": f"sa:service-{i}"},
                    ],
                )
                for i in range(start, min(start + size, count))
            ]
            answer = await self.entry.BatchCreateEntry(entry_pb2.BatchCreateEntryRequest(entries=batch), timeout=120)
            for result in answer.results:
                assert result.status.code == 0, result.status.message
            ids += [result.entry.id for result in answer.results]
        return ids


@contextlib.asynccontextmanager
async def driving(target: Target) -> AsyncIterator[Driver]:
    """A driver of a running target."""
    async with contextlib.AsyncExitStack() as stack:
        driver = Driver(target, stack)
        await driver.begin()
        yield driver
