"""The steps of a forced rotation under load, by command or by call, each checked (spire_features section 20)."""

from __future__ import annotations

import asyncio
import time

from spiffe_core.wire._gen.spire.api.server.localauthority.v1 import localauthority_pb2 as pb
from tests.doubles.rotation_load import SLOW_SECONDS

FIELDS = {"prepare": "prepared_authority", "activate": "activated_authority", "taint": "tainted_authority", "revoke": "revoked_authority"}  # fmt: skip


class ByCommand:
    """The command line as an operator uses it, ours or SPIRE's: `words` are run, the answer is JSON."""

    def __init__(self, run):
        self.run = run

    async def active(self, kind):
        shown = await asyncio.to_thread(self.run, "localauthority", kind, "show")
        return shown["active"]["authority_id"]

    async def __call__(self, kind, verb, authority_id=""):
        words = ["localauthority", kind, verb, *(["-authorityID", authority_id] if authority_id else [])]
        shown = await asyncio.to_thread(self.run, *words)
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


async def rotate_x509(act, streams, handshakes, calls, *, before_revoke=None):
    """Through all steps under load. `before_revoke` returns when those who are not looked at here have moved too."""
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
    if before_revoke is not None:
        await before_revoke()
    await act("x509", "revoke", old)
    gone = await streams.until_roots({new}, {old})
    await asyncio.gather(handshakes.more(5), calls.more(5))
    assert handshakes.pairs[old, old] > 0 < handshakes.pairs[new, new]
    server = next(at for at, issuer in calls.server_issuers if issuer == new)
    print(
        f"\nX.509: taint to the last of {streams.count} streams {rotated - began:.2f} s (from the answer: "
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
