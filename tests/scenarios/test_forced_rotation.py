"""A forced rotation of every kind of authority while 1,000 streams are open: it costs no failed handshake (issue, A15).

Real processes: a server, an agent, 1,000 Workload API streams; mutual TLS between two workloads with the newest SVIDs
of their streams and with older ones; a second agent with a new connection for every call; tokens fetched and checked.
"""

import asyncio
import os

import pytest

from deploy.demo.stack import LocalStack
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.wire.channels import unix_channel
from tests.doubles.live_server import Stubs
from tests.doubles.rotation_calls import AgentCalls, JwtChecks, WitChecks
from tests.doubles.rotation_load import Handshakes, Streams
from tests.doubles.rotation_steps import ByCall, ByCommand, rotate_tokens, rotate_x509

STREAMS = 1_000
DOMAIN = "rotation.test"


def started():
    stack = LocalStack(DOMAIN, server="[wit]\nenabled = true", agent="[wit]\nenabled = true", sync_interval="500ms")
    try:
        stack.start()
        for path in ("/web", "/db"):
            stack.register(path, f"unix:uid:{os.getuid()}")
    except BaseException:
        stack.close()
        raise
    return stack


@pytest.mark.slow
@pytest.mark.timeout(120)  # half a minute; a busy machine may take longer
async def test_a_forced_rotation_under_a_thousand_streams_costs_nothing():
    """Issue "done when": X.509 by command, JWT by the API, WIT by command; nothing fails, everyone moves before revoke."""
    stack = await asyncio.to_thread(started)
    try:
        token = (await asyncio.to_thread(stack.admin_json, "token", "generate"))["value"]
        async with (
            unix_channel(stack.admin_socket) as admin,
            Streams(stack.api_socket, STREAMS) as streams,
            Handshakes(streams, (0, "/web"), (STREAMS - 1, "/db")) as handshakes,
            AgentCalls(stack.port, token, lambda: streams.newest(1).bundles) as calls,
            JwtChecks(stack.api_socket, TrustDomain(DOMAIN)) as jwt,
            WitChecks(stack.api_socket, TrustDomain(DOMAIN)) as wit,
        ):
            loads = (handshakes, calls, jwt, wit)
            await asyncio.gather(*(one.more(3) for one in loads))
            by_command, by_call = ByCommand(stack.admin_json), ByCall(Stubs(admin))
            new_jwt, new_wit = await by_call("jwt", "prepare"), await by_command("wit", "prepare")
            await rotate_x509(by_command, streams, handshakes, calls)
            await rotate_tokens("jwt", new_jwt, by_call, jwt)
            await rotate_tokens("wit", new_wit, by_command, wit)
            await asyncio.gather(*(one.more(3) for one in loads))
            assert [failure for one in (streams, *loads) for failure in one.failures] == []
        log = stack.agent.log.read_text()
        assert "synchronisation failed" not in log
        assert "could not" not in log
    finally:
        await asyncio.to_thread(stack.close)
