"""A stock spire-agent before two of our servers on one database, each of which learns everything late (A8)."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tests.databases import SHARED_KINDS, url_of
from tests.doubles.balancer import balanced
from tests.doubles.held_follower import lagging, seen
from tests.doubles.live_agent import pem_bundle
from tests.doubles.live_server import entry, live_server, spiffe_id
from tests.interop.spire import StockAgent, fetched, spire_binaries

pytestmark = pytest.mark.slow

LATE = 1.5
"""Seconds by which each server's memory is behind."""
AGENT_TTL = 20
"""The stock agent renews at half of it; it looks every five seconds, so five are left for a busy machine."""
FATAL = ("agent is not attested", "agent is not active", "agent is banned", "needs to re-attest", "removing svid")
"""What it logs, in any case of letters, when a server's answer made it give its SVID up."""


@pytest.mark.parametrize("kind", SHARED_KINDS)
async def test_it_joins_renews_and_serves_whichever_server_it_meets(kind: str, folder: Path, tmp_path: Path) -> None:
    """Three connections a minute to each: attested on one, it calls the other; renewed on one, it calls the other."""
    binaries = spire_binaries()
    settings = {"database": {"url": url_of(kind, tmp_path)}, "svid": {"agent_ttl": f"{AGENT_TTL}s"}}
    async with live_server(**settings) as one, live_server(**settings) as two:
        for live in (one, two):
            await seen(live.server.store, lambda state: len(state.bundles.own.x509_roots) == 2)
        async with (
            lagging(one.server.store, LATE),
            lagging(two.server.store, LATE),
            balanced(one.server.address, two.server.address) as balancer,
        ):
            node = folder / kind
            node.mkdir()
            agent = StockAgent(
                binaries,
                node / "agent",
                trust_domain="example.org",
                port=balancer.port,
                bundle=pem_bundle(one, node),
            )
            try:
                value = await one.token(agent_id=spiffe_id("/nodes/stock"))
                await asyncio.to_thread(agent.start, value)
                selector = ("unix", f"path:{agent.program.resolve()}")
                await one.entries(entry("/web", "/nodes/stock", (selector,)))
                serials, served, end = set(), 0, time.monotonic() + 36
                while time.monotonic() < end:
                    (known,) = one.state.agents.values()
                    serials.add(known.serial)
                    found = await asyncio.to_thread(fetched, agent.program, agent.socket)
                    served += [svid["spiffe_id"] for svid in found] == ["spiffe://example.org/web"]
                    assert agent.daemon is not None
                    assert agent.daemon.process.poll() is None, agent.daemon.tail()
                    await asyncio.sleep(0.5)
                assert len(serials) >= 3, "it renewed its own SVID meanwhile"
                assert served >= 10
                assert min(balancer.served) >= 3, "it was on both"
                assert not [line for line in agent.log.lower().splitlines() if any(text in line for text in FATAL)]
            finally:
                await asyncio.to_thread(agent.close)
