"""S1, continued: every method of every service by agents that once were good, over real TLS connections.

`test_server_access` walks callers who are what they seem, and certificates that do not get through the handshake. Here
the certificate is good and the agent behind it is not: banned, evicted, or holding a certificate that a newer one has
replaced. What they may call follows from the table, so a method without a row fails here too.
"""

from __future__ import annotations

import grpc
import grpc.aio
import pytest

from identity_server.domain.access import ACCESS, CallerKind
from spiffe_core.bundle import TrustBundle, X509Authority
from spiffe_core.crypto.csr import build_csr
from spiffe_core.crypto.keys import KeyKind, generate, to_pkcs8
from spiffe_core.errors import AgentRefused, Refusal
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire.status import from_rpc_error
from spiffe_core.wire.tls import TlsIdentity
from tests.authority import SpiffeTestCA
from tests.doubles.live_server import live_server, spiffe_id
from tests.integration.test_server_access import METHODS, STREAMS


@pytest.fixture
async def live():
    async with live_server() as server:
        yield server


async def banned(live):
    agent = await live.join()
    await live.agent.BanAgent(agent_pb2.BanAgentRequest(id=spiffe_id(agent.path)), timeout=10)
    return await live.agent_with(agent.own, agent.key), Refusal.AGENT_BANNED


async def evicted(live):
    agent = await live.join()
    await live.agent.DeleteAgent(agent_pb2.DeleteAgentRequest(id=spiffe_id(agent.path)), timeout=10)
    return await live.agent_with(agent.own, agent.key), Refusal.AGENT_NOT_ATTESTED


async def replaced(live):
    """Its certificate was renewed and the new one has been used."""
    agent = await live.join()
    key = generate(KeyKind.EC_P256)
    request = agent_pb2.RenewAgentRequest(params={"csr": build_csr(key, spiffe_id=None)})
    renewed = (await agent.agent.RenewAgent(request, timeout=10)).svid
    renewed.id.CopyFrom(agent.own.id)
    newer = await live.agent_with(renewed, key)
    await newer.entry.GetAuthorizedEntries(entry_pb2.GetAuthorizedEntriesRequest(), timeout=10)
    return await live.agent_with(agent.own, agent.key), Refusal.AGENT_NOT_ACTIVE


async def expired(live):
    """Its certificate ran out while the connection stood: the handshake was long ago, the check is for each call (S2)."""
    agent = await live.join()
    await agent.entry.GetAuthorizedEntries(entry_pb2.GetAuthorizedEntriesRequest(), timeout=10)
    live.clock.move(agent.own.expires_at - live.clock.now().timestamp() + 1)
    return agent, Refusal.AGENT_EXPIRED


async def ended(channel, method):
    """The error a call with an empty request ends with; None if it does not fail."""
    try:
        if method.rsplit("/", 1)[1] in STREAMS:
            call = channel.stream_stream(method)(iter([b""]), timeout=10)
            async for _ in call:
                pass
        else:
            await channel.unary_unary(method)(b"", timeout=10)
    except grpc.aio.AioRpcError as error:
        return error
    return None


@pytest.mark.parametrize("make", [banned, evicted, replaced, expired], ids=lambda make: make.__name__)
async def test_an_agent_that_is_no_more_gets_what_strangers_get(live, make):
    """S1, S2: agents' methods end PermissionDenied with the reason, operators' methods without; the rest is open."""
    agent, reason = await make(live)
    channel = agent.dialer.channel()
    for method in METHODS:
        rule = ACCESS[method]
        assert rule, f"{method} has no row"
        error = await ended(channel, method)
        if CallerKind.ANYONE in rule:
            assert error is None or error.code() is grpc.StatusCode.INVALID_ARGUMENT, (method, error)
            continue
        assert error is not None, method
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED, (method, error)
        read = from_rpc_error(error)
        if CallerKind.AGENT in rule:
            assert isinstance(read, AgentRefused), (method, error)
            assert read.refusal is reason, method
        else:
            assert error.details() == f"authorization denied for method {method}"
    assert not [one for one in live.state.agents.values() if one.new_serial], "nothing was renewed on the way"


async def test_a_federated_trust_domain_is_nobody_here_for_every_method(live):
    """S1, S31: its bundle is for workloads; whoever it certifies does not get through the handshake."""
    ca = SpiffeTestCA("other.org")
    foreign = TrustBundle(TrustDomain("other.org"), (X509Authority(ca.der),))
    await live.server.store.execute(lambda uow: uow.bundles.put(foreign))
    own = await live.join()
    svid = ca.issue(f"spiffe://other.org{own.path}")
    stubs = await live.dial(TlsIdentity(svid.chain, to_pkcs8(svid.private_key)))
    for method in METHODS:
        error = await ended(stubs.dialer.channel(), method)
        assert error is not None, method
        assert error.code() is grpc.StatusCode.UNAVAILABLE, (method, error)
