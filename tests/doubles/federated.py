"""Muniment servers of several trust domains in this process, each with its bundle endpoint on loopback."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

from spiffe_core.runtime.supervise import Supervisor
from spiffe_core.wire._gen.muniment.server.federation.v1 import federation_pb2
from spiffe_core.wire._gen.spire.api.server.trustdomain.v1 import trustdomain_pb2
from spiffe_core.wire._gen.spire.api.types import federationrelationship_pb2 as types_pb2
from spiffe_core.wire.services import Stub
from tests.doubles.live_server import live_server

LOOPBACK = ["127.0.0.0/8", "::1"]
FEDERATION = federation_pb2.DESCRIPTOR.services_by_name["Federation"]


@asynccontextmanager
async def domain(name, folder=None, *, polls=True, federation=None, **settings):
    """A server whose endpoint is open and which fetches by itself unless `polls` is False."""
    section = {
        "bundle_endpoint": {"address": "127.0.0.1", "port": 0},
        "bundle_client": {"allowed_networks": LOOPBACK},
        **(federation or {}),
    }
    async with live_server(folder, trust_domain=name, federation=section, **settings) as live, Supervisor() as tasks:
        live.name = name
        live.states = Stub(live.channel, FEDERATION)
        live.own_id = f"spiffe://{name}/spire/server"
        if live.server.published is not None and live.server.published.web.endpoints:
            live.url = f"https://127.0.0.1:{live.server.published.web.endpoints[0].address[1]}/"
            await settled(live)
        if polls:
            tasks.start(live.server.refresh.run(), "refresh")
        yield live
        tasks.stop()


async def settled(live):
    """Let the endpoint serve what memory holds."""
    bundle = live.server.published.bundle
    while bundle.watch.value is not live.state.bundles.own:
        await bundle.tick()


def related(to, **over):
    """The https_spiffe relationship with another server."""
    given = {"bundle_endpoint_url": to.url, "https_spiffe": {"endpoint_spiffe_id": to.own_id}, **over}
    return types_pb2.FederationRelationship(trust_domain=to.name, **given)


async def create(live, *relationships):
    request = trustdomain_pb2.BatchCreateFederationRelationshipRequest(federation_relationships=relationships)
    answer = await live.trust_domain.BatchCreateFederationRelationship(request, timeout=20)
    assert [one.status.message for one in answer.results] == ["OK"] * len(relationships)


async def refreshed(live, name):
    await live.trust_domain.RefreshBundle(trustdomain_pb2.RefreshBundleRequest(trust_domain=name), timeout=30)


async def state_of(live, name):
    request = federation_pb2.ListStatesRequest(trust_domain=name)
    (state,) = (await live.states.ListStates(request, timeout=10)).states
    return state


async def until(live, condition, seconds=30):
    """Wait until the state in memory fulfils a condition."""
    watch = live.server.store.state
    async with asyncio.timeout(seconds):
        version = watch.version
        while not condition(watch.value):
            version = await watch.changed(version)


async def invited(live, **over):
    return (await live.states.Invite(federation_pb2.InviteRequest(url=live.url, **over), timeout=10)).invitation


async def accepted(live, line, **over):
    offer = await live.states.Preview(federation_pb2.PreviewRequest(invitation=line), timeout=30)
    request = federation_pb2.AcceptRequest(
        invitation=line, fingerprints=[key.fingerprint for key in offer.keys], url=live.url, **over
    )
    return await live.states.Accept(request, timeout=30)
