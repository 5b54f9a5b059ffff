"""S1: every method of every service by every kind of caller, over the real sockets, against the table."""

import logging
from datetime import timedelta

import grpc
import grpc.aio
import pytest

from identity_server.domain import access
from identity_server.domain.access import ACCESS, CallerKind
from identity_server.rpc import services
from identity_server.rpc.health_api import SERVICE as HEALTH
from spiffe_core.crypto.keys import KeyKind, generate, to_pkcs8
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire.tls import TlsIdentity
from tests.authority import CA_USAGE, SERVER_AUTH, SpiffeTestCA
from tests.doubles.live_server import TD, entry, live_server, sign, wanted

OFFERED = {HEALTH.full_name, *(one.full_name for one in vars(services).values() if hasattr(one, "methods_by_name"))}
METHODS = sorted(name for name in ACCESS if name.split("/")[1] in OFFERED)
STREAMS = {"SyncAuthorizedEntries", "AttestAgent", "Watch"}


@pytest.fixture
async def live():
    level = logging.getLogger().level  # the matrix resets the server's log too
    async with live_server() as server:
        yield server
    logging.getLogger().setLevel(level)


async def answer(channel, method):
    """The status of a call with an empty request."""
    try:
        if method.rsplit("/", 1)[1] in STREAMS:
            call = channel.stream_stream(method)(iter([b""]), timeout=10)
            async for _ in call:
                pass
        else:
            await channel.unary_unary(method)(b"", timeout=10)
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details()
    return "OK", ""


async def workload(live, **flags):
    """Somebody with a workload's SVID; `flags` may make its entry an administrator's."""
    agent = await live.join()
    (entry_id,) = await live.entries(entry("/".join(["", "somebody", *flags]), agent.path, **flags))
    key = generate(KeyKind.EC_P256)
    (result,) = await sign(agent, wanted(entry_id, key))
    return await live.agent_with(result.svid, key)


async def callers(live):
    """Kind -> the channel of such a caller, and as what the table knows it."""
    return {
        "local": (live.channel, {CallerKind.ANYONE, CallerKind.LOCAL}),
        "anonymous": ((await live.dial()).dialer.channel(), {CallerKind.ANYONE}),
        "agent": ((await live.join()).dialer.channel(), {CallerKind.ANYONE, CallerKind.AGENT}),
        "workload": ((await workload(live)).dialer.channel(), {CallerKind.ANYONE}),
        "downstream": (
            (await workload(live, downstream=True)).dialer.channel(),
            {CallerKind.ANYONE, CallerKind.DOWNSTREAM},
        ),
        "admin": ((await workload(live, admin=True)).dialer.channel(), {CallerKind.ANYONE, CallerKind.ADMIN}),
    }


async def test_the_matrix(live):
    """S1, S45: what the table does not allow is PermissionDenied; what it allows gets past the door."""
    for name, (channel, held) in (await callers(live)).items():
        for method in METHODS:
            code, text = await answer(channel, method)
            if held & ACCESS[method]:
                assert not text.startswith("authorization denied"), (name, method, code, text)
                assert code not in {"PERMISSION_DENIED", "UNAUTHENTICATED", "INTERNAL"}, (name, method, code, text)
            else:
                assert code == "PERMISSION_DENIED", (name, method, code, text)


async def test_downstream_servers_get_what_is_theirs_and_no_more(live):
    stubs = await workload(live, downstream=True)
    channel = stubs.dialer.channel()
    empty = await answer(channel, "/spire.api.server.svid.v1.SVID/NewDownstreamX509CA")
    assert empty[0] == "INVALID_ARGUMENT"  # let in, and an empty request has no CSR
    for method in ("entry.v1.Entry/ListEntries", "svid.v1.SVID/MintX509SVID", "agent.v1.Agent/BanAgent"):
        assert (await answer(channel, f"/spire.api.server.{method}"))[0] == "PERMISSION_DENIED"


async def test_an_administrator_who_loses_the_entry_loses_the_right_at_once(live):
    """S78, S2: per call, on an open connection; the local socket stays."""
    admin = await workload(live, admin=True)
    channel = admin.dialer.channel()
    method = "/spire.api.server.entry.v1.Entry/CountEntries"
    assert (await answer(channel, method))[0] == "OK"
    ids = [item.id for item in (await admin.entry.ListEntries(entry_pb2.ListEntriesRequest())).entries]
    await admin.entry.BatchDeleteEntry(entry_pb2.BatchDeleteEntryRequest(ids=ids))
    assert (await answer(channel, method))[0] == "PERMISSION_DENIED"
    assert (await answer(live.channel, method))[0] == "OK"


async def forged(case, live):
    """A certificate that proves nothing here, whose authority the server may even know."""
    ca = SpiffeTestCA("other.org" if case == "other trust domain" else "example.org")
    who = f"spiffe://{ca.trust_domain}/spire/agent/join_token/forged"
    if case in {"unknown authority", "other trust domain"}:
        return ca.issue(who)
    await live.server.store.execute(
        lambda uow: uow.bundles.put(uow.bundles.get(TD).with_x509_authority(ca.der))  # now the server knows it
    )
    past = ca.now - timedelta(hours=1)
    spoil = {
        "expired": {"not_before": past, "not_after": ca.now - timedelta(seconds=1)},
        "not yet valid": {"not_before": ca.now + timedelta(hours=1), "not_after": ca.now + timedelta(hours=2)},
        "a CA": {"ca": True, "usage": CA_USAGE},
        "two URIs": {"uris": (who, "spiffe://example.org/spire/server")},
        "no URI": {"uris": ()},
        "server only": {"eku": (SERVER_AUTH,)},
    }[case]
    return ca.issue(who, **spoil)


@pytest.mark.parametrize(
    "case",
    [
        "unknown authority",
        "other trust domain",
        "expired",
        "not yet valid",
        "a CA",
        "two URIs",
        "no URI",
        "server only",
    ],
)
async def test_certificates_that_prove_nothing_do_not_get_in(live, case):
    """S1, S3, N-X: refused in the handshake, for every method, also those open to strangers."""
    svid = await forged(case, live)
    stubs = await live.dial(TlsIdentity(svid.chain, to_pkcs8(svid.private_key)))
    for method in METHODS:
        assert (await answer(stubs.dialer.channel(), method))[0] == "UNAVAILABLE", method


async def test_a_good_certificate_of_an_agent_without_a_record_is_not_attested(live):
    """spire_wire section 2: the same forger with nothing spoiled gets through the handshake and no further."""
    ca = SpiffeTestCA("example.org")
    await live.server.store.execute(lambda uow: uow.bundles.put(uow.bundles.get(TD).with_x509_authority(ca.der)))
    svid = ca.issue("spiffe://example.org/spire/agent/join_token/forged")
    stubs = await live.dial(TlsIdentity(svid.chain, to_pkcs8(svid.private_key)))
    channel = stubs.dialer.channel()
    assert (await answer(channel, "/spire.api.server.bundle.v1.Bundle/GetBundle"))[0] == "OK"
    assert await answer(channel, "/spire.api.server.entry.v1.Entry/GetAuthorizedEntries") == (
        "PERMISSION_DENIED",
        "agent not attested",
    )


async def test_a_method_nobody_knows_is_unimplemented(live):
    for channel in (live.channel, (await live.dial()).dialer.channel()):
        for method in ("/spire.api.server.entry.v1.Entry/DropAll", "/other.Service/Method"):
            assert (await answer(channel, method))[0] == "UNIMPLEMENTED"


async def test_a_handler_without_a_rule_is_refused_and_never_runs(live, monkeypatch):
    """S1, S77: deny by default, at run time too."""
    table = dict(ACCESS)
    method = "/spire.api.server.entry.v1.Entry/CountEntries"
    del table[method]
    monkeypatch.setattr(access, "ACCESS", table)
    assert (await answer(live.channel, method))[0] == "INTERNAL"
