"""A forced rotation of every kind of authority while 1,000 streams are open: it costs no failed handshake (issue, A15).

Real processes: a server, an agent, 1,000 Workload API streams; mutual TLS between two workloads with the newest SVIDs
of their streams and with older ones; a second agent with a new connection for every call; tokens fetched and checked.
"""

import asyncio
import os
import time

import pytest

from deploy.demo.stack import LocalStack
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.wire._gen.spire.api.server.localauthority.v1 import localauthority_pb2 as pb
from spiffe_core.wire.channels import unix_channel
from tests.doubles.live_server import Stubs
from tests.doubles.rotation_calls import AgentCalls, JwtChecks, WitChecks
from tests.doubles.rotation_load import SLOW_SECONDS, Handshakes, Streams

STREAMS = 1_000
DOMAIN = "rotation.test"
FIELDS = {"prepare": "prepared_authority", "activate": "activated_authority", "taint": "tainted_authority", "revoke": "revoked_authority"}  # fmt: skip


class ByCommand:
    """`identity-server localauthority` as an operator uses it."""

    def __init__(self, stack):
        self.stack = stack

    async def active(self, kind):
        shown = await asyncio.to_thread(self.stack.admin_json, "localauthority", kind, "show")
        return shown["active"]["authority_id"]

    async def __call__(self, kind, verb, authority_id=""):
        words = ["localauthority", kind, verb, *(["-authorityID", authority_id] if authority_id else [])]
        shown = await asyncio.to_thread(self.stack.admin_json, *words)
        return shown[FIELDS[verb]]["authority_id"]


class ByCall:
    """The LocalAuthority service, as an administrator's program uses it."""

    def __init__(self, stubs):
        self.stubs = stubs

    async def active(self, kind):
        request = getattr(pb, f"Get{kind.upper()}AuthorityStateRequest")()
        answer = await getattr(self.stubs.local, f"Get{kind.upper()}AuthorityState")(request, timeout=30)
        return answer.active.authority_id

    async def __call__(self, kind, verb, authority_id=""):
        name = f"{verb.capitalize()}{kind.upper()}Authority"
        request = getattr(pb, f"{name}Request")(**({"authority_id": authority_id} if authority_id else {}))
        answer = await getattr(self.stubs.local, name)(request, timeout=30)
        return getattr(answer, FIELDS[verb]).authority_id


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
            by_command, by_call = ByCommand(stack), ByCall(Stubs(admin))
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


async def rotate_x509(act, streams, handshakes, calls):
    old = await act.active("x509")
    await streams.until_under(old)
    new = await act("x509", "prepare")
    await streams.until_roots({old, new})
    assert await act("x509", "activate", new) == new
    assert await act.active("x509") == new
    await streams.until_under(old)  # activation alone replaces nothing: SVIDs change in their own time
    began = time.monotonic()
    await act("x509", "taint", old)
    answered = time.monotonic()
    await streams.until_under(new)
    rotated = time.monotonic()
    await calls.until_under(new)
    await handshakes.after(SLOW_SECONDS)  # until slow workloads have moved too
    assert handshakes.failures == []
    await act("x509", "revoke", old)
    gone = await streams.until_roots({new}, {old})
    await asyncio.gather(handshakes.more(5), calls.more(5))
    assert handshakes.pairs[old, old] > 0 < handshakes.pairs[new, new]
    server = next(at for at, issuer in calls.server_issuers if issuer == new)
    print(
        f"\nX.509: taint to the last of {STREAMS} streams {rotated - began:.2f} s (from the answer: "
        f"{rotated - answered:.2f} s), to the server's own certificate {max(0.0, server - began):.2f} s; revoke to "
        f"every bundle {gone:.2f} s; {handshakes.count * 4} handshakes, {calls.count} agent connections"
    )


async def rotate_tokens(kind, new, act, tokens):
    old = await act.active(kind)
    await tokens.until_signed_by(old)
    await tokens.until(lambda: {old, new} <= tokens.keys.keys())
    assert await act(kind, "activate", new) == new
    await tokens.more(3)
    began = time.monotonic()
    await act(kind, "taint", old)
    await tokens.until_signed_by(new)
    moved = time.monotonic() - began
    await tokens.after(SLOW_SECONDS)
    assert tokens.failures == []
    await act(kind, "revoke", old)
    await tokens.until(lambda: new in tokens.keys and old not in tokens.keys)
    await tokens.more(5)
    assert tokens.checked[old] > 0 < tokens.checked[new]
    print(f"{kind.upper()}: taint to a token of the new key {moved:.2f} s; {tokens.checked.total()} tokens checked")
