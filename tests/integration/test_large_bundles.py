"""A trust bundle of 200 roots and 2 MB, and 200 federated trust domains: an agent has all of it at once (R49)."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from identity_server.domain.publication import BundleFormat, publication_of
from identity_server.publish.config_map import MAX_CONTENT_BYTES
from identity_server.services.publish_bundle import PublishBundle
from tests.doubles.large_bundles import DOMAINS, NAMES, R49_SECONDS, fill
from tests.doubles.live_agent import OWN, agent_folder, live_agent, pem_bundle, token_file
from tests.doubles.live_server import entry, live_server
from workload_api.client import Redacted

pytestmark = pytest.mark.slow

WAIT_SECONDS = 50.0


async def first_context(agent):
    """The first update that holds an identity."""
    async for context in agent.client.watch_x509():
        if not isinstance(context, Redacted):
            return context
    raise AssertionError("the stream ended")


@pytest.mark.parametrize("push", [True, False], ids=["pushed", "polled"])
async def test_an_agent_gets_all_of_it_within_the_time(push):
    """R49: no message is too large on any way, and the workload verifies peers of all 200 domains.

    The time is CPU time of server, agent and workload together, which others on the machine do not change.
    """
    async with agent_folder() as folder, live_server() as live:
        await fill(live.bundle)
        own = live.state.bundles.own
        assert sum(map(len, own.x509_roots)) > 1_900_000
        token, bundle = token_file(folder, await live.token()), pem_bundle(live, folder)
        began = time.process_time()
        async with live_agent(
            folder, live.server.address, trust_bundle_path=str(bundle), join_token_file=str(token), push=push
        ) as agent:
            await agent.until_joined()
            await live.entries(entry(path="/web", parent=agent.path, selectors=OWN, federates_with=NAMES))
            agent.sync_now()
            async with asyncio.timeout(WAIT_SECONDS):
                context = await first_context(agent)
                while len(context.bundles.federated) < DOMAINS:
                    context = await first_context(agent)
            took = time.process_time() - began
            assert set(context.bundles.own.x509_roots) == set(own.x509_roots)
            assert {str(name) for name in context.bundles.federated} == set(NAMES)
            assert took < R49_SECONDS


async def test_it_is_published_and_a_place_that_cannot_hold_it_says_so(tmp_path: Path):
    """A file takes it; the limit of a ConfigMap is named before anything is sent (see test_publish_config_map)."""
    publish = {"file": {"here": {"path": str(tmp_path / "bundle.json"), "format": "spiffe"}}}
    async with live_server(publish=publish) as live:
        await fill(live.bundle)
        ours = publication_of(live.state.bundles.own, BundleFormat.SPIFFE)
        assert len(ours.content) > MAX_CONTENT_BYTES
        publishing: PublishBundle = live.server.publishing
        (target,) = (one.order.target for one in publishing._targets)
        await asyncio.to_thread(target.put, ours)
        assert (tmp_path / "bundle.json").read_bytes() == ours.content
