"""What is fetched from another trust domain is in force at workloads at once: through the push stream, polls an hour apart."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from spiffe_core.bundle import TrustBundle
from spiffe_core.bundle_document import dump_bundle
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.wire._gen.spire.api.types import federationrelationship_pb2 as types_pb2
from spiffe_core.wire.convert import bundle_to_proto
from tests.authority import SpiffeTestCA
from tests.doubles.bundle_endpoint import Endpoint, answer
from tests.doubles.federated import create, domain, refreshed
from tests.doubles.live_agent import OWN, agent_folder, live_agent, pem_bundle, token_file
from tests.doubles.live_server import entry

FED = TrustDomain("fed.test")
OLD, NEW = SpiffeTestCA("fed.test"), SpiffeTestCA("fed.test")
BOUND = 10.0
"""Seconds within which a busy machine has it in force; an idle one needs a few milliseconds."""


async def test_a_fetched_bundle_and_its_end_reach_a_workloads_open_stream():
    """FED-18, FED-46, TDB-15, N-B-07, A9: a new root, then a bundle without keys, which takes all trust away."""
    served = [OLD.bundle(sequence=1)]
    svid = OLD.issue("spiffe://fed.test/spire/server")
    with Endpoint(svid, lambda _: answer(dump_bundle(served[0]))) as endpoint:
        async with domain("example.org", polls=False) as live, agent_folder() as folder:
            relationship = types_pb2.FederationRelationship(
                trust_domain="fed.test",
                bundle_endpoint_url=endpoint.url,
                https_spiffe={"endpoint_spiffe_id": "spiffe://fed.test/spire/server"},
                trust_domain_bundle=bundle_to_proto(served[0]),
            )
            await create(live, relationship)
            settings = {
                "trust_bundle_path": str(pem_bundle(live, folder)),
                "join_token_file": str(token_file(folder, await live.token())),
                "sync_interval": "1h",
            }
            async with live_agent(folder, live.server.address, **settings) as agent:
                await agent.until_joined()
                await live.entries(entry(parent=agent.path, selectors=OWN, federates_with=["fed.test"]))
                await agent.until(lambda: agent.agent.workloads.held_count == 1)
                states = agent.client.watch_x509()

                async def until_roots(*wanted):
                    async with asyncio.timeout(BOUND):
                        async for context in states:
                            known = context.bundles.get(FED)
                            if set(known.x509_roots if known is not None else ()) == set(wanted):
                                return

                await until_roots(OLD.der)
                served[0] = OLD.bundle(NEW, sequence=2)
                await refreshed(live, "fed.test")
                await until_roots(OLD.der, NEW.der)
                served[0] = replace(TrustBundle(FED), sequence=3)
                await refreshed(live, "fed.test")
                await until_roots()
                await states.aclose()
