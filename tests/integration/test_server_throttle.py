"""Rate limits of a real server (architecture A17): who is held up, who is refused, and what the refusal says."""

import asyncio

import grpc
import pytest
from google.rpc import error_details_pb2
from google.rpc import status_pb2 as rpc_status_pb2

from identity_server import opening
from identity_server.domain.rates import Rate
from spiffe_core.crypto.csr import build_csr
from spiffe_core.crypto.keys import KeyKind, generate
from spiffe_core.errors import TooFast
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire._gen.spire.api.server.svid.v1 import svid_pb2
from spiffe_core.wire.channels import unix_channel
from spiffe_core.wire.services import Stub
from spiffe_core.wire.status import from_rpc_error
from tests.doubles.agent_calls import sync
from tests.doubles.live_server import AGENT, attest, entry, live_server, sign, wanted

KEY = generate(KeyKind.EC_P256)
CSR = build_csr(KEY, spiffe_id=SpiffeId(TrustDomain("example.org"), "/x"))


def retry_info(error):
    """google.rpc.RetryInfo out of grpc-status-details-bin, and nothing else in there."""
    status = rpc_status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    assert status.code == 8
    (detail,) = status.details
    info = error_details_pb2.RetryInfo()
    assert detail.Unpack(info)
    return info.retry_delay.ToMilliseconds() / 1000


async def refused(call):
    with pytest.raises(grpc.aio.AioRpcError) as found:
        await call
    return found.value


async def test_attestations_beyond_the_burst_are_refused_with_retry_info():
    """A17: the limit goes by address, attempts that fail count as ten, RetryInfo says when to come back."""
    async with live_server(ratelimit={"attestation_burst": 22, "attestation_per_second": 0.5}) as live:
        stranger = await live.dial()
        for _ in range(2):
            assert (await refused(attest(stranger.agent, "no such token", KEY))).code() is not None
        error = await refused(attest(stranger.agent, "x", KEY))
        if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:  # 2 units are left: one more attempt, then none
            error = await refused(attest(stranger.agent, "x", KEY))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert retry_info(error) > 2.0
        rebuilt = from_rpc_error(error)
        assert isinstance(rebuilt, TooFast)
        assert rebuilt.retry_after == retry_info(error)


async def test_the_admin_socket_has_no_limit():
    """A17: whoever may open the admin socket is an administrator; also attestation is never held up there."""
    async with live_server(ratelimit={"attestation_burst": 1, "attestation_per_second": 0.1}) as live:
        async with unix_channel(live.server.settings.socket_path) as channel:
            agent = Stub(channel, AGENT)
            codes = [(await refused(attest(agent, "no such token", KEY))).code() for _ in range(5)]
        assert codes == [grpc.StatusCode.INVALID_ARGUMENT] * 5


async def test_who_is_a_little_too_fast_waits_and_is_served():
    async with live_server(ratelimit={"attestation_burst": 1, "attestation_per_second": 4.0}) as live:
        tokens = [await live.token() for _ in range(3)]
        stranger = await live.dial()
        loop = asyncio.get_running_loop()
        started = loop.time()
        for token in tokens:
            await attest(stranger.agent, token, KEY)
        assert loop.time() - started >= 0.45


async def test_signing_is_counted_in_requests_for_each_agent_alone():
    """A17, S27: 500 in one batch empty this agent's bucket and nobody else's; a renewal counts as well."""
    async with live_server(ratelimit={"signing_burst": 500, "signing_per_second": 0.5}) as live:
        one, other = await live.join(), await live.join()
        assert len(await sign(one, *[wanted("no such entry", csr=CSR) for _ in range(500)])) == 500
        error = await refused(sign(one, wanted("no such entry", csr=CSR), wanted("no such entry", csr=CSR)))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert retry_info(error) > 2.0
        renewal = agent_pb2.RenewAgentRequest(params={"csr": CSR})
        assert len(await sign(other, wanted("no such entry", csr=CSR))) == 1
        assert (await other.agent.RenewAgent(renewal, timeout=10)).svid.cert_chain


async def test_what_else_an_agent_asks_is_counted_for_each_agent_alone(monkeypatch):
    """S53: one that was broken into floods neither the database's readers nor its writer; synchronising goes on elsewhere."""
    monkeypatch.setattr(opening, "LOOKUP_RATE", Rate(0.1, 10))
    async with live_server(ratelimit={"wait_seconds": 0}) as live:
        flooding, other = await live.join(), await live.join()
        asked = bundle_pb2.GetFederatedBundleRequest(trust_domain="nobody.test")
        for _ in range(10):
            assert (await refused(flooding.bundle.GetFederatedBundle(asked, timeout=10))).code().name == "NOT_FOUND"
        for call in (
            flooding.bundle.GetFederatedBundle(asked, timeout=10),
            flooding.agent.PostStatus(agent_pb2.PostStatusRequest(agent_version="1"), timeout=10),
            sync(flooding),
        ):
            assert (await refused(call)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        (entry_id,) = await live.entries(entry("/web", flooding.path))
        (signed,) = await sign(flooding, wanted(entry_id))
        assert signed.status.code == 0, "certificates are counted apart"
        await sync(other)
        assert live.server.throttle.refused["lookups"] == 3


async def test_bad_requests_cost_ten_times_as_much():
    """A17: fifty forged requests use up what five hundred good ones would."""
    async with live_server(ratelimit={"signing_burst": 500, "signing_per_second": 0.5}) as live:
        agent = await live.join()
        results = await sign(agent, *[wanted("e", csr=b"not a request") for _ in range(50)])
        assert {result.status.code for result in results} == {3}
        error = await refused(sign(agent, *[wanted("e", csr=CSR) for _ in range(5)]))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_deadline_that_cannot_be_met_is_refused_at_once():
    """The next turn is 10 seconds away, less what signing the 500 takes."""
    async with live_server(ratelimit={"signing_burst": 500, "signing_per_second": 0.1}) as live:
        agent = await live.join()
        await sign(agent, *[wanted("e", csr=CSR) for _ in range(500)])
        request = svid_pb2.BatchNewX509SVIDRequest(params=[wanted("e", csr=CSR)])
        error = await refused(agent.svid.BatchNewX509SVID(request, timeout=1.0))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_without_limits_nobody_is_held_up():
    off = {"attestation": False, "attestation_burst": 1, "signing": False, "signing_burst": 500}
    async with live_server(ratelimit=off) as live:
        agents = [await live.join() for _ in range(3)]
        for _ in range(2):
            assert len(await sign(agents[0], *[wanted("e", csr=CSR) for _ in range(500)])) == 500


async def test_a_caller_that_hangs_up_while_waiting_gives_its_turn_back():
    async with live_server(ratelimit={"signing_burst": 500, "signing_per_second": 0.6}) as live:
        agent = await live.join()
        await sign(agent, *[wanted("e", csr=CSR) for _ in range(499)])
        request = svid_pb2.BatchNewX509SVIDRequest(params=[wanted("e", csr=CSR), wanted("e", csr=CSR)])
        throttle = live.server.throttle
        call = agent.svid.BatchNewX509SVID(request, timeout=30)
        async with asyncio.timeout(5):
            while not throttle.waiting:
                await asyncio.sleep(0.005)
            call.cancel()
            while throttle.waiting:
                await asyncio.sleep(0.005)
        assert not throttle.refused
