"""Documents that are finished before anybody asks: bytes with headers (RFC 9110), answered without a framework."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, TypeAlias

from spiffe_core.errors import IdentityError
from spiffe_core.wire.status import STATUS

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
"""An ASGI 3 application."""
Headers: TypeAlias = tuple[tuple[bytes, bytes], ...]

MAX_BODY_BYTES = 64 * 1024
"""The largest request body that is read; documents need none."""
_ETAG_BYTES = 16
_SAFE: Headers = ((b"x-content-type-options", b"nosniff"),)


@dataclass(frozen=True, slots=True)
class Document:
    """What a path answers. Caches must ask again each time (`no-cache`) unless `cache` says otherwise."""

    body: bytes
    content_type: str = "application/json"
    cache: str = "no-cache"
    extra: Headers = ()
    etag: bytes = field(init=False)
    headers: Headers = field(init=False, repr=False)
    unchanged: Headers = field(init=False, repr=False)
    """The headers of a 304."""
    head: bytes = field(init=False, repr=False)
    """The lines of `headers` as they are sent."""

    def __post_init__(self) -> None:
        etag = b'"%s"' % hashlib.sha256(self.body).digest()[:_ETAG_BYTES].hex().encode()
        kept = ((b"etag", etag), (b"cache-control", self.cache.encode("ascii")), *self.extra, *_SAFE)
        object.__setattr__(self, "etag", etag)
        object.__setattr__(self, "unchanged", kept)
        headers: Headers = (
            (b"content-type", self.content_type.encode("ascii")),
            (b"content-length", b"%d" % len(self.body)),
            *kept,
        )
        object.__setattr__(self, "headers", headers)
        object.__setattr__(self, "head", b"".join(b"%s: %s\r\n" % pair for pair in headers))

    def is_named_by(self, tags: bytes) -> bool:
        """Whether an `If-None-Match` names this entity (RFC 9110 section 13.1.2: weak comparison, or a star)."""
        given = (one.strip() for one in tags.split(b","))
        return any(one == b"*" or one.removeprefix(b"W/") == self.etag for one in given)


Find: TypeAlias = Callable[[Scope], Document | None]
"""The document that a request's path, and its headers if they matter, name; None if none. An IdentityError becomes its
HTTP status and its public text. Called on the loop: it must not wait."""


class Site:
    """The ASGI application of a listener: documents by `find`, and what `rest` answers if it is given.

    Documents answer GET and HEAD, 304 to a matching `If-None-Match`, and 405 to every other method. Credentials and
    query strings change nothing (SPIFFE Federation 5.2.1.3: no client authentication).
    """

    def __init__(self, find: Find, rest: App | None = None) -> None:
        self.find = find
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise ValueError(f"only HTTP is served here, not {scope['type']}")
        try:
            document = self.find(scope)
        except IdentityError as error:
            await _refuse(scope, send, STATUS[error.kind][1], error.public)
            return
        if document is not None:
            await _answer(scope, send, document)
        elif self._rest is None:
            await _refuse(scope, send, HTTPStatus.NOT_FOUND, "there is nothing at this path")
        elif _body_length(scope["headers"]) > MAX_BODY_BYTES:
            await _refuse(scope, send, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {MAX_BODY_BYTES} bytes are read")
        else:
            await self._rest(scope, receive, send)


def problem(text: str) -> bytes:
    """The body of an error."""
    return json.dumps({"error": text}, separators=(",", ":")).encode("ascii")


async def _answer(scope: Scope, send: Send, document: Document) -> None:
    method = scope["method"]
    if method not in {"GET", "HEAD"}:
        await _refuse(scope, send, HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD", ((b"allow", b"GET, HEAD"),))
        return
    closing = _closing(scope)
    if _matches(scope["headers"], document):
        await _send(send, HTTPStatus.NOT_MODIFIED, document.unchanged + closing, b"")
        return
    # uvicorn leaves the body of an answer to HEAD out, and keeps its length
    await _send(send, HTTPStatus.OK, document.headers + closing, document.body)


async def _refuse(scope: Scope, send: Send, status: int, text: str, extra: Headers = ()) -> None:
    body = problem(text)
    headers = (
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        *_SAFE,
        *extra,
        *_closing(scope),
    )
    await _send(send, status, headers, body)


async def _send(send: Send, status: int, headers: Headers, body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _closing(scope: Scope) -> Headers:
    """A body nobody reads ends the connection."""
    return ((b"connection", b"close"),) if _body_length(scope["headers"]) else ()


def _body_length(headers: Iterable[tuple[bytes, bytes]]) -> int:
    """What the request announces; one that does not say how much (chunked) counts as too much."""
    for name, value in headers:
        if name == b"transfer-encoding":
            return MAX_BODY_BYTES + 1
        if name == b"content-length":
            return int(value)
    return 0


def _matches(headers: Iterable[tuple[bytes, bytes]], document: Document) -> bool:
    return any(document.is_named_by(value) for name, value in headers if name == b"if-none-match")
