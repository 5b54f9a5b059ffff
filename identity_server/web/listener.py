"""One address that answers HTTP: every connection gets the newest certificate, and bounds on what it may hold.

A connection has `REQUEST_SECONDS` from its beginning, and then from the first byte of each request, until the answer is
written; it may wait `IDLE_SECONDS` for its next request, and lives `AGE_SECONDS` at most, so that nobody holds on to an
old certificate. Too many connections, of all or of one address, are closed unheard; idle ones make room first. Plain
requests that were read before are answered without the parser (`quick_answers`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from datetime import datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any, Protocol

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from identity_server.web.client_hello import MAX_HELLO_BYTES, ClientHello, missing, read_hello
from identity_server.web.documents import App, Site, problem
from identity_server.web.quick_answers import QuickAnswers
from spiffe_core.errors import Exhausted
from spiffe_core.networks import network_of
from spiffe_core.wire.acceptor import Acceptor
from spiffe_core.wire.pace import Pace, readable
from spiffe_core.wire.shares import Shares
from spiffe_core.wire.sockets import UnixListener, listen_tcp, listen_unix

log = logging.getLogger(__name__)

CONNECTIONS = 1024
FEWEST_CONNECTIONS = 16
FILES_PART = 16
"""A listener takes a sixteenth of the files that may be open at most."""
HANDSHAKE_SECONDS = 10.0
REQUEST_SECONDS = 10.0
IDLE_SECONDS = 15
AGE_SECONDS = 600.0
MAX_HEADER_BYTES = 16 * 1024
UNIX_MODE = 0o666
UNIX_DIRECTORY_MODE = 0o755
"""What is served is public; who may connect is of no interest."""
_SHUTDOWN_SECONDS = 2.0
_LOOK_SECONDS = 1.0
_PEEK_SECONDS = 0.01
_HANDSHAKES_EACH_ROUND = 2
_CLOSE_SECONDS = 1.0
_FULL = 0.75
"""From this part of all connections on, idle ones are closed."""


@dataclass(frozen=True, slots=True)
class WebLimits:
    """Bounds of one listener. A single address, of IPv6 a single /64, may hold a quarter of the connections."""

    connections: int = CONNECTIONS
    handshake_seconds: float = HANDSHAKE_SECONDS
    request_seconds: float = REQUEST_SECONDS
    idle_seconds: int = IDLE_SECONDS
    age_seconds: float = AGE_SECONDS


class Validators(Protocol):
    """Who gets another certificate than everybody else, told by what they say first (RFC 8737)."""

    @property
    def waiting(self) -> bool:
        """Whether anybody is to be told apart now."""
        ...

    def context_for(self, hello: ClientHello) -> ssl.SSLContext | None:
        """The context for one of them; None for everybody else."""
        ...


class WebListener:
    """Serves `app` on one address. Belongs to the event loop's thread.

    `tls` gives the context for each handshake; None serves plain HTTP. `validators` is asked first while it waits for
    somebody.
    """

    def __init__(
        self,
        app: App,
        *,
        tls: Callable[[], ssl.SSLContext] | None,
        now: Callable[[], datetime],
        limits: WebLimits | None = None,
        validators: Validators | None = None,
    ) -> None:
        self.limits = limits or WebLimits()
        self.config = Config(
            app,
            http=H11Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level=logging.ERROR,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=self.limits.idle_seconds,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        )
        self.config.load()
        self.state = ServerState()
        self.date = b""
        """The value of the date header, made once a second."""
        self.quick = QuickAnswers(app.find) if isinstance(app, Site) else None
        self.refused: Counter[str] = Counter()
        """Connections that were not served, by reason."""
        self._tls = tls
        self._validators = validators
        self._now = now
        self._open: dict[_Connection, dict[Hashable, int]] = {}
        self._shares = Shares()
        self._pace = Pace(_HANDSHAKES_EACH_ROUND)
        self._admitting: set[asyncio.Task[Any]] = set()
        self._listener: socket.socket | None = None
        self._unix: UnixListener | None = None
        self._acceptor: Acceptor | None = None
        self._look: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()

    @property
    def open_connections(self) -> int:
        """How many are being served."""
        return len(self._open)

    def listen(self, host: str, port: int, *, field: str) -> tuple[str, int]:
        """Begin to answer; the address that was bound. `field` is the table of the configuration to name in errors.

        Raises:
            ConfigError: the address cannot be bound.
        """
        self._listener = listen_tcp(host, port, table=field)
        self._acceptor = Acceptor(self._listener, self._admit, tasks=self._admitting, refused=self.refused)
        self._every_second()
        bound: tuple[str, int] = self._listener.getsockname()[:2]
        return bound

    def listen_unix(self, path: Path) -> None:
        """Begin to answer on a Unix socket, for a web server in front of us: everybody on this machine may connect.

        Raises:
            ConfigError: the path cannot be used.
        """
        self._unix = listen_unix(path, mode=UNIX_MODE, dir_mode=UNIX_DIRECTORY_MODE)
        self._acceptor = Acceptor(self._unix.socket, self._admit, tasks=self._admitting, refused=self.refused)
        self._every_second()

    def stop(self) -> None:
        """Let nobody new in, and end what is idle. May be called twice."""
        if self._look is not None:
            self._look.cancel()
        if self._acceptor is not None:
            self._acceptor.close()
            self._acceptor = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._unix is not None:
            self._unix.close()
            self._unix = None
        for connection in list(self._open):
            connection.shutdown()

    async def close(self) -> None:
        """Stop, let requests under way be answered for a moment, then cut."""
        self.stop()
        tasks = list(self._admitting)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._emptied()
        for connection in list(self._open):
            connection.transport.abort()
        await self._emptied()
        await asyncio.gather(*self.state.tasks, return_exceptions=True)

    def gone(self, connection: _Connection) -> None:
        """A connection was lost."""
        shares = self._open.pop(connection, None)
        if shares is not None:
            self._shares.give(shares)
        if not self._open:
            self._empty.set()

    async def _emptied(self) -> None:
        self._empty.clear()
        if self._open:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await self._empty.wait()

    async def _admit(self, accepted: socket.socket) -> None:
        shares: dict[Hashable, int] = {"all": self.limits.connections}
        if accepted.family != socket.AF_UNIX:  # behind a socket is one web server, which has everybody's requests
            shares[network_of(accepted.getpeername()[0])] = max(1, self.limits.connections // 4)
        if not self._shares.take(shares):
            raise Exhausted("too many connections")
        loop = asyncio.get_running_loop()
        connection = _Connection(self, loop)
        self._open[connection] = shares
        try:
            if accepted.family != socket.AF_UNIX:
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is None:
                await loop.connect_accepted_socket(lambda: connection, accepted)
            else:
                await loop.connect_accepted_socket(
                    lambda: connection,
                    accepted,
                    ssl=await self._context(accepted, self._tls),
                    ssl_handshake_timeout=self.limits.handshake_seconds,
                    ssl_shutdown_timeout=_SHUTDOWN_SECONDS,
                )
        except BaseException:
            self.gone(connection)
            raise

    async def _context(self, accepted: socket.socket, usual: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
        """For validators of an ACME authority that of their challenge, for everybody else the usual one.

        A client that has said something waits for its turn, so that a crowd's handshakes do not hold the loop.
        """
        hello = None
        async with asyncio.timeout(self.limits.handshake_seconds):
            await readable(accepted)
            await self._pace.turn()
            if self._validators is not None and self._validators.waiting:
                hello = read_hello(await _peeked(accepted))
        if self._validators is not None and hello is not None:
            return self._validators.context_for(hello) or usual()
        return usual()

    def _every_second(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        self.date = format_datetime(self._now(), usegmt=True).encode("ascii")
        self.state.default_headers = [(b"date", self.date)]
        crowded = len(self._open) >= self.limits.connections * _FULL
        for connection in list(self._open):
            connection.look(now, crowded=crowded)
        self._look = loop.call_later(_LOOK_SECONDS, self._every_second)


async def _peeked(connection: socket.socket) -> bytes:
    """The client's first record, left in the socket; less than that if it hangs up."""
    seen = b""
    while missing(seen):
        await readable(connection)
        now = connection.recv(MAX_HELLO_BYTES, socket.MSG_PEEK)
        if now in {b"", seen}:
            if not now:
                return seen
            await asyncio.sleep(_PEEK_SECONDS)  # what was seen stays readable
        seen = now
    return seen


class _Connection(H11Protocol):
    """uvicorn's HTTP/1.1, with an end to its patience."""

    def __init__(self, listener: WebListener, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(listener.config, listener.state, {}, loop)
        self._listener = listener
        self._limits = listener.limits
        self._made = False
        self._between = True
        """Nothing that was sent awaits the parser or an answer."""
        self._due: float | None = None
        self._old_at = loop.time() + self._limits.age_seconds

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's signature
        """The handshake is done."""
        super().connection_made(transport)
        self._made = True
        self._due = self.loop.time() + self._limits.request_seconds

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over, perhaps before it began."""
        if self._made:
            super().connection_lost(exc)
        self._listener.gone(self)

    def data_received(self, data: bytes) -> None:
        """The clock of a request starts with its first byte."""
        if self._due is None:
            self._due = self.loop.time() + self._limits.request_seconds
        if self._between and self._answered_quickly(data):
            return
        self._between = False
        super().data_received(data)

    def _answered_quickly(self, data: bytes) -> bool:
        """Whether that was a plain request, and is answered. A reader so slow that writing waits is not served here."""
        quick = self._listener.quick
        if quick is None or self.flow.write_paused or self.conn.our_state is not h11.IDLE:
            return False
        answer = quick.answer(data, self._listener.date)
        if answer is None:
            return False
        self.transport.write(answer.data)
        if answer.closes:
            self.shutdown()
            return True
        self._due = None
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)
        return True

    def on_response_complete(self) -> None:
        """The clock stops; it starts again if the next request is here already."""
        cycle = self.cycle
        self._due = None
        super().on_response_complete()
        if self.cycle is not cycle or self.transport.is_closing():
            self._due = self.loop.time() + self._limits.request_seconds
        elif self.conn.our_state is h11.IDLE and not self.conn.trailing_data[0]:
            self._between = True

    def shutdown(self) -> None:
        """End after the answer under way. A handshake has no answer: its task is cancelled, or its time runs out."""
        if self._made:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  # uvicorn's signature; its text is for people
        """What cannot be read as HTTP, or is too long, is refused in the form of every other error."""
        body = problem("not a request that can be read here")
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        with contextlib.suppress(h11.LocalProtocolError):  # an answer is on its way already
            for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def look(self, now: float, *, crowded: bool) -> None:
        """Once a second: cut what is late, end what is old, and what is idle while others wait."""
        if not self._made:
            return
        if self._due is not None and now >= self._due:
            self.transport.abort()
        elif not self.transport.is_closing() and (now >= self._old_at or (crowded and self._due is None)):
            self.shutdown()
