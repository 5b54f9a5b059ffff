"""A real identity server in this process, with its real sockets, and agents that talk to it over TLS."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path

import grpc
import grpc.aio

from identity_server.bootstrap import running
from identity_server.rpc.health_api import SERVICE as HEALTH
from identity_server.rpc.services import AGENT, BUNDLE, DEBUG, ENTRY, LOCAL_AUTHORITY, LOGGER, SVID, TRUST_DOMAIN
from identity_server.settings import from_mapping
from spiffe_core.clock import SystemClock
from spiffe_core.crypto.csr import build_csr
from spiffe_core.crypto.keys import KeyKind, generate, to_pkcs8
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.server.svid.v1 import svid_pb2
from spiffe_core.wire.channels import unix_channel
from spiffe_core.wire.dialer import Dialer
from spiffe_core.wire.server_proof import DialTrust
from spiffe_core.wire.services import Stub
from spiffe_core.wire.tls import TlsIdentity

TD = TrustDomain("example.org")
SERVER_ID = SpiffeId(TD, "/spire/server")


class MovableClock(SystemClock):
    """The machine's clock, moved by as much as a test wants."""

    def __init__(self):
        self.offset = timedelta()

    def now(self) -> datetime:
        return super().now() + self.offset

    def move(self, seconds):
        self.offset += timedelta(seconds=seconds)


class Stubs:
    """The services of one channel."""

    def __init__(self, channel):
        self.agent = Stub(channel, AGENT)
        self.entry = Stub(channel, ENTRY)
        self.svid = Stub(channel, SVID)
        self.local = Stub(channel, LOCAL_AUTHORITY)
        self.bundle = Stub(channel, BUNDLE)
        self.trust_domain = Stub(channel, TRUST_DOMAIN)
        self.debug = Stub(channel, DEBUG)
        self.logger = Stub(channel, LOGGER)
        self.health = Stub(channel, HEALTH)


class LiveServer(Stubs):
    """The server and its administrator's stubs over the admin socket."""

    def __init__(self, server, channel, clock, stack):
        super().__init__(channel)
        self.server = server
        self.clock = clock
        self.channel = channel
        self._stack = stack

    @property
    def state(self):
        return self.server.store.state.value

    async def token(self, ttl=600, **over):
        request = agent_pb2.CreateJoinTokenRequest(ttl=ttl, **over)
        return (await self.agent.CreateJoinToken(request, timeout=10)).value

    async def dial(self, identity=None):
        """Stubs over TLS, anonymous without an identity."""
        host, port = self.server.address
        bundles = self.state.bundles
        dialer = Dialer(
            host,
            port,
            trust=lambda: DialTrust(SERVER_ID, bundles.get),
            identity=lambda: identity,
            now=self.clock.now,
        )
        await dialer.start()
        self._stack.push_async_callback(dialer.close)
        stubs = Stubs(dialer.channel())
        stubs.dialer = dialer
        return stubs

    async def join(self, token=None, key=None, **over):
        """Attest as a node does: without a certificate, then connect again with the new one."""
        key = key or generate(KeyKind.EC_P256)
        token = token or await self.token(**over)
        anonymous = await self.dial()
        response = await attest(anonymous.agent, token, key)
        return await self.agent_with(response.result.svid, key)

    async def agent_with(self, svid, key):
        """A connected agent that holds `svid`."""
        stubs = await self.dial(TlsIdentity(tuple(svid.cert_chain), to_pkcs8(key)))
        stubs.key, stubs.own, stubs.path = key, svid, svid.id.path
        return stubs

    async def entries(self, *messages):
        """Create entries; their ids."""
        response = await self.entry.BatchCreateEntry(entry_pb2.BatchCreateEntryRequest(entries=messages), timeout=20)
        assert [result.status.message for result in response.results] == ["OK"] * len(messages)
        return [result.entry.id for result in response.results]


def spiffe_id(path, trust_domain="example.org"):
    return {"trust_domain": trust_domain, "path": path}


def entry(path="/web", parent="/spire/agent/a", selectors=(("unix", "uid:1000"),), **over):
    """A registration entry's message."""
    return {
        "spiffe_id": spiffe_id(path),
        "parent_id": spiffe_id(parent),
        "selectors": [{"type": kind, "value": value} for kind, value in selectors],
        **over,
    }


def params(token, key, kind="join_token"):
    payload = token.encode() if isinstance(token, str) else token
    return agent_pb2.AttestAgentRequest(
        params={
            "data": {"type": kind, "payload": payload},
            "params": {"csr": build_csr(key, spiffe_id=None)},
        }
    )


async def attest(stub, token, key, kind="join_token"):
    """One AttestAgent call that expects no challenge."""
    call = stub.AttestAgent(timeout=20)
    await call.write(params(token, key, kind))
    response = await call.read()
    if response is grpc.aio.EOF:
        raise await failure(call)
    await call.done_writing()
    return response


async def failure(call):
    """The error a streaming call ended with."""
    try:
        while await call.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("the call did not fail")


def wanted(entry_id, key=None, csr=None, uri=None):
    """One item of BatchNewX509SVID; `uri` is what the CSR claims."""
    made = build_csr(key or generate(KeyKind.EC_P256), spiffe_id=uri) if csr is None else csr
    return svid_pb2.NewX509SVIDParams(entry_id=entry_id, csr=made)


async def sign(agent, *items):
    return (await agent.svid.BatchNewX509SVID(svid_pb2.BatchNewX509SVIDRequest(params=items), timeout=30)).results


@asynccontextmanager
async def live_server(folder=None, **settings):
    """A server on a free port in a private directory (or in `folder`, to start it again there)."""
    made = None if folder is not None else Path(tempfile.mkdtemp(prefix="mun-"))
    base = Path(folder or made)
    clock = MovableClock()
    document = {
        "trust_domain": "example.org",
        "data_dir": str(base / "data"),
        "socket_path": str(base / "run" / "admin.sock"),
        "bind_address": "127.0.0.1",
        "bind_port": 0,
        "audit": {"file": str(base / "audit.jsonl")},
        **settings,
    }
    try:
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(running(from_mapping(document), clock=clock))
            channel = await stack.enter_async_context(unix_channel(server.settings.socket_path))
            clients = await stack.enter_async_context(AsyncExitStack())
            yield LiveServer(server, channel, clock, clients)
    finally:
        if made is not None:
            shutil.rmtree(made)
