"""An agent that knows several servers: who does not answer or is not the server is passed over (A9)."""

import asyncio
import socket

import pytest

from deploy.demo.stack import free_port
from spiffe_core.clock import SystemClock
from spiffe_core.errors import Reason, VerificationFailed
from spiffe_core.spiffe_id import SpiffeId
from spiffe_core.wire.channels import unix_channel
from spiffe_core.wire.dialer import Dialer
from spiffe_core.wire.server_proof import DialTrust
from spiffe_core.wire.servers import SHORTEST_PAUSE, Servers
from spiffe_core.wire.tls import ServerTls
from tests.doubles.live_agent import agent_folder, live_agent, pem_bundle, token_file
from tests.doubles.live_server import live_server
from tests.doubles.tls_domain import CLOCK, listening, who


async def test_an_agent_joins_the_server_that_proves_itself_among_others():
    """One port is closed, one server belongs to another trust domain: neither is an obstacle, whatever the order."""
    async with live_server() as live, live_server(trust_domain="other.test") as stranger, agent_folder() as folder:
        others = [f"127.0.0.1:{free_port()}", f"127.0.0.1:{stranger.server.address[1]}"]
        settings = {
            "trust_bundle_path": str(pem_bundle(live, folder)),
            "join_token_file": str(token_file(folder, await live.token())),
            "server_address": [*others, f"127.0.0.1:{live.server.address[1]}"],
        }
        async with live_agent(folder, live.server.address, **settings) as agent:
            await agent.until_joined()
            assert agent.agent.client.calls.dialer.servers.current.port == live.server.address[1]


async def test_when_none_will_do_the_error_is_the_one_that_tells_most():
    """A server that is there and not proven says more than one that is away: it may need the new bundle (R9)."""
    async with live_server() as live, live_server(trust_domain="other.test") as stranger:
        servers = Servers([("127.0.0.1", free_port()), stranger.server.address], seed=b"a")
        trust = DialTrust(SpiffeId(live.state.trust_domain, "/spire/server"), live.state.bundles.get)
        dialer = Dialer.among(servers, trust=lambda: trust, identity=lambda: None, now=SystemClock().now)
        await dialer.start()
        try:
            async with unix_channel(dialer.local_path) as channel:
                call = channel.unary_unary("/x.Y/Z")
                with pytest.raises(Exception, match="UNAVAILABLE"):
                    await call(b"", timeout=20)
            assert isinstance(dialer.last_error, VerificationFailed)
            assert dialer.last_error.reason is Reason.UNKNOWN_AUTHORITY
        finally:
            await dialer.close()


class Waiting(Servers):
    """Tells when a dial goes on because the servers may be starting."""

    def __init__(self, names):
        super().__init__(names, starting_seconds=30.0)
        self.again = asyncio.Event()

    def pause(self, now):
        seconds = super().pause(now)
        self.again.set()
        return None if seconds is None else min(seconds, SHORTEST_PAUSE)


async def test_a_call_to_a_server_that_is_starting_is_answered_as_soon_as_it_listens():
    """B1: nobody listens yet; the call waits in the same dial, instead of failing and being tried at the next poll."""
    async with listening() as domain:
        names = [("127.0.0.1", free_port())]
        servers = Waiting(names)
        dialer = Dialer.among(servers, trust=domain.trust, identity=lambda: None, now=CLOCK.now)
        await dialer.start()
        try:
            call = asyncio.ensure_future(who(dialer, timeout=30))
            for _ in range(3):
                await servers.again.wait()
                servers.again.clear()
            host, port = names[0]
            domain.door.listen_tcp(host, port, ServerTls(lambda: domain.identity, lambda: domain.bundles, CLOCK.now))
            assert await call == "tls anonymous"
            assert servers.current.port == port
        finally:
            await dialer.close()


async def test_a_listener_that_never_accepts_costs_a_moment_only(monkeypatch):
    """Its queue is full, so the kernel drops what asks for a connection, as a firewall does."""
    monkeypatch.setattr("spiffe_core.wire.dialer._REACH_SECONDS", 0.1)
    async with live_server() as live:
        with socket.socket() as full, socket.socket() as first, socket.socket() as second:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            for one in (first, second):
                one.setblocking(False)
                one.connect_ex(full.getsockname())
            for seed in (b"a", b"b", b"c"):
                servers = Servers([full.getsockname(), live.server.address], seed=seed)
                trust = DialTrust(SpiffeId(live.state.trust_domain, "/spire/server"), live.state.bundles.get)
                dialer = Dialer.among(servers, trust=lambda: trust, identity=lambda: None, now=SystemClock().now)  # noqa: B023  # the same each time
                await dialer.start()
                try:
                    await dialer.channel().channel_ready()
                    assert servers.current.port == live.server.address[1]
                finally:
                    await dialer.close()
