"""What a tainted authority still does, and who leaves it at once (spire_features sections 13.1 and 20; A15)."""

import asyncio
import time

import pytest

from identity_server import daemon
from identity_server.domain.published import with_tainted
from spiffe_core.crypto.keys import KeyKind, generate
from spiffe_core.errors import Unavailable
from spiffe_core.jwt_svid import Audience
from spiffe_core.spiffe_id import SpiffeId
from spiffe_core.wire._gen.spire.api.server.localauthority.v1 import localauthority_pb2 as pb
from spiffe_core.x509_verify import verify_x509_svid
from tests.doubles.live_server import TD, live_server

WEB = SpiffeId(TD, "/web")
KEY = generate(KeyKind.EC_P256).public_key()


@pytest.fixture
async def live():
    async with live_server(wit={"enabled": True}) as server:
        yield server


async def rotated(live):
    """Prepare and activate; the old authority and the new one."""
    old = live.server.authorities.active.authority_id
    fresh = (await live.local.PrepareX509Authority(pb.PrepareX509AuthorityRequest())).prepared_authority.authority_id
    live.clock.move(11)
    await live.local.ActivateX509Authority(pb.ActivateX509AuthorityRequest(authority_id=fresh))
    return old, fresh


def anchor_of(live):
    bundles = live.state.bundles
    anchor = verify_x509_svid(live.server.own.identity.chain, bundles.get, now=live.clock.now()).anchor_der
    return next(one.key_id for one in bundles.own.x509_authorities if one.der == anchor)


async def test_the_servers_own_certificate_follows_taint_at_once(live, monkeypatch):
    """Section 20: woken by the change itself, not by a timer; activation alone replaces nothing."""
    monkeypatch.setattr(daemon, "OWN_IDENTITY_SECONDS", 3600.0)
    loop = asyncio.ensure_future(daemon.keep_own_identity(live.server))
    try:
        old, fresh = await rotated(live)
        before = live.server.own.identity
        assert anchor_of(live) == old
        began = time.monotonic()
        await live.local.TaintX509Authority(pb.TaintX509AuthorityRequest(authority_id=old))
        async with asyncio.timeout(20):
            while live.server.own.identity is before:
                await asyncio.sleep(0.001)
        print(f"taint to the server's new certificate: {time.monotonic() - began:.3f} s")
        assert anchor_of(live) == fresh
    finally:
        loop.cancel()


async def taint_by_force(live, kind, authority_id):
    """What no command allows: the bundle alone says it."""
    await live.server.store.execute(lambda uow: uow.bundles.put(with_tainted(uow.bundles.get(TD), kind, authority_id)))


async def test_a_tainted_authority_signs_nothing_and_is_replaced_at_once(live):
    """Whoever tainted it: from that state on the key is not used, and the schedule makes another one (R33)."""
    authorities = live.server.authorities
    issuers = authorities.issuers
    first = {kind: authorities.slots(kind).active.authority_id for kind in ("x509", "jwt", "wit")}
    for kind, authority_id in first.items():
        await taint_by_force(live, kind, authority_id)
    with pytest.raises(Unavailable):
        issuers.x509.issue("workload", WEB, KEY)
    with pytest.raises(Unavailable):
        issuers.jwt.issue(WEB, Audience(("a",)))
    await authorities.tick()
    assert authorities.last_error is None
    for kind, authority_id in first.items():
        slots = authorities.slots(kind)
        assert slots.active.authority_id != authority_id
        assert slots.find(authority_id).status.value == "old"
    assert issuers.x509.issue("workload", WEB, KEY).spiffe_id == WEB
    assert issuers.jwt.issue(WEB, Audience(("a",)))[1].key_id == authorities.slots("jwt").active.authority_id


async def test_a_prepared_authority_that_was_tainted_is_never_activated(live):
    """Nothing tainted begins to sign."""
    authorities = live.server.authorities
    prepared = await authorities.prepare("x509", "test")
    await taint_by_force(live, "x509", prepared.authority_id)
    live.clock.move(11)
    await authorities.tick()
    slots = authorities.slots("x509")
    assert slots.prepared is None
    assert slots.active.authority_id != prepared.authority_id


async def test_the_servers_own_certificate_follows_a_clock_that_fell_back(live):
    """R18: the authority is old enough to sign on; a certificate that begins two hours from now is refused until then."""
    live.clock.move(3 * 3600)
    await live.server.own.tick()
    later = live.server.own.identity
    live.clock.move(-2 * 3600)
    assert await live.server.own.tick()
    assert live.server.own.identity is not later
    verify_x509_svid(live.server.own.identity.chain, live.state.bundles.get, now=live.clock.now())
    assert not await live.server.own.tick(), "once, not in a loop"
