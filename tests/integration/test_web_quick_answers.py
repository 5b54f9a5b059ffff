"""Plain requests are answered without the parser, and exactly as with it (issue 6, B12)."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from identity_server.web.documents import Document, Site
from identity_server.web.listener import WebLimits, WebListener, _Connection
from identity_server.web.quick_answers import MAX_BODY_BYTES, MAX_REMEMBERED, MAX_REQUEST_BYTES, QuickAnswers
from identity_server.web.tls import WebTls
from spiffe_core.clock import SystemClock
from spiffe_core.crypto.keys import to_pkcs8
from spiffe_core.errors import Unavailable
from spiffe_core.wire.tls import TlsIdentity
from tests.authority import SpiffeTestCA
from tests.doubles.https_reader import connected, unchecked

ROOT, PAGE = Document(b'{"keys":[]}'), Document(b"<p>", "text/html", "public, max-age=60")
LARGE = Document(b"x" * (MAX_BODY_BYTES + 1))
DOCUMENTS = {"/": ROOT, "/page": PAGE, "/large": LARGE}
PLAIN = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def find(scope):
    return DOCUMENTS.get(scope["path"])


class Spy(QuickAnswers):
    """Counts what it answered."""

    def __init__(self):
        super().__init__(find)
        self.answered = 0

    def answer(self, request, date):
        found = super().answer(request, date)
        self.answered += found is not None
        return found


class Wire(asyncio.Transport):
    """What a connection writes, and whether it hung up."""

    def __init__(self):
        super().__init__()
        self.written, self.closed = b"", False

    def write(self, data):
        self.written += data

    def close(self):
        self.closed = True

    def is_closing(self):
        return self.closed

    def abort(self):
        self.closed = True

    def pause_reading(self):
        pass

    def resume_reading(self):
        pass


async def conversation(quick, chunks):
    """What comes back when exactly these chunks arrive, one after the other; lines of headers in order of the alphabet."""
    loop = asyncio.get_running_loop()
    listener = WebListener(Site(find), tls=None, now=SystemClock().now)
    listener.quick, listener.date = quick, b"now"
    listener.state.default_headers = [(b"date", b"now")]
    connection, wire = _Connection(listener, loop), Wire()
    connection.connection_made(wire)
    for chunk in chunks:
        if wire.closed:
            break
        connection.data_received(chunk)
        while listener.state.tasks:
            await asyncio.gather(*listener.state.tasks)
            await asyncio.sleep(0)  # the tasks' own callbacks
    connection.shutdown()
    connection.connection_lost(None)
    lines = wire.written.split(b"\r\n")
    return sorted(line.lower() if b": " in line else line for line in lines), wire.closed


QUICK = {
    "plain": ([PLAIN], 1),
    "again and again": ([PLAIN, PLAIN, PLAIN], 3),
    "of curl": ([b"GET /page HTTP/1.1\r\nHost: a\r\nUser-Agent: curl/8\r\nAccept: */*\r\n\r\n"], 1),
    "that goes": ([b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"], 1),
    "that stays": ([b"GET / HTTP/1.1\r\nhost: a\r\nconnection: Keep-Alive\r\n\r\n"], 1),
    "after one that was read": ([b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", PLAIN], 1),
    "as the parser forgives it": ([b"GET / HTTP/1.1\nHost: a\r\nAccept: a\r\n b\r\n\r\n"], 1),
    "before one that was read": ([PLAIN, b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", PLAIN], 2),
}
READ = {
    "conditional": [b'GET / HTTP/1.1\r\nHost: a\r\nIf-None-Match: "x", %s\r\n\r\n' % ROOT.etag],
    "head": [b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"],
    "post": [b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n\r\n\r\n"],
    "a body": [b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n\r\n\r\n"],
    "a query": [b"GET /?x=1 HTTP/1.1\r\nHost: a\r\n\r\n"],
    "an escape": [b"GET /%70age HTTP/1.1\r\nHost: a\r\n\r\n"],
    "another path": [b"GET /none HTTP/1.1\r\nHost: a\r\n\r\n"],
    "two at once": [PLAIN + PLAIN],
    "in two parts": [PLAIN[:20], PLAIN[20:]],
    "a part that looks whole": [b"GET / HTTP/1.1\r\nHost: a\r\nX: y", b"\r\n\r\n"],
    "no host": [b"GET / HTTP/1.1\r\n\r\n"],
    "two hosts": [b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"],
    "old": [b"GET / HTTP/1.0\r\nHost: a\r\n\r\n"],
    "an upgrade": [b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"],
    "chunks": [b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"],
    "credentials": [b"GET / HTTP/1.1\r\nHost: a\r\nCookie: b=c\r\n\r\n"],
    "junk": [b"GET \x00 HTTP/1.1\r\nHost: a\r\n\r\n"],
    "large": [b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n"],
    "a plain one behind half a request": [b"GET / HTTP/1.1\r\nHost: ", PLAIN],
}


@pytest.mark.parametrize("name", QUICK)
async def test_plain_requests_have_the_answer_of_the_parser(name):
    """Byte for byte but for the order of headers; connections end alike."""
    chunks, count = QUICK[name]
    quick = Spy()
    one, other = await conversation(quick, chunks), await conversation(None, chunks)
    assert one == other
    assert b"HTTP/1.1 200 OK" in one[0]
    assert quick.answered == count


@pytest.mark.parametrize("name", READ)
async def test_all_others_are_read(name):
    """Whatever could change the answer, or where a request ends."""
    quick = Spy()
    assert await conversation(quick, READ[name]) == await conversation(None, READ[name])
    assert quick.answered == 0


async def test_over_tls_many_requests_are_answered_on_one_connection():
    """A real connection, with what has to be read in between; idle ones end in time."""
    svid = SpiffeTestCA("example.org").issue("spiffe://example.org/spire/server")
    identity = TlsIdentity(tuple(svid.chain), to_pkcs8(svid.private_key))
    listener = WebListener(
        Site(find), tls=WebTls(lambda: identity).current, now=SystemClock().now, limits=WebLimits(idle_seconds=1)
    )
    listener.quick = Spy()
    address = listener.listen("127.0.0.1", 0, field="x")
    try:
        async with connected(address, unchecked()) as reader:
            for number in range(20):
                answer = await reader.ask() if number % 5 else await reader.ask(method="HEAD")
                assert answer.status == 200
                assert answer.headers["etag"] == ROOT.etag.decode()
                assert answer.body == (ROOT.body if number % 5 else b"")
            assert listener.quick.answered == 16
            await reader.ended()
    finally:
        await listener.close()
    assert listener.open_connections == 0


async def test_a_reader_that_is_slow_is_served_by_the_way_that_waits():
    """While the transport cannot write, nothing is added to what it holds."""
    quick = Spy()
    listener = WebListener(Site(find), tls=None, now=SystemClock().now)
    listener.quick, wire = quick, Wire()
    connection = _Connection(listener, asyncio.get_running_loop())
    connection.connection_made(wire)
    connection.pause_writing()
    connection.data_received(PLAIN)
    assert (quick.answered, wire.written) == (0, b"")
    connection.resume_writing()
    await asyncio.gather(*listener.state.tasks)
    assert wire.written.endswith(ROOT.body)
    connection.shutdown()
    connection.connection_lost(None)


def test_what_changes_is_asked_each_time():
    """Only the request is remembered, never a document; a refusal goes the usual way."""
    held = {"/": ROOT}

    def look(scope):
        if not held:
            raise Unavailable("not yet")
        return held.get(scope["path"])

    quick = QuickAnswers(look)
    assert quick.answer(PLAIN, b"now").data.endswith(ROOT.body)
    held["/"] = PAGE
    assert quick.answer(PLAIN, b"now").data.endswith(PAGE.body)
    held.clear()
    assert quick.answer(PLAIN, b"now") is None


def test_little_is_remembered():
    """S51: neither many requests nor long ones take memory."""
    quick = QuickAnswers(find)
    for number in range(3 * MAX_REMEMBERED):
        assert quick.answer(b"GET / HTTP/1.1\r\nHost: %d\r\n\r\n" % number, b"now") is not None
        assert len(quick._known) <= MAX_REMEMBERED
    long = b"GET / HTTP/1.1\r\nHost: a\r\nAccept: %s\r\n\r\n" % (b"x" * MAX_REQUEST_BYTES)
    assert quick.answer(long, b"now") is None
    assert long not in quick._known


LINES = st.sampled_from(
    [
        b"Host: a",
        b"Accept: */*",
        b"Connection: close",
        b"Content-Length: 0",
        b"Content-Length: 1",
        b"",
        b"A: \x80",
    ]
)
STARTS = st.sampled_from(
    [b"GET / HTTP/1.1", b"GET /page HTTP/1.1", b"GET  / HTTP/1.1", b"GET / HTTP/1.2", b"GET * HTTP/1.1"]
)


@given(STARTS, st.lists(LINES, max_size=4))
def test_a_quick_answer_needs_one_host_and_no_body(start, lines):
    """Whatever is put together of good and bad lines (RFC 9112 sections 3.2 and 6)."""
    request = b"\r\n".join([start, *lines]) + b"\r\n\r\n"
    answer = QuickAnswers(find).answer(request, b"now")
    good = start in {b"GET / HTTP/1.1", b"GET /page HTTP/1.1"} and set(lines) <= {
        b"Host: a",
        b"Accept: */*",
        b"Connection: close",
    }
    assert (answer is not None) == (good and lines.count(b"Host: a") == 1)
