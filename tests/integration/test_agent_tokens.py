"""JWT-SVIDs and WIT-SVIDs from end to end: a real server signs, a real agent verifies, keeps and serves."""

import asyncio
import json
from contextlib import asynccontextmanager

import grpc
import pytest

from spiffe_core.bundle_document import load_bundle
from spiffe_core.clock import SystemClock
from spiffe_core.crypto.jose import read_compact, read_object
from spiffe_core.jwt_verify import verify_jwt_svid
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.wire._gen import workload_pb2
from spiffe_core.wire._gen.spire.api.server.localauthority.v1 import localauthority_pb2
from tests.doubles.live_agent import OWN, agent_folder, live_agent, pem_bundle, token_file
from tests.doubles.live_server import entry, live_server
from workload_api.client import METADATA

TD = TrustDomain("example.org")


@asynccontextmanager
async def serving(*, server=None, **settings):
    """A server, an agent that has joined, and one entry for this process."""
    async with agent_folder() as folder, live_server(**(server or {})) as live:
        token = token_file(folder, await live.token())
        bundle = pem_bundle(live, folder)
        settings = {"trust_bundle_path": str(bundle), "join_token_file": str(token), **settings}
        async with live_agent(folder, live.server.address, **settings) as agent:
            await agent.until_joined()
            await live.entries(entry(path="/web", parent=agent.path, selectors=OWN))
            agent.sync_now()
            await agent.until(lambda: agent.agent.workloads.entries)
            yield live, agent


async def fetch(agent, *audience):
    request = workload_pb2.JWTSVIDRequest(audience=audience)
    (svid,) = (await agent._api.FetchJWTSVID(request, metadata=METADATA, timeout=20)).svids
    return svid


async def test_a_token_verifies_with_the_bundle_beside_it_and_with_the_agent():
    """WAPI-32, WAPI-34, WAPI-38, WAPI-42: fetched, verified by hand, validated by the agent; cached meanwhile."""
    async with serving() as (_, agent):
        svid = await fetch(agent, "db", "api")
        stream = agent._api.FetchJWTBundles(workload_pb2.JWTBundlesRequest(), metadata=METADATA)
        document = json.loads((await stream.read()).bundles["spiffe://example.org"])
        stream.cancel()
        text = json.dumps({"keys": [{"use": "jwt-svid", **key} for key in document["keys"]]}).encode()
        bundle = load_bundle(text, TD).bundle
        verified = verify_jwt_svid(svid.svid, lambda _: bundle, audience=("db",), now=SystemClock().now())
        assert (str(verified.spiffe_id), set(verified.audience)) == (svid.spiffe_id, {"db", "api"})
        request = workload_pb2.ValidateJWTSVIDRequest(audience="api", svid=svid.svid)
        validated = await agent._api.ValidateJWTSVID(request, metadata=METADATA, timeout=20)
        assert validated.spiffe_id == "spiffe://example.org/web"
        assert (await fetch(agent, "api", "db")).svid == svid.svid


async def test_tokens_follow_the_servers_keys():
    """Prepare, activate, taint: the next token is signed by the new key, the old ones are dropped, bundles follow."""
    async with serving() as (live, agent):
        old = await fetch(agent, "db")
        bundles = agent._api.FetchJWTBundles(workload_pb2.JWTBundlesRequest(), metadata=METADATA)
        await bundles.read()
        prepared = await live.local.PrepareJWTAuthority(localauthority_pb2.PrepareJWTAuthorityRequest())
        new = prepared.prepared_authority.authority_id
        keys = json.loads((await bundles.read()).bundles["spiffe://example.org"])["keys"]
        assert new in {key["kid"] for key in keys}
        live.clock.move(11)
        await live.local.ActivateJWTAuthority(localauthority_pb2.ActivateJWTAuthorityRequest(authority_id=new))
        assert (await fetch(agent, "db")).svid == old.svid
        kid = read_compact(old.svid).header["kid"]
        await live.local.TaintJWTAuthority(localauthority_pb2.TaintJWTAuthorityRequest(authority_id=kid))
        async with asyncio.timeout(20):
            while read_compact((await fetch(agent, "db")).svid).header["kid"] != new:
                await asyncio.sleep(0.02)
        bundles.cancel()


async def test_wit_svids_are_an_opt_in_on_both_sides():
    """WAPI-47, WAPI-49 to WAPI-56: off by default; switched on, the key confirmed is the key handed out."""
    async with serving() as (_, agent):
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await agent._api.FetchWITSVID(workload_pb2.WITSVIDRequest(), metadata=METADATA).read()
        assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED
    async with serving(server={"wit": {"enabled": True}}, wit={"enabled": True}) as (_, agent):
        stream = agent._api.FetchWITSVID(workload_pb2.WITSVIDRequest(), metadata=METADATA)
        (svid,) = (await stream.read()).svids
        stream.cancel()
        key = json.loads(svid.wit_svid_key)
        claims = read_object(read_compact(svid.wit_svid).payload, "payload")
        assert claims["sub"] == svid.spiffe_id == "spiffe://example.org/web"
        assert claims["cnf"]["jwk"] == {name: value for name, value in key.items() if name != "d"}
        bundles = agent._api.FetchWITBundles(workload_pb2.WITBundlesRequest(), metadata=METADATA)
        keys = json.loads((await bundles.read()).bundles["spiffe://example.org"])["keys"]
        bundles.cancel()
        assert read_compact(svid.wit_svid).header["kid"] in {one["kid"] for one in keys}


async def test_jwt_svids_can_be_switched_off():
    """N-A-17, WAPI-02: off here, the other profile is unaffected."""
    async with serving(jwt={"disabled": True}) as (_, agent):
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await fetch(agent, "db")
        assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED
        stream = agent.x509_stream()
        assert len((await stream.read()).svids) == 1
        stream.cancel()
