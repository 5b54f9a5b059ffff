"""An agent that calls the server, and workloads that fetch and check tokens, without a pause while authorities rotate."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio

from spiffe_core.bundle import BundleSet, JwtAuthority, TrustBundle
from spiffe_core.clock import SystemClock
from spiffe_core.crypto.csr import build_csr
from spiffe_core.crypto.jose import read_compact, signature_is_good
from spiffe_core.crypto.jwk import key_from_jwk
from spiffe_core.crypto.keys import KeyKind, PrivateKey, generate, spki_der, to_pkcs8
from spiffe_core.errors import IdentityError
from spiffe_core.jwt_verify import verify_jwt_svid
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from spiffe_core.wire._gen import workload_pb2
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire.channels import unix_channel
from spiffe_core.wire.dialer import Dialer
from spiffe_core.wire.server_proof import DialTrust
from spiffe_core.wire.services import Stub
from spiffe_core.wire.tls import TlsIdentity
from spiffe_core.x509_verify import verify_x509_svid
from tests.doubles.live_server import Stubs, attest
from tests.doubles.rotation_load import SLOW_SECONDS, Load, issuer_of
from tests.tokens import parts
from workload_api.client import METADATA
from workload_api.service import SERVICE

AUDIENCE = "rotation"
_CLOCK = SystemClock()


class AgentCalls(Load):
    """An agent that makes a new mutual TLS connection for each round of calls, and renews when it reads of taint."""

    def __init__(self, port: int, token: str, trusted: Callable[[], BundleSet]) -> None:
        super().__init__()
        self._port, self._token, self._trusted = port, token, trusted
        self._identity: TlsIdentity | None = None
        self.own_issuer = ""
        self._own_issuers: set[str] = set()  # of the whole chain, up to the root
        self.server_issuers: list[tuple[float, str]] = []
        """Since when the server has shown a certificate of which authority."""

    async def run(self) -> None:
        key = generate(KeyKind.EC_P256)
        async with self._connected() as stubs:
            response = await attest(stubs.agent, self._token, key)
        self._use(response.result.svid.cert_chain, key)
        while True:
            try:
                async with self._connected() as stubs:
                    await self._round(stubs)
                await self._look_at_server()
            except (grpc.aio.AioRpcError, IdentityError, OSError, TimeoutError) as error:
                self.failures.append(f"{time.monotonic():.2f} agent: {error}")
            self.count += 1
            await asyncio.sleep(0.03)

    async def until_under(self, authority_id: str, seconds: float = 30.0) -> None:
        """Wait until both this agent's and the server's certificates are of this authority."""
        async with asyncio.timeout(seconds):
            while self.own_issuer != authority_id or self.server_issuers[-1][1] != authority_id:
                await self.more(1)

    async def _round(self, stubs: Stubs) -> None:
        await stubs.entry.GetAuthorizedEntries(entry_pb2.GetAuthorizedEntriesRequest(), timeout=15)
        bundle = await stubs.bundle.GetBundle(bundle_pb2.GetBundleRequest(), timeout=15)
        believed = self._trusted().own.x509_authorities
        tainted = {one.asn1 for one in bundle.x509_authorities if one.tainted}
        if self._own_issuers & {one.key_id for one in believed if one.der in tainted}:
            key = generate(KeyKind.EC_P256)
            request = agent_pb2.RenewAgentRequest(params={"csr": build_csr(key, spiffe_id=None)})
            self._use((await stubs.agent.RenewAgent(request, timeout=15)).svid.cert_chain, key)

    async def _look_at_server(self) -> None:
        """Which authority the server's certificate is of; it must be one that workloads know."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        async with asyncio.timeout(10):
            _, writer = await asyncio.open_connection("127.0.0.1", self._port, ssl=context)
        leaf = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.transport.abort()
        if self._own_issuers == {
            self.own_issuer
        }:  # else the leaf needs its chain, which each dialled connection verifies
            verify_x509_svid((leaf,), self._trusted().get, now=_CLOCK.now())
        issuer = issuer_of(leaf)
        if not self.server_issuers or self.server_issuers[-1][1] != issuer:
            self.server_issuers.append((time.monotonic(), issuer))

    def _use(self, chain: Any, key: PrivateKey) -> None:
        self._identity = TlsIdentity(tuple(chain), to_pkcs8(key))
        self.own_issuer = issuer_of(chain[0])
        self._own_issuers = {issuer_of(one) for one in chain}

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Stubs]:
        trusted = self._trusted()
        server = SpiffeId(trusted.own.trust_domain, "/spire/server")
        dialer = Dialer(
            "127.0.0.1",
            self._port,
            trust=lambda: DialTrust(server, trusted.get),
            identity=lambda: self._identity,
            now=_CLOCK.now,
        )
        await dialer.start()
        try:
            yield Stubs(dialer.channel())
        finally:
            await dialer.close()


class Tokens(Load):
    """What both kinds of token share: the newest token, and the one a slow workload still has."""

    def __init__(self, socket: Any, trust_domain: TrustDomain) -> None:
        super().__init__()
        self._channel = unix_channel(str(socket))
        self.stub = Stub(self._channel, SERVICE)
        self.domain = trust_domain
        self.keys: dict[str, Any] = {}
        """The keys of the newest bundle, by key id."""
        self.checked: Counter[str] = Counter()
        """How many checks there were of tokens of each key."""
        self._past: deque[tuple[float, str]] = deque()

    async def __aexit__(self, *details: object) -> None:
        await super().__aexit__(*details)
        await self._channel.close()

    @property
    def key_id(self) -> str:
        """The key of the newest token."""
        return str(parts(self._past[-1][1])[0]["kid"]) if self._past else ""

    def slow(self, token: str) -> str:
        """Remember a token; the one that was newest some seconds ago."""
        now = time.monotonic()
        self._past.append((now, token))
        while len(self._past) > 1 and self._past[1][0] <= now - SLOW_SECONDS:
            self._past.popleft()
        return self._past[0][1]

    async def until(self, condition: Callable[[], bool], seconds: float = 30.0) -> float:
        """Wait for what the streams bring; how many seconds that took."""
        began = time.monotonic()
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.01)
        return time.monotonic() - began

    async def until_signed_by(self, key_id: str) -> float:
        """Wait until the newest token is of this key."""
        return await self.until(lambda: self.key_id == key_id)

    def read_bundle(self, document: str | bytes) -> None:
        self.keys = {one["kid"]: key_from_jwk(one) for one in json.loads(document)["keys"]}


class JwtChecks(Tokens):
    """A JWT-SVID is fetched again and again, and checked by the agent and with the streamed bundle."""

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._bundles())
            await self.until(lambda: bool(self.keys))
            group.create_task(self._rounds())

    async def _bundles(self) -> None:
        async for message in self.stub.FetchJWTBundles(workload_pb2.JWTBundlesRequest(), metadata=METADATA):
            self.read_bundle(message.bundles[f"spiffe://{self.domain}"])

    async def _rounds(self) -> None:
        request = workload_pb2.JWTSVIDRequest(audience=[AUDIENCE])
        while True:
            try:
                answer = await self.stub.FetchJWTSVID(request, metadata=METADATA, timeout=15)
                newest = answer.svids[0].svid
                for token in {newest, self.slow(newest)}:
                    await self._check(token)
            except (grpc.aio.AioRpcError, IdentityError) as error:
                self.failures.append(f"{time.monotonic():.2f} JWT of {self.key_id}: {error}")
            self.count += 1
            await asyncio.sleep(0.02)

    async def _check(self, token: str) -> None:
        bundle = TrustBundle(
            self.domain, jwt_authorities=tuple(JwtAuthority(name, spki_der(key)) for name, key in self.keys.items())
        )
        verify_jwt_svid(token, {self.domain: bundle}.get, audience=(AUDIENCE,), now=_CLOCK.now())
        request = workload_pb2.ValidateJWTSVIDRequest(audience=AUDIENCE, svid=token)
        await self.stub.ValidateJWTSVID(request, metadata=METADATA, timeout=15)
        self.checked[parts(token)[0]["kid"]] += 1


class WitChecks(Tokens):
    """The stream of WIT-SVIDs is followed, and its newest token checked with the streamed bundle."""

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._bundles())
            await self.until(lambda: bool(self.keys))
            group.create_task(self._svids())
            await self.until(lambda: bool(self._past))
            group.create_task(self._rounds())

    async def _bundles(self) -> None:
        async for message in self.stub.FetchWITBundles(workload_pb2.WITBundlesRequest(), metadata=METADATA):
            self.read_bundle(message.bundles[f"spiffe://{self.domain}"])

    async def _svids(self) -> None:
        async for message in self.stub.FetchWITSVID(workload_pb2.WITSVIDRequest(), metadata=METADATA):
            self.slow(message.svids[0].wit_svid)

    async def _rounds(self) -> None:
        while True:
            newest = self._past[-1][1]
            for token in {newest, self.slow(newest)}:
                jws, (header, _) = read_compact(token), parts(token)
                key = self.keys.get(header["kid"])
                if key is None or not signature_is_good(jws, header["alg"], key):
                    self.failures.append(f"{time.monotonic():.2f} WIT of {header['kid']}: no key verifies it")
                self.checked[header["kid"]] += 1
            self.count += 1
            await asyncio.sleep(0.02)
