"""The plainest requests, answered with finished bytes and without a parser: most of what an endpoint is asked.

Others fetch a bundle again and again with the same few lines. A request whose bytes are, each of them, those of one
that the parser has read before means the same: it is looked up instead of read. Only GET of a plain path is remembered,
with headers that change nothing about an answer; everything else, and every refusal, goes the way of all requests.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import h11

from identity_server.web.documents import Document, Find, Scope
from spiffe_core.errors import IdentityError

MAX_REQUEST_BYTES = 512
MAX_REMEMBERED = 256
"""Different requests; when there are more, all are forgotten."""
MAX_BODY_BYTES = 32 * 1024
"""Larger documents wait for slow readers, which is not done here."""

_HARMLESS = frozenset({b"host", b"user-agent", b"accept", b"accept-encoding", b"accept-language", b"connection"})
_PATH = re.compile(rb"/[A-Za-z0-9._~/-]*")
_END = b"\r\n\r\n"
_CONNECTION = {b"keep-alive": False, b"close": True}
_OK = b"HTTP/1.1 200 OK\r\n"
_CLOSE = b"connection: close\r\n"


@dataclass(frozen=True, slots=True)
class _Known:
    """A request that was read: what `find` needs to know of it, and whether the client wants to go after it."""

    scope: Scope
    closes: bool


@dataclass(frozen=True, slots=True)
class Quick:
    """A finished answer, and whether it is the connection's last."""

    data: bytes
    closes: bool


class QuickAnswers:
    """For the documents of one listener. Belongs to the event loop's thread."""

    def __init__(self, find: Find) -> None:
        self._find = find
        self._known: dict[bytes, _Known | None] = {}

    def answer(self, request: bytes, date: bytes) -> Quick | None:
        """The answer to all that a client has sent; None if it has to be read. `date` is the value of that header."""
        if len(request) > MAX_REQUEST_BYTES or not request.startswith(b"GET ") or not request.endswith(_END):
            return None
        try:
            known = self._known[request]
        except KeyError:
            known = self._learn(request)
        if known is None:
            return None
        try:
            document = self._find(known.scope)
        except IdentityError:
            return None
        if document is None or len(document.body) > MAX_BODY_BYTES:
            return None
        return Quick(_written(document, date, _CLOSE if known.closes else b""), known.closes)

    def _learn(self, request: bytes) -> _Known | None:
        if len(self._known) >= MAX_REMEMBERED:
            self._known.clear()
        known = self._known[bytes(request)] = _read(request)
        return known


def _written(document: Document, date: bytes, last: bytes) -> bytes:
    return b"".join((_OK, b"date: ", date, b"\r\n", document.head, last, b"\r\n", document.body))


def _read(data: bytes) -> _Known | None:
    """What the parser makes of it, if it is one whole request and as plain as this module wants it."""
    parser = h11.Connection(h11.SERVER, MAX_REQUEST_BYTES)
    try:
        parser.receive_data(data)
        request, end = parser.next_event(), parser.next_event()
    except h11.RemoteProtocolError:
        return None
    whole = isinstance(end, h11.EndOfMessage) and parser.trailing_data == (b"", False)
    if not isinstance(request, h11.Request) or not whole or request.http_version != b"1.1":
        return None
    headers = [(name.lower(), value) for name, value in request.headers]
    wishes = [value.lower() for name, value in headers if name == b"connection"]
    plain = request.method == b"GET" and _PATH.fullmatch(request.target) is not None
    if not plain or not _HARMLESS.issuperset(name for name, _ in headers) or not _CONNECTION.keys() >= set(wishes):
        return None
    scope = {"type": "http", "method": "GET", "path": request.target.decode("ascii"), "headers": headers}
    return _Known(scope, any(_CONNECTION[wish] for wish in wishes))
