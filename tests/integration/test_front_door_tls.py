"""The TLS listener and the dialer: a peer is its SPIFFE ID, proven in this very handshake, or nobody (A5, S2, S3)."""

import asyncio
import contextlib
import socket
import ssl
from datetime import timedelta

import grpc
import pytest

from spiffe_core.bundle import BundleSet
from spiffe_core.errors import Exhausted
from spiffe_core.spiffe_id import SpiffeId
from spiffe_core.wire import shares, tls_admission
from spiffe_core.wire.peer import TlsPeer
from spiffe_core.wire.tls import TlsIdentity, client_context, load_identity, server_context
from tests.authority import SERVER_AUTH, SpiffeTestCA
from tests.doubles.tls_domain import AGENT_ID, HELLO, SERVER_ID, dialing, identity_of, listening, refused, who


async def admitted(port, context, session=None):
    """Handshake with Python's own ssl; whether the listener went on to speak HTTP/2. Returns (admitted, socket's facts)."""

    def attempt():
        with socket.create_connection(("127.0.0.1", port), timeout=5) as raw:
            try:
                with context.wrap_socket(raw, server_hostname="x", session=session) as tls:
                    tls.sendall(HELLO)
                    answer = tls.recv(9)
                    return bool(answer), tls.session, tls.session_reused, tls.version()
            except (ssl.SSLError, ConnectionError) as error:
                return False, None, None, str(error)

    return await asyncio.to_thread(attempt)


async def test_a_client_is_its_verified_id_and_one_without_certificate_is_anonymous():
    """One port, optional client certificate (spire_wire 1.1)."""
    async with listening() as domain:
        async with dialing(domain, domain.ca.issue(AGENT_ID)) as dialer:
            assert await who(dialer) == f"tls {AGENT_ID}"
        async with dialing(domain) as dialer:
            assert await who(dialer) == "tls anonymous"


async def test_the_peer_value_holds_what_authorisation_needs():
    async with listening() as domain:
        svid = domain.ca.issue(AGENT_ID)
        async with dialing(domain, svid) as dialer:
            await who(dialer)
            (link,) = domain.door._links.values()
            assert link.peer == TlsPeer(
                link.peer.address, AGENT_ID, svid.chain[0], str(svid.leaf.serial_number), svid.not_after, domain.ca.der
            )


def bad_clients():
    ca, stranger, other = SpiffeTestCA("example.org"), SpiffeTestCA("example.org"), SpiffeTestCA("fed.test")
    past = {"not_before": ca.now - timedelta(hours=2), "not_after": ca.now - timedelta(hours=1)}
    two = ("spiffe://example.org/a", "spiffe://example.org/b")
    unrelated = ca.issue(AGENT_ID)
    return (
        ca,
        other,
        {
            "N-X-01 unknown CA of the same name": stranger.issue(AGENT_ID),
            "N-X-02 expired": ca.issue(AGENT_ID, **past),
            "N-X-04 not yet valid": ca.issue(AGENT_ID, not_before=ca.now + timedelta(hours=1)),
            "N-X-06 CA:TRUE leaf": ca.issue(AGENT_ID, ca=True),
            "N-X-07 keyCertSign": ca.issue(AGENT_ID, usage=frozenset({"digital_signature", "key_cert_sign"})),
            "N-X-09 two URIs": ca.issue(AGENT_ID, uris=two),
            "N-X-10 a foreign URI besides": ca.issue(AGENT_ID, uris=(str(AGENT_ID), "https://example.org/")),
            "N-X-12 DNS only": ca.issue(AGENT_ID, uris=(), dns=("agent.example.org",)),
            "N-X-15 no path": ca.issue("spiffe://example.org/x", uris=("spiffe://example.org",)),
            "N-X-18 another domain's ID under this CA": ca.issue("spiffe://fed.test/w"),
            "N-X-18 this domain's ID under another's CA": other.issue("spiffe://example.org/w"),
            "N-X-19 no bundle for the domain": ca.issue("spiffe://nowhere.test/w"),
            "N-X-28 serverAuth only": ca.issue(AGENT_ID, eku=(SERVER_AUTH,)),
            "N-X-32 the CA itself": type(unrelated)(AGENT_ID, (ca.der,), ca.key),
        },
    )


BAD_CA, BAD_OTHER, BAD_CLIENTS = bad_clients()


@pytest.mark.parametrize("case", sorted(BAD_CLIENTS))
async def test_a_client_certificate_that_breaks_a_rule_ends_the_connection(case):
    """S3, N-X: never "anonymous" either; the same listener serves the valid counterpart before and after."""
    async with listening(federated=[BAD_OTHER]) as domain:
        domain.bundles = BundleSet(BAD_CA.bundle(), {BAD_OTHER.trust_domain: BAD_OTHER.bundle()})
        domain.identity = identity_of(BAD_CA.issue(SERVER_ID))
        async with dialing(domain, BAD_CA.issue(AGENT_ID)) as good:
            assert await who(good) == f"tls {AGENT_ID}"
            async with dialing(domain, BAD_CLIENTS[case]) as bad:
                await refused(bad)
            assert await who(good) == f"tls {AGENT_ID}"
        assert domain.door.refused.total() >= 1


async def test_a_federated_peer_is_proven_by_its_own_domains_bundle():
    """N-X-18's positive control: the union of roots is loaded, each counts for its own domain."""
    fed = SpiffeTestCA("fed.test")
    async with listening(federated=[fed]) as domain:
        async with dialing(domain, fed.issue("spiffe://fed.test/admin")) as dialer:
            assert await who(dialer) == "tls spiffe://fed.test/admin"


async def test_a_certificate_without_its_key_does_not_get_through():
    """N-X-34."""
    async with listening() as domain:
        context = client_context(None, domain.ca.bundle().x509_roots)
        thief = domain.ca.issue(AGENT_ID)
        with pytest.raises(ssl.SSLError):
            load_identity(context, TlsIdentity(thief.chain, domain.ca.issue(AGENT_ID).key))


@pytest.mark.parametrize("tickets", [False, True], ids=["as it is", "even if the library gave tickets"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["tls12", "tls13"])
async def test_a_session_is_not_resumed_before_or_after_its_authority_is_revoked(version, tickets, monkeypatch):
    """S2, N-X-37: what was verified then is not believed now. Two guards: no tickets, and no belief in resumption."""
    if tickets:

        def generous(identity, roots, **options):
            context = server_context(identity, roots, **options)
            context.options &= ~ssl.OP_NO_TICKET
            return context

        monkeypatch.setattr(tls_admission, "server_context", generous)
    async with listening() as domain:
        svid = domain.ca.issue(AGENT_ID)
        context = client_context(identity_of(svid), domain.ca.bundle().x509_roots)
        context.minimum_version = context.maximum_version = version
        context.options &= ~ssl.OP_NO_TICKET
        ok, session, reused, _ = await admitted(domain.port, context)
        assert (ok, reused) == (True, False)
        again, _, reused, _ = await admitted(domain.port, context, session)
        assert again is not (tickets and version is ssl.TLSVersion.TLSv1_2)
        assert not (again and reused)
        fresh = SpiffeTestCA("example.org")
        domain.identity = identity_of(fresh.issue(SERVER_ID))
        domain.bundles = BundleSet(fresh.bundle(), {})
        context.verify_mode = ssl.CERT_NONE
        assert not (await admitted(domain.port, context, session))[0]
        anonymous = client_context(None, None)
        assert (await admitted(domain.port, anonymous))[0], "the listener itself goes on"


async def test_an_open_connection_ends_when_its_authority_leaves_the_bundle():
    """S2: `close_where` cuts the streams of a revoked authority, and only those."""
    async with listening() as domain:
        old, new = domain.ca, SpiffeTestCA("example.org")
        domain.bundles = BundleSet(old.bundle(new), {})
        async with dialing(domain, old.issue(AGENT_ID)) as doomed, dialing(domain, new.issue(AGENT_ID)) as safe:
            streams = [d.channel().unary_stream("/door.Test/Stream")(b"") for d in (doomed, safe)]
            for stream in streams:
                assert await stream.read() == f"tls {AGENT_ID}".encode()
            domain.bundles = BundleSet(new.bundle(), {})
            domain.identity = identity_of(new.issue(SERVER_ID))
            assert domain.door.close_where(lambda peer: peer.anchor == old.der) == 1
            with pytest.raises(grpc.aio.AioRpcError) as cut:
                await asyncio.wait_for(streams[0].read(), 5)
            assert cut.value.code() is grpc.StatusCode.UNAVAILABLE
            assert await who(safe) == f"tls {AGENT_ID}"
            await refused(doomed)
            streams[1].cancel()


async def test_tls_1_1_and_protocols_other_than_http2_are_refused():
    """S3, spire_wire 1.1: TLS >= 1.2, ALPN h2 only."""
    async with listening() as domain:
        roots = domain.ca.bundle().x509_roots
        fine = client_context(None, roots)
        assert (await admitted(domain.port, fine))[0]
        for protocols in (["http/1.1"], []):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            if protocols:
                context.set_alpn_protocols(protocols)
            assert not (await admitted(domain.port, context))[0]
        old = client_context(None, roots)
        old.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1 is deprecated"):
            old.minimum_version = ssl.TLSVersion.TLSv1
        with pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        assert not (await admitted(domain.port, old))[0]
        weak = client_context(None, roots)
        weak.maximum_version = ssl.TLSVersion.TLSv1_2
        weak.set_ciphers("AES128-SHA:ECDHE-ECDSA-AES128-SHA")
        assert not (await admitted(domain.port, weak))[0]


async def test_slow_handshakes_are_cut_off_and_others_are_served():
    """S50: a byte now and then holds nothing up."""
    async with listening(handshake_seconds=0.5) as domain:
        slow = [await asyncio.open_connection("127.0.0.1", domain.port) for _ in range(20)]
        for _, writer in slow:
            writer.write(b"\x16\x03")
        async with dialing(domain) as dialer:
            assert await who(dialer) == "tls anonymous"
        for reader, writer in slow:
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), 10) == b""
            writer.close()
        assert len(domain.door._handshakes) == 0


async def test_a_renewed_identity_or_bundle_is_used_from_the_next_handshake_on():
    """Rotation needs no restart of the listener."""
    async with listening() as domain:
        async with dialing(domain) as dialer:
            assert await who(dialer) == "tls anonymous"
            new = SpiffeTestCA("example.org")
            domain.bundles = BundleSet(domain.ca.bundle(new), {})
            domain.identity = identity_of(new.issue(SERVER_ID))
            await dialer.renew()
            assert await who(dialer) == "tls anonymous"
            domain.bundles = BundleSet(new.bundle(), {})
            await dialer.renew()
            assert await who(dialer) == "tls anonymous"


async def test_those_without_a_certificate_leave_room_for_those_with_one():
    """S51: an address has a share of what is open to anybody; nodes that have joined are served."""
    async with listening(connections=200) as domain:
        context = client_context(None, domain.ca.bundle().x509_roots)
        address = {"host": "127.0.0.1", "port": domain.port, "ssl": context, "server_hostname": "x"}
        opened = [await asyncio.open_connection(**address) for _ in range(40)]
        async with asyncio.timeout(20):
            while domain.door.refused["exhausted"] < 15:
                await asyncio.sleep(0.01)
        assert domain.door.open_connections == 200 // 8
        async with dialing(domain, domain.ca.issue(AGENT_ID)) as dialer:
            assert await who(dialer) == f"tls {AGENT_ID}"
        async with dialing(domain) as dialer:
            await refused(dialer)
        for _, writer in opened:
            writer.transport.abort()


async def test_one_identity_cannot_take_every_connection():
    """S51: a broken agent leaves room for all others."""
    async with listening(connections=128) as domain:
        agent = domain.ca.issue(AGENT_ID)
        async with contextlib.AsyncExitStack() as held:
            for _ in range(16):
                assert await who(await held.enter_async_context(dialing(domain, agent))) == f"tls {AGENT_ID}"
            async with dialing(domain, agent) as dialer:
                await refused(dialer)
            other = SpiffeId.parse("spiffe://example.org/spire/agent/join_token/two")
            async with dialing(domain, domain.ca.issue(other)) as dialer:
                assert await who(dialer) == f"tls {other}"
        async with asyncio.timeout(20):
            while domain.door.open_connections:
                await asyncio.sleep(0.01)
        async with dialing(domain, agent) as dialer:
            assert await who(dialer) == f"tls {AGENT_ID}"


def test_however_large_the_door_one_identity_has_a_few_dozen_connections():
    """S53: with an eighth of 8,192 it could hold a hundred thousand streams, some gigabytes of ours."""
    held, agent = shares.Shares(), TlsPeer("203.0.113.1:1", spiffe_id=AGENT_ID)
    for _ in range(64):
        held.of_tls(agent, 8_192)
    with pytest.raises(Exhausted):
        held.of_tls(agent, 8_192)
    node_behind_nat = TlsPeer("203.0.113.1:2")
    for _ in range(8_192 // 8):
        held.of_tls(node_behind_nat, 8_192)


def test_one_network_of_ipv6_has_no_more_than_one_address():
    """S50: who is given a /64 has more addresses than anybody counts."""
    held = shares.Shares()
    for number in range(8_192 // 8):
        held.of_tls(TlsPeer(f"2001:db8::{number:x}:50000"), 8_192)
    with pytest.raises(Exhausted):
        held.of_tls(TlsPeer("2001:db8::ffff:ffff:50000"), 8_192)
    held.of_tls(TlsPeer("2001:db8:0:1::1:50000"), 8_192)


async def test_slow_handshakes_give_way_when_there_is_no_room(monkeypatch):
    """S50: who takes every place for handshakes loses the oldest of them; whoever comes meanwhile waits for that."""
    monkeypatch.setattr(shares, "SLOW_SECONDS", 0.5)
    async with listening(handshakes=5, handshake_seconds=50.0) as domain:
        slow = [await asyncio.open_connection("127.0.0.1", domain.port) for _ in range(5)]
        for _, writer in slow:
            writer.write(b"\x16\x03")
        async with asyncio.timeout(20):
            while len(domain.door._handshakes) < 5:
                await asyncio.sleep(0.01)
            async with dialing(domain) as dialer:
                assert await who(dialer) == "tls anonymous"
            with contextlib.suppress(ConnectionError):
                assert await slow[0][0].read() == b"", "the oldest"
            assert len(domain.door._handshakes) == 4
            assert domain.door.refused["too many connections"] == 0, "it waited and was not turned away"
        for _, writer in slow:
            writer.close()
