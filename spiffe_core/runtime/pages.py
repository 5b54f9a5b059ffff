"""A few read-only pages over plain HTTP, for probes and for Prometheus, served by threads of their own.

Apart from the event loop on purpose: a health page must answer while the loop cannot. It answers GET and HEAD of the
paths it was given and nothing else, one request for each connection, a bounded number at a time, each for a bounded
time. There is no TLS and no authentication: bind it to an address that only probes and scrapers reach.
"""

from __future__ import annotations

import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from spiffe_core.errors import ConfigError

log = logging.getLogger(__name__)

MOST_AT_ONCE = 16
STALL_SECONDS = 5.0
LONGEST_SECONDS = 15.0
_BACKLOG = 64
_CLOSE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Page:
    """What a path answers."""

    body: bytes
    content_type: str = "application/json"
    ok: bool = True
    """False answers 500, as SPIRE's health pages do."""


class Pages:
    """One listener and its pages: path -> what makes the page. They are made on other threads than the loop's."""

    def __init__(self, pages: Mapping[str, Callable[[], Page]]) -> None:
        self._pages = dict(pages)
        self._server: _Server | None = None

    def listen(self, host: str, port: int, *, field: str) -> tuple[str, int]:
        """Begin to answer; the address that was bound. `field` is the configuration key to name in errors.

        Raises:
            ConfigError: the address cannot be bound.
        """
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
                0
            ]
            server = _Server(self._pages, family, address[:2])
        except OSError as error:
            raise ConfigError(
                f"{field}: {host}:{port} cannot be bound: {error.strerror}; choose another address or port", field=field
            ) from None
        self._server = server
        threading.Thread(target=server.serve_forever, name="pages", daemon=True).start()
        bound = server.server_address
        return str(bound[0]), int(bound[1])

    def close(self) -> None:
        """Stop listening and cut who is connected. May be called twice, and without `listen`."""
        server, self._server = self._server, None
        if server is not None:
            closer = threading.Thread(target=server.shutdown, name="pages-close", daemon=True)
            closer.start()
            closer.join(_CLOSE_SECONDS)
            server.server_close()


class _Server(ThreadingHTTPServer):
    """Bounded in connections and in time."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = _BACKLOG

    def __init__(self, pages: Mapping[str, Callable[[], Page]], family: int, address: Any) -> None:
        self.pages = pages
        self.address_family = family
        self._room = threading.BoundedSemaphore(MOST_AT_ONCE)
        self._open: dict[socket.socket, float] = {}
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind without a look-up of our own name, which may hang (the base class does one)."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread if there is room; else hang up."""
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        self._open[request] = time.monotonic()
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started
            self._forget(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._forget(request)

    def service_actions(self) -> None:
        """Between two connections: cut those that take too long."""
        limit = time.monotonic() - LONGEST_SECONDS
        for request, since in list(self._open.items()):
            if since < limit:
                try:
                    request.shutdown(socket.SHUT_RDWR)
                except OSError:
                    log.debug("a slow connection was gone already")

    def server_close(self) -> None:
        """Close the listener and whatever is open."""
        super().server_close()
        for request in list(self._open):
            try:
                request.shutdown(socket.SHUT_RDWR)
            except OSError:
                log.debug("a connection was gone already")

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  # the base class's signature
        """Nothing is printed around the log."""
        log.debug("a page's connection broke: %r", sys.exception())

    def _forget(self, request: Any) -> None:
        if self._open.pop(request, None) is not None:
            self._room.release()


class _Handler(BaseHTTPRequestHandler):
    """GET and HEAD."""

    server: _Server
    timeout = STALL_SECONDS
    server_version = "muniment"
    sys_version = ""

    def do_GET(self) -> None:
        """The page, or 404."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """The page's headers, or 404."""
        self._answer(with_body=False)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002  # signature
        """One plain line; nothing of the request is repeated."""
        self._send(code, Page(f"{HTTPStatus(code).phrase}\n".encode(), "text/plain; charset=utf-8"), with_body=True)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
        """Requests are not logged: probes come every second."""

    def _answer(self, *, with_body: bool) -> None:
        make = self.server.pages.get(self.path.partition("?")[0])
        if make is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        try:
            page = make()
        except Exception:
            log.exception("a page could not be made")
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR)
            return
        self._send(HTTPStatus.OK if page.ok else HTTPStatus.INTERNAL_SERVER_ERROR, page, with_body=with_body)

    def _send(self, code: int, page: Page, *, with_body: bool) -> None:
        self.send_response(code)
        self.send_header("Content-Type", page.content_type)
        self.send_header("Content-Length", str(len(page.body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Connection", "close")
        self.end_headers()
        if with_body:
            self.wfile.write(page.body)
