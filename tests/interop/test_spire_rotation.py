"""A forced rotation of our server's authorities below a stock spire-agent costs nothing either (spire_features section 20)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from deploy.demo.stack import LocalStack
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.wire.channels import unix_channel
from tests.doubles.live_server import Stubs
from tests.doubles.rotation_calls import AgentCalls, JwtChecks
from tests.doubles.rotation_load import Handshakes, Streams
from tests.doubles.rotation_steps import ByCall, ByCommand, rotate_tokens, rotate_x509
from tests.interop.peers import until
from tests.interop.spire import Commands, Failed, StockAgent, spire_binaries

pytestmark = pytest.mark.slow

DOMAIN = "rotation.test"
STREAMS = 50


@pytest.fixture
def server(folder: Path) -> Iterator[LocalStack]:
    del folder
    with LocalStack(DOMAIN) as stack:
        stack.start_server()
        (stack.folder / "bundle.pem").write_text(stack.admin("bundle", "show"))
        yield stack


@pytest.fixture
def agent(server: LocalStack, folder: Path) -> Iterator[StockAgent]:
    stock = StockAgent(
        spire_binaries(), folder / "stock", trust_domain=DOMAIN, port=server.port, bundle=server.folder / "bundle.pem"
    )
    try:
        stock.start(server.admin_json("token", "generate", "-spiffeID", server.node_id)["value"])
        paths = ("/web", "/db")
        for path in paths:
            server.register(path, f"unix:uid:{os.getuid()}")
        until(lambda: all(f'"spiffe_id":"spiffe://{DOMAIN}{path}"' in fetch(stock) for path in paths))
        yield stock
    finally:
        stock.close()


def fetch(agent: StockAgent) -> str:
    try:
        return Commands(agent.program, agent.socket)("api", "fetch", "x509", "-output", "json")
    except Failed:  # not yet
        return ""


def serials(server: LocalStack) -> set[str]:
    """Those of the agents' own SVIDs that are in use."""
    return {one["x509svid_serial_number"] for one in server.admin_json("agent", "list")["agents"]}


async def renewed(server: LocalStack, before: set[str]) -> None:
    """A stock agent replaces its own SVID within seconds after those of its workloads; without a new one it is lost."""
    async with asyncio.timeout(30):
        while await asyncio.to_thread(serials, server) & before:
            await asyncio.sleep(0.2)


async def test_a_stock_agent_and_its_workloads_follow_a_forced_rotation(server: LocalStack, agent: StockAgent) -> None:
    """X.509 by SPIRE's own command line, JWT by the API: nothing fails, and every stream moves before revoke."""
    token = server.admin_json("token", "generate")["value"]
    async with (
        unix_channel(server.admin_socket) as admin,
        Streams(agent.socket, STREAMS) as streams,
        Handshakes(streams, (0, "/web"), (STREAMS - 1, "/db")) as handshakes,
        AgentCalls(server.port, token, lambda: streams.newest(1).bundles) as calls,
        JwtChecks(agent.socket, TrustDomain(DOMAIN)) as jwt,
    ):
        loads = (handshakes, calls, jwt)
        await asyncio.gather(*(one.more(3) for one in loads))
        by_command = ByCommand(Commands(agent.program.with_name("spire-server"), server.admin_socket).json)
        by_call = ByCall(Stubs(admin))
        new_jwt = await by_call("jwt", "prepare")
        await rotate_x509(
            by_command, streams, handshakes, calls, before_revoke=partial(renewed, server, serials(server))
        )
        await rotate_tokens("jwt", new_jwt, by_call, jwt)
        await asyncio.gather(*(one.more(3) for one in loads))
        assert [failure for one in (streams, *loads) for failure in one.failures] == []
