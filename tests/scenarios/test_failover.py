"""An agent whose server dies goes on with another one, and its workloads notice nothing (A9, R20, R34)."""

import asyncio
import os

import pytest

from spiffe_core.wire._gen import workload_pb2
from spiffe_core.wire.channels import unix_channel
from spiffe_core.wire.services import Stub
from tests.databases import url_of
from tests.doubles.server_fleet import ServerFleet
from workload_api.client import METADATA
from workload_api.service import SERVICE as WORKLOAD_API

OWN = f"unix:uid:{os.getuid()}"


async def until(stream, *wanted):
    """Read the open stream until it shows exactly these identities; what it showed on the way."""
    shown = []
    while not shown or sorted(shown[-1]) != sorted(wanted):
        answer = await asyncio.wait_for(stream.read(), 40)
        shown.append({one.spiffe_id.rpartition("/")[2]: one.x509_svid for one in answer.svids})
    return shown


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_the_agents_server_is_killed_and_a_change_on_the_other_reaches_the_open_stream(tmp_path):
    """A9: with kill -9; the position is unknown to the other server, so stamps are compared and no SVID is made anew."""
    with ServerFleet(url_of("postgresql", tmp_path), 2, sync_interval="1h").start() as fleet:
        fleet.first.register("/always", OWN)
        async with unix_channel(fleet.first.api_socket) as channel:
            stream = Stub(channel, WORKLOAD_API).FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=METADATA)
            before = (await until(stream, "always"))[-1]
            killed = fleet.chosen()
            other = next(one for one in fleet.stacks if one is not killed)
            killed.server.kill()
            other.register("/later", OWN)
            shown = await until(stream, "always", "later")
            assert all(one["always"] == before["always"] for one in shown), "what was served stays as it was"
            assert fleet.chosen() is other
            stream.cancel()
        text = fleet.agent.log.read_text()
        assert text.count("joined the trust domain") == 1
        assert "unavailable" not in text.rpartition("connected to")[2], "nothing went wrong after the move"
