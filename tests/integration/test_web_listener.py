"""The web listener: finished documents over real TLS, bounds on what a stranger may hold, and an orderly end."""

import asyncio
import contextlib
import json
import ssl
import subprocess
import sys

import pytest

from identity_server.web.documents import Document, Site
from identity_server.web.listener import WebLimits, WebListener
from identity_server.web.tls import WebTls
from spiffe_core.clock import SystemClock
from spiffe_core.crypto.keys import to_pkcs8
from spiffe_core.errors import ConfigError, Unavailable
from spiffe_core.wire.tls import TlsIdentity
from tests.authority import SpiffeTestCA
from tests.doubles.https_reader import connected, get, unchecked
from tests.doubles.privileges import need_namespaces

CA = SpiffeTestCA("example.org")


def identity(path="spiffe://example.org/spire/server"):
    svid = CA.issue(path)
    return TlsIdentity(tuple(svid.chain), to_pkcs8(svid.private_key))


class Served:
    def __init__(self, limits=None, rest=None):
        self.documents = {"/": Document(b'{"keys":[]}'), "/page": Document(b"<p>", "text/html", "public, max-age=60")}
        self.identity = identity()
        self.trouble = None
        self.listener = WebListener(
            Site(self.find, rest), tls=WebTls(lambda: self.identity).current, now=SystemClock().now, limits=limits
        )
        self.address = self.listener.listen("127.0.0.1", 0, field="x")

    def find(self, scope):
        if self.trouble is not None:
            raise self.trouble
        return self.documents.get(scope["path"])


@pytest.fixture
async def served():
    made = []

    def make(**over):
        made.append(Served(**over))
        return made[-1]

    yield make
    for one in made:
        await one.listener.close()
        assert one.listener.open_connections == 0


async def test_a_document_is_answered_with_its_headers(served):
    """FED-25, FED-26, FED-27: JSON in UTF-8 without a byte order mark, caches must ask again."""
    answer = await get(served().address)
    assert (answer.status, answer.body) == (200, b'{"keys":[]}')
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["content-length"] == "11"
    assert answer.headers["date"].endswith("gmt")
    assert "server" not in answer.headers


async def test_an_unchanged_document_is_not_sent_again(served):
    """FED-25: the entity tag follows the content."""
    one = served()
    async with connected(one.address, unchecked()) as reader:
        first = await reader.ask()
        etag = first.headers["etag"]
        for given in (etag, f'"other", W/{etag}', "*"):
            again = await reader.ask(headers=[("If-None-Match", given)])
            assert (again.status, again.body, again.headers["etag"]) == (304, b"", etag)
        one.documents["/"] = Document(b'{"keys":[1]}')
        changed = await reader.ask(headers=[("If-None-Match", etag)])
        assert (changed.status, changed.body) == (200, b'{"keys":[1]}')


async def test_head_has_the_headers_alone(served):
    answer = await get(served().address, method="HEAD")
    assert (answer.status, answer.headers["content-length"], answer.body) == (200, "11", b"")


@pytest.mark.parametrize("path", ["/keys", "/../", "/%2e%2e/", "//", "/page/", "/?x", "http://example.org/page"])
async def test_another_path_is_not_found(served, path):
    """N-F-23, FED-25; a query string changes nothing."""
    answer = await get(served().address, path)
    assert answer.status == (200 if path == "/?x" else 404)
    if answer.status == 404:
        assert json.loads(answer.body)["error"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_another_method_is_not_allowed(served, method):
    """N-F-22, FED-25."""
    answer = await get(served().address, method=method)
    assert (answer.status, answer.headers["allow"]) == (405, "get, head")


async def test_credentials_are_ignored(served):
    """N-F-24, FED-24: no client certificate is asked for, an Authorization header changes nothing."""
    context, svid = unchecked(), CA.issue("spiffe://example.org/client")
    from spiffe_core.wire.tls import load_identity

    load_identity(context, TlsIdentity(tuple(svid.chain), to_pkcs8(svid.private_key)))
    answer = await get(served().address, context=context, headers=[("Authorization", "Bearer nonsense")])
    assert answer.status == 200


async def test_a_new_certificate_is_presented_without_a_restart(served):
    """FED-40: the next connection gets it; one that is open goes on."""
    one = served()
    async with connected(one.address, unchecked()) as reader:
        old = reader.tls.getpeercert(binary_form=True)
        assert old == one.identity.chain[0]
        one.identity = identity()
        assert (await reader.ask()).status == 200
        async with connected(one.address, unchecked()) as other:
            assert other.tls.getpeercert(binary_form=True) == one.identity.chain[0] != old


async def test_refusals_have_their_status_and_a_word(served):
    """N-F-27: nothing to serve is 503, never an empty document."""
    one = served()
    one.trouble = Unavailable("not yet")
    answer = await get(one.address)
    assert (answer.status, json.loads(answer.body)) == (503, {"error": "not yet"})


def _client(minimum, maximum, ciphers=None):
    context = unchecked()
    context.minimum_version, context.maximum_version = minimum, maximum
    if ciphers is not None:
        context.set_ciphers(ciphers)
    return context


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("maximum", "ciphers"),
    [
        (ssl.TLSVersion.TLSv1, "ALL:@SECLEVEL=0"),
        (ssl.TLSVersion.TLSv1_1, "ALL:@SECLEVEL=0"),
        (ssl.TLSVersion.TLSv1_2, "ECDHE+AES+SHA:ECDHE+SHA256:ECDHE+SHA384:!AESGCM:!CHACHA20:!AESCCM"),
        (ssl.TLSVersion.TLSv1_2, "kRSA"),
        (ssl.TLSVersion.TLSv1_2, "DHE"),
        (ssl.TLSVersion.TLSv1_2, "AESCCM"),
    ],
)
async def test_old_tls_is_refused(served, maximum, ciphers):
    """N-F-25, FED-15."""
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await get(served().address, context=_client(ssl.TLSVersion.TLSv1, maximum, ciphers))


@pytest.mark.parametrize(
    ("version", "ciphers"),
    [
        (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-GCM-SHA256"),
        (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES256-GCM-SHA384"),
        (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-CHACHA20-POLY1305"),
        (ssl.TLSVersion.TLSv1_3, None),
    ],
)
async def test_modern_tls_is_served(served, version, ciphers):
    """FED-15."""
    assert (await get(served().address, context=_client(version, version, ciphers))).status == 200


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    ],
    ids=["binary", "no host", "two hosts", "two lengths"],
)
async def test_what_is_no_request_is_refused_and_hung_up_on(served, data):
    async with connected(served().address, unchecked()) as reader:
        answer = await reader.raw(data)
        assert (answer.status, answer.headers["connection"]) == (400, "close")
        assert json.loads(answer.body)["error"]
        await reader.ended()


async def test_a_header_without_end_is_not_waited_for(served):
    async with connected(served().address, unchecked()) as reader:
        with contextlib.suppress(OSError):
            for _ in range(64):
                reader.writer.write(b"GET / HTTP/1.1\r\nX: " + b"x" * 65_536)
                await reader.writer.drain()
        assert b" 200 " not in await reader.ended()


async def test_a_body_nobody_reads_ends_the_connection(served):
    async with connected(served().address, unchecked()) as reader:
        answer = await reader.ask(method="POST", headers=[("Content-Length", "5000000000")])
        assert (answer.status, answer.headers["connection"]) == (405, "close")
        await reader.ended()


async def test_bodies_for_what_has_parameters_are_bounded(served):
    async def rest(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 204, "headers": ()})
        await send({"type": "http.response.body", "body": b""})

    one = served(rest=rest)
    assert (await get(one.address, "/other")).status == 204
    for headers in ([("Content-Length", "65537")], [("Transfer-Encoding", "chunked")]):
        assert (await get(one.address, "/other", method="POST", headers=headers)).status == 413


async def test_who_says_nothing_or_too_slowly_is_cut(served):
    """N-F-17 the other way round: a slow client holds a connection for a bounded time."""
    one = served(limits=WebLimits(request_seconds=0.2))
    async with connected(one.address, unchecked()) as silent, connected(one.address, unchecked()) as slow:
        slow.writer.write(b"GET / HTTP/1.1\r\nHost:")
        assert await silent.ended() == b""
        assert await slow.ended() == b""


async def test_who_does_not_finish_the_handshake_is_cut(served):
    one = served(limits=WebLimits(handshake_seconds=0.2))
    async with connected(one.address) as reader:
        assert await reader.ended() == b""


async def test_an_old_connection_ends_after_its_answer(served):
    one = served(limits=WebLimits(age_seconds=0.0))
    async with connected(one.address, unchecked()) as reader:
        await reader.ended()


async def test_idle_connections_end_by_themselves(served):
    one = served(limits=WebLimits(idle_seconds=1))
    async with connected(one.address, unchecked()) as reader:
        assert (await reader.ask()).status == 200
        await reader.ended()


async def test_one_address_holds_a_part_of_the_connections(served):
    """S50: others keep their share."""
    one = served(limits=WebLimits(connections=8))
    async with connected(one.address, unchecked()), connected(one.address, unchecked()):
        with pytest.raises((ssl.SSLError, OSError)):
            await get(one.address)
        assert one.listener.refused["exhausted"] == 1


async def test_one_network_of_ipv6_holds_no_more_than_one_address():
    """S50: the addresses of a /64 are one customer's; those of the next have their own part."""
    need_namespaces("--map-root-user", "--net")
    command = ["unshare", "--map-root-user", "--net", sys.executable, "-m", "tests.doubles.one_network"]
    done = await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True, text=True, timeout=50)
    assert json.loads(done.stdout) == [True, True, False, True]


async def test_requests_under_way_are_answered_before_the_end(served):
    begun, go = asyncio.Event(), asyncio.Event()

    async def rest(_scope, _receive, send):
        begun.set()
        await go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    one = served(rest=rest)
    async with connected(one.address, unchecked()) as reader:
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(reader.ask("/slow"))
            await begun.wait()
            closing = tasks.create_task(one.listener.close())
            await asyncio.sleep(0)
            go.set()
        assert asking.result().status == 200
        assert closing.done()


async def test_a_taken_port_names_its_key(served):
    one = served()
    other = WebListener(Site(one.find), tls=None, now=SystemClock().now)
    with pytest.raises(ConfigError, match=r"set federation\.x\.port"):
        other.listen("127.0.0.1", one.address[1], field="federation.x")
    await other.close()


async def test_plain_http_is_served_where_there_is_no_tls(served):
    one = served()
    plain = WebListener(Site(one.find), tls=None, now=SystemClock().now)
    address = plain.listen("127.0.0.1", 0, field="x")
    async with connected(address) as reader:
        assert (await reader.ask()).status == 200
    await plain.close()


@pytest.mark.soak
async def test_ten_thousand_requests_at_once_leave_the_loop_free(served):
    """N-F-28: answered from memory; whoever issues on the same loop is not kept waiting."""
    one = served()
    loop, late, done = asyncio.get_running_loop(), [], asyncio.Event()

    async def issuing():
        while not done.is_set():
            began = loop.time()
            await asyncio.sleep(0.01)
            late.append(loop.time() - began - 0.01)

    async def client():
        async with connected(one.address, unchecked()) as reader:
            return [(await reader.ask()).status for _ in range(50)]

    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(issuing())
        clients = [tasks.create_task(client()) for _ in range(200)]
        for each in clients:
            assert set(await each) == {200}
        done.set()
        await watching
    assert sorted(late)[len(late) // 2] < 0.25
