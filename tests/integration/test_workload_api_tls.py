"""Mutual TLS by SPIFFE ID: who is let in, who is not, and what rotation changes."""

import asyncio
import os
import socket
import ssl
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509

from spiffe_core.bundle import BundleSet, TrustBundle
from spiffe_core.clock import SystemClock
from spiffe_core.crypto.revocation import revocation_lists
from spiffe_core.errors import Reason, Unavailable, VerificationFailed
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from tests.authority import CLIENT_AUTH, SERVER_AUTH, SpiffeTestCA, revoking
from workload_api import tls as workload_tls
from workload_api.tls import any_id, client_context, connect_tls, exactly, member_of, start_server

HOME, FED = TrustDomain("example.org"), TrustDomain("fed.test")


class Source:
    """A TlsSource that a test rotates by assignment."""

    def __init__(self, svid, own, *federated):
        self.svid = svid
        self.bundles = BundleSet(own, {bundle.trust_domain: bundle for bundle in federated})


@pytest.fixture(scope="module")
def ca():
    return SpiffeTestCA()


@pytest.fixture(scope="module")
def foreign():
    return SpiffeTestCA("fed.test")


def source(ca, path="/web", *federated, **spoil):
    return Source(ca.issue(f"spiffe://{ca.trust_domain}{path}", **spoil).svid, ca.bundle(), *federated)


@asynccontextmanager
async def echo(where, authorise=None, **options):
    """A server that answers each line with the peer's ID and the line."""

    async def handle(stream):
        while line := await stream.reader.readline():
            stream.writer.write(f"{stream.peer} ".encode() + line)
            await stream.writer.drain()

    async with await start_server(handle, "127.0.0.1", 0, where, authorise or any_id(), **options) as server:
        yield server


async def ask(server, where, authorise=None, **options):
    """What the server answers; an empty answer is a closed connection."""
    async with await connect_tls(*server.address, where, authorise or any_id(), **options) as stream:
        stream.writer.write(b"hello\n")
        try:
            return (await asyncio.wait_for(stream.reader.readline(), 10)).decode(), str(stream.peer)
        except OSError:
            return "", str(stream.peer)


async def until(true):
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.001)


async def test_both_sides_know_each_other(ca):
    """X509-SVID section 5: by SPIFFE ID, whatever the host is called."""
    async with echo(source(ca, "/db")) as server:
        answer, peer = await ask(server, source(ca, "/web"), exactly(SpiffeId(HOME, "/db")))
    assert answer == "spiffe://example.org/web hello\n"
    assert peer == "spiffe://example.org/db"


async def test_intermediates_are_presented(ca):
    under = ca.intermediate()
    web = Source(under.issue("spiffe://example.org/web").svid, ca.bundle())
    db = Source(under.issue("spiffe://example.org/db").svid, ca.bundle())
    async with echo(db) as server:
        assert (await ask(server, web))[0].startswith("spiffe://example.org/web")


async def test_an_authority_that_is_itself_signed_by_another_is_an_anchor(ca):
    """A bundle may hold a subordinate CA without its root."""
    under = ca.intermediate()
    web, db = (Source(under.issue(f"spiffe://example.org/{name}").svid, under.bundle()) for name in ("web", "db"))
    async with echo(db) as server:
        assert (await ask(server, web))[0].startswith("spiffe://example.org/web")


async def test_federated_domains_talk(ca, foreign):
    """WAPI-17: each by the bundle of its own trust domain."""
    home, abroad = source(ca, "/db", foreign.bundle()), source(foreign, "/web", ca.bundle())
    async with echo(home, member_of(FED)) as server:
        assert (await ask(server, abroad, member_of(HOME)))[0].startswith("spiffe://fed.test/web")


REFUSED_IDS = {
    "another ID": exactly(SpiffeId(HOME, "/db2")),
    "another path below": exactly(SpiffeId(HOME, "/db/x"), SpiffeId(HOME, "/d")),
    "the same path of another domain": exactly(SpiffeId(FED, "/db")),
    "another trust domain": member_of(FED),
}


@pytest.mark.parametrize("case", REFUSED_IDS)
async def test_a_client_leaves_a_server_that_is_not_the_one_expected(ca, case):
    async with echo(source(ca, "/db")) as server:
        with pytest.raises(VerificationFailed) as refusal:
            await ask(server, source(ca), REFUSED_IDS[case])
        assert refusal.value.reason is Reason.UNEXPECTED_ID
        assert (await ask(server, source(ca)))[0]


async def test_a_server_closes_on_a_client_that_is_not_allowed(ca):
    """No application byte is read before."""
    async with echo(source(ca, "/db"), exactly(SpiffeId(HOME, "/admin"))) as server:
        assert (await ask(server, source(ca, "/web")))[0] == ""
        assert (await ask(server, source(ca, "/admin")))[0].startswith("spiffe://example.org/admin")
        assert server.refused == {"unexpected-id": 1}


async def test_a_peer_in_a_revocation_list_is_refused_by_whoever_has_the_list(ca):
    """N-X-38: on both sides of TLS, and nobody else is."""
    db, web, other = source(ca, "/db"), source(ca, "/web"), source(ca, "/other")
    listed = revoking(ca, *(x509.load_der_x509_certificate(one.svid.chain[0]) for one in (db, web)))
    checking = source(ca, "/checking")
    checking.bundles = replace(checking.bundles, revocations=revocation_lists([listed]))
    async with echo(db) as server, echo(checking) as strict:
        assert (await ask(server, web))[0]
        assert (await ask(strict, other))[0]
        with pytest.raises(VerificationFailed) as refusal:
            await ask(server, checking)
        assert refusal.value.reason is Reason.REVOKED
        assert (await ask(strict, web))[0] == ""
        assert strict.refused == {"revoked": 1}
        assert (await ask(strict, other))[0]


BAD_PEERS = {
    "of an unknown root": lambda ca: SpiffeTestCA().issue("spiffe://example.org/db"),
    "expired": lambda ca: ca.issue("spiffe://example.org/db", not_after=ca.now - timedelta(seconds=1)),
    "N-X of a domain without bundle": lambda ca: ca.issue("spiffe://nowhere.test/db"),
    "N-X-18 of another domain's authority": lambda ca: ca.issue("spiffe://fed.test/db"),
}


@pytest.mark.parametrize("case", BAD_PEERS)
async def test_a_server_that_proves_nothing_is_refused(ca, foreign, case):
    """N-X-18 included: the library trusts the union of roots, we trust the bundle of the peer's own domain."""
    made = BAD_PEERS[case](ca)
    bad = Source(made.svid, ca.bundle(), foreign.bundle())
    client = source(ca, "/web", foreign.bundle())
    async with echo(bad) as server:
        with pytest.raises(VerificationFailed):
            await ask(server, client)


@pytest.mark.parametrize("case", BAD_PEERS)
async def test_a_client_that_proves_nothing_is_refused(ca, foreign, case):
    made = BAD_PEERS[case](ca)
    bad = Source(made.svid, ca.bundle(), foreign.bundle())
    async with echo(source(ca, "/web", foreign.bundle())) as server:
        try:
            answer, _ = await ask(server, bad)
        except Unavailable:
            answer = ""
        assert answer == ""
        await until(lambda: server.refused.total() == 1)
        assert (await ask(server, source(ca, "/web")))[0]


@pytest.mark.parametrize(("eku", "works"), [((SERVER_AUTH, CLIENT_AUTH), True), ((SERVER_AUTH,), False)])
async def test_the_certificate_must_allow_its_role(ca, eku, works):
    """X509-SVID section 4.4."""
    async with echo(source(ca, "/db")) as server:
        try:
            answer, _ = await ask(server, source(ca, "/web", eku=eku))
        except Unavailable:
            answer = ""
        assert bool(answer) is works


async def test_a_client_without_a_certificate_is_refused(ca):
    async with echo(source(ca, "/db")) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        reader, writer = await asyncio.open_connection(*server.address, ssl=context)
        writer.write(b"hello\n")
        with pytest.raises(OSError):
            if await reader.read() == b"":
                raise ConnectionResetError("closed")
        writer.transport.abort()
        await until(lambda: server.refused == {"handshake": 1})


async def test_rotation_takes_effect_at_the_next_handshake(ca):
    """What is connected stays; no restart."""
    db, web = source(ca, "/db"), source(ca, "/web")
    async with echo(db) as server:
        async with await connect_tls(*server.address, web, any_id()) as held:
            first = held.writer.get_extra_info("peercert") or held.writer.get_extra_info("ssl_object").getpeercert(True)
            db.svid = ca.issue("spiffe://example.org/db").svid
            async with await connect_tls(*server.address, web, any_id()) as newer:
                assert newer.writer.get_extra_info("ssl_object").getpeercert(True) == db.svid.chain[0] != first
            held.writer.write(b"still here\n")
            assert await held.reader.readline() == b"spiffe://example.org/web still here\n"


async def test_a_changed_bundle_takes_effect_at_the_next_handshake(ca):
    """S2, WAPI-31: a root that is gone is not trusted, a new one is."""
    other = SpiffeTestCA()
    db = source(ca, "/db")
    newcomer = Source(other.issue("spiffe://example.org/new").svid, ca.bundle())
    async with echo(db) as server:
        assert (await ask(server, source(ca)))[0]
        db.bundles = BundleSet(other.bundle())
        assert (await ask(server, newcomer))[0].startswith("spiffe://example.org/new")
        try:
            answer, _ = await ask(server, source(ca))
        except Unavailable:
            answer = ""
        assert answer == ""


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_session_cannot_be_resumed(ca, version):
    """S2, A5: each connection proves its SVID."""
    web = source(ca, "/web")
    async with echo(source(ca, "/db")) as server:
        context = client_context(web)
        context.maximum_version = version
        session = None
        for _ in range(2):
            answer, reused, session = await asyncio.to_thread(_blocking_exchange, context, server.address, session)
            assert answer == b"spiffe://example.org/web hello\n" or (reused and answer == b"")
            assert not (reused and answer)


def _blocking_exchange(context, address, session):
    with socket.create_connection(address, timeout=10) as plain:
        with context.wrap_socket(plain, session=session) as connection:
            connection.sendall(b"hello\n")
            try:
                answer = connection.recv(1000)
            except OSError:
                answer = b""
            return answer, connection.session_reused, connection.session


async def test_old_protocol_versions_are_refused(ca):
    """S3."""
    async with echo(source(ca, "/db")) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, OSError)):
            await asyncio.open_connection(*server.address, ssl=context)
        await until(lambda: server.refused == {"handshake": 1})


async def test_protocols_above_tls_are_agreed_on(ca):
    async with echo(source(ca, "/db"), alpn=("h2", "http/1.1")) as server:
        async with await connect_tls(*server.address, source(ca), any_id(), alpn=("http/1.1",)) as stream:
            assert stream.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
        async with await connect_tls(*server.address, source(ca), any_id()) as stream:
            assert stream.writer.get_extra_info("ssl_object").selected_alpn_protocol() is None


async def test_a_silent_client_is_closed(ca):
    """S50: the handshake has a time limit and holds nobody else up."""
    async with echo(source(ca, "/db"), handshake_seconds=0.1) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        assert (await ask(server, source(ca)))[0]
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
        await until(lambda: server.refused.total() == 1)


async def test_a_server_that_is_not_there_or_says_nothing_is_unavailable(ca):
    silent = socket.create_server(("127.0.0.1", 0))
    host, port = silent.getsockname()
    with pytest.raises(Unavailable, match=r"within 0\.1 s"):
        await connect_tls(host, port, source(ca), any_id(), timeout=0.1)
    silent.close()
    with pytest.raises(Unavailable, match="cannot be reached"):
        await connect_tls(host, port, source(ca), any_id())


async def test_a_handler_that_fails_ends_its_own_connection_only(ca):
    async def handle(stream):
        if await stream.reader.readline() == b"fail\n":
            raise RuntimeError("a bug")
        stream.writer.write(b"fine\n")

    async with await start_server(handle, "127.0.0.1", 0, source(ca, "/db"), any_id()) as server:
        for line, expected in ((b"fail\n", b""), (b"go\n", b"fine\n")):
            async with await connect_tls(*server.address, source(ca), any_id()) as stream:
                stream.writer.write(line)
                assert await stream.reader.readline() == expected


async def test_connections_are_limited_and_places_come_free(ca):
    async with echo(source(ca, "/db"), connections=1) as server:
        first = await connect_tls(*server.address, source(ca), any_id())
        waiting = asyncio.ensure_future(connect_tls(*server.address, source(ca), any_id()))
        done, _ = await asyncio.wait([waiting], timeout=0.05)
        assert not done
        await first.close()
        await (await waiting).close()


async def test_closing_the_server_ends_its_connections_and_leaves_nothing_open(ca):
    counts = []
    for _ in range(3):
        async with echo(source(ca, "/db")) as server:
            stream = await connect_tls(*server.address, source(ca), any_id())
        assert await stream.reader.read() == b""
        await stream.close()
        counts.append(len(os.listdir("/proc/self/fd")))
    await until(lambda: len(os.listdir("/proc/self/fd")) <= counts[0])


async def test_an_empty_bundle_trusts_nobody(ca):
    """TDB-15."""
    nobody = Source(ca.issue("spiffe://example.org/web").svid, TrustBundle(HOME))
    async with echo(source(ca, "/db")) as server:
        with pytest.raises(VerificationFailed):
            await connect_tls(*server.address, nobody, any_id())


async def test_an_expired_peer_is_refused_by_our_own_clock_too(ca):
    """The library's clock is the machine's; ours is given."""

    class Later(SystemClock):
        def now(self):
            return super().now() + timedelta(hours=2)

    async with echo(source(ca, "/db")) as server:
        with pytest.raises(VerificationFailed) as refusal:
            await connect_tls(*server.address, source(ca), any_id(), clock=Later())
        assert refusal.value.reason is Reason.EXPIRED


async def test_no_key_reaches_a_file(ca, tmp_path, monkeypatch):
    """A5, S72: the key goes through anonymous memory, which is closed again."""
    opened = []
    load = ssl.SSLContext.load_cert_chain

    def watched(context, path, *rest):
        opened.append(os.readlink(path))
        return load(context, path, *rest)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", watched)
    before = len(os.listdir("/proc/self/fd"))
    workload_tls.server_context(source(ca))
    assert [name.startswith("/memfd:") for name in opened] == [True]
    assert len(os.listdir("/proc/self/fd")) == before
