"""The front door: every connection is authenticated here, named, and passed on to a private gRPC listener.

grpcio can neither ask for an optional client certificate, nor verify a peer whose only name is a URI, nor tell which
process connected to a Unix socket. So this module accepts the connection, learns who is there (`peer`, `tls`), binds
the socket it opens to grpcio to an unguessable abstract name, and joins the two byte for byte (`splice`). grpcio
reports that name as the peer of every call; `caller_of` looks it up. The kernel keeps a bound abstract name from being
bound twice, and the name is forgotten before its socket is closed, so nobody can take it over; a process that reaches
the private listener by itself has a name nobody knows and is refused (architecture A5).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from spiffe_core.errors import Unauthenticated
from spiffe_core.runtime.unix_sockets import peer_credentials
from spiffe_core.wire.acceptor import Acceptor
from spiffe_core.wire.http2_meter import Meters, Rates
from spiffe_core.wire.pace import Pace, Places, readable
from spiffe_core.wire.peer import Peer, TlsPeer, UnixPeer, unix_peer
from spiffe_core.wire.shares import Handshakes, Shares
from spiffe_core.wire.sockets import PrivateDirectory, UnixListener, listen_tcp, listen_unix
from spiffe_core.wire.splice import Splice
from spiffe_core.wire.tls import ServerTls
from spiffe_core.wire.tls_admission import TlsContexts, tls_peer
from spiffe_core.wire.witness import WitnessedTransport, record_writers

log = logging.getLogger(__name__)

_NAME_PREFIX = "unix-abstract:"
_SOCKET = "grpc.sock"
_HANDSHAKES_EACH_ROUND = 2
_HANDSHAKES_UNDER_WAY = 32
"""Whose client has yet to answer: all their answers at once are a round of 20 ms."""
_PATIENCE_SECONDS = 0.25
"""So long one that does not answer is counted: a client on the other side of the world takes as long."""
_INTRODUCTIONS = 4
"""So many TLS connections at a time are taken on by gRPC: it does a crowd's first steps before anybody's second."""
_TRUSTED_RESERVE = 64
_LEAST_SECONDS = 0.001
_CLOSE_SECONDS = 1.0
_CONNECT_ATTEMPTS = 50


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what strangers may hold: connections (four descriptors each, see `shares`), time, bytes in flight."""

    connections: int = 8192
    connections_per_uid: int = 1024
    handshakes: int = 1024
    handshake_seconds: float = 10.0
    stall_seconds: float = 60.0
    buffer_bytes: int = 256 * 1024
    rates: Rates = field(default_factory=Rates)


class Context(Protocol):
    """The part of a gRPC call's context that names its peer."""

    def peer(self) -> str:
        """The transport's name for the other end."""
        ...


class _Link:
    """One admitted connection."""

    __slots__ = ("name", "peer", "shares", "splice")

    def __init__(self, peer: Peer, splice: Splice, shares: dict[Hashable, int] | None = None) -> None:
        self.peer = peer
        self.splice = splice
        self.shares = shares or {}
        self.name = "muniment/" + secrets.token_hex(16)


class FrontDoor:
    """Accepts, authenticates and passes on. Belongs to the event loop's thread.

    With `strict` a Unix connection is cut when a process writes into it that did not make it (`witness`). With `lanes`
    TLS connections take turns among so many private listeners of their own (`door_server`).
    """

    def __init__(self, *, limits: Limits | None = None, strict: bool = False, lanes: int = 0) -> None:
        self.limits = limits or Limits()
        self._strict = strict
        self._lanes = [f"lane{number}.sock" for number in range(lanes)]
        self._turn = itertools.cycle(self._lanes or [_SOCKET])
        self._private = PrivateDirectory.make()
        self._links: dict[str, _Link] = {}
        self._shares = Shares()
        self._meters = Meters(self.limits.rates)
        self._handshakes = Handshakes(self.limits.handshakes)
        self._pace = Pace(_HANDSHAKES_EACH_ROUND)
        self._places = Places(_HANDSHAKES_UNDER_WAY, _PATIENCE_SECONDS)
        self._introductions = asyncio.Semaphore(_INTRODUCTIONS)
        self._unix: list[UnixListener] = []
        self._tcp: list[socket.socket] = []
        self._acceptors: list[Acceptor] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._empty: asyncio.Event | None = None
        self._splices: set[Splice] = set()
        self.refused: Counter[str] = Counter()

    @property
    def private_target(self) -> str:
        """Where the private gRPC listener is to be bound, or the first of them."""
        return f"unix:{self._private.path / _SOCKET}"

    @property
    def lanes(self) -> tuple[str, ...]:
        """Where the private gRPC listeners for TLS connections are to be bound.

        Empty if they have none of their own.
        """
        return tuple(f"unix:{self._private.path / name}" for name in self._lanes)

    @property
    def open_connections(self) -> int:
        """How many admitted connections are open."""
        return len(self._links)

    def listen_unix(self, path: Path, *, mode: int = 0o777, dir_mode: int = 0o755) -> None:
        """Accept on a Unix socket; its callers are known by process. Raises ConfigError."""
        listener = listen_unix(path, mode=mode, dir_mode=dir_mode)
        self._unix.append(listener)
        if self._strict:
            record_writers(listener.socket)
        self._accept(listener.socket, self._admit_unix)

    def listen_tcp(self, host: str, port: int, tls: ServerTls) -> tuple[str, int]:
        """Accept TLS on a TCP port; its callers are known by SVID, or are anonymous. Raises ConfigError."""
        listener = listen_tcp(host, port)
        self._tcp.append(listener)
        contexts = TlsContexts(tls)
        bound: tuple[str, int] = listener.getsockname()[:2]

        async def admit(connection: socket.socket) -> None:
            address = _text(connection.getpeername())
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._admit_tls(connection, contexts, TlsPeer(address), address.rpartition(":")[0])

        self._accept(listener, admit, busy=self._crowded)
        return bound

    def listen_unix_tls(self, path: Path, tls: ServerTls, *, mode: int, dir_mode: int = 0o755) -> None:
        """Accept TLS on a Unix socket; its callers are known by SVID, not by process. Raises ConfigError."""
        listener = listen_unix(path, mode=mode, dir_mode=dir_mode)
        self._unix.append(listener)
        contexts = TlsContexts(tls)

        async def admit(connection: socket.socket) -> None:
            pid = peer_credentials(connection).pid
            await self._admit_tls(connection, contexts, TlsPeer(f"unix:{path}", local=True), pid)

        self._accept(listener.socket, admit, busy=self._crowded)

    def caller_of(self, context: Context) -> Peer:
        """Who makes this call.

        Raises:
            Unauthenticated: the call did not come through this door.
        """
        return self._link_of(context).peer

    def _link_of(self, context: Context) -> _Link:
        name = context.peer()
        link = self._links.get(name.removeprefix(_NAME_PREFIX)) if name.startswith(_NAME_PREFIX) else None
        if link is None:
            self.refused["unknown name"] += 1
            raise Unauthenticated("this call did not come through the front door")
        return link

    def begin(self, context: Context) -> None:
        """A call is looked at for the first time.

        Raises:
            Unauthenticated: the call did not come through this door.
        """
        meter = self._link_of(context).splice.near.meter
        if meter is not None:
            meter.begun(asyncio.get_running_loop().time())

    def close_where(self, predicate: Callable[[Peer], bool]) -> int:
        """Cut every connection whose peer fits (a ban, a revoked authority); returns how many."""
        doomed = [link for link in self._links.values() if predicate(link.peer)]
        for link in doomed:
            link.splice.abort()
        return len(doomed)

    def stop_accepting(self) -> None:
        """Let nobody new in; those inside stay."""
        for acceptor in self._acceptors:
            acceptor.close()
        for listener in self._unix:
            listener.close()
        for tcp in self._tcp:
            tcp.close()
        self._acceptors.clear()
        self._unix.clear()
        self._tcp.clear()

    async def emptied(self, seconds: float) -> bool:
        """Wait until every connection is closed to its last byte, `seconds` at most; whether that came true.

        To be called once gRPC has closed its ends: what it wrote last is then passed on to peers that read.
        """
        self._empty = asyncio.Event()
        if not self._splices:
            return True
        try:
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Stop accepting, cut every connection, those too that only wait for their peer to close, and clean up."""
        self.stop_accepting()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for splice in list(self._splices):
            splice.abort()
        await self.emptied(_CLOSE_SECONDS)
        self._private.close()

    def _accept(
        self,
        listener: socket.socket,
        admit: Callable[[socket.socket], Awaitable[None]],
        busy: Callable[[int], bool] = lambda _: False,
    ) -> None:
        self._acceptors.append(Acceptor(listener, admit, tasks=self._tasks, refused=self.refused, busy=busy))

    def _crowded(self, coming: int) -> bool:
        """A crowd waits for its handshakes: whoever comes now is better off in the kernel's queue than turned away."""
        return self._handshakes.full(asyncio.get_running_loop().time(), coming)

    async def _admit_unix(self, connection: socket.socket) -> None:
        uid = peer_credentials(connection).uid
        room = self.limits.connections + (0 if uid else _TRUSTED_RESERVE)
        shares: dict[Hashable, int] = {uid: self.limits.connections_per_uid} if uid else {}
        if len(self._links) >= room or not self._shares.take(shares):
            self._turn_away(connection)
            return
        try:
            peer = unix_peer(connection)
        except BaseException:
            self._shares.give(shares)
            raise
        link = _Link(peer, self._splice(lambda: self._leave(link)), shares)
        self._links[link.name] = link
        try:
            loop = asyncio.get_running_loop()
            link.splice.near.meter = self._meters.of(peer.pid, loop.time(), uid=peer.uid)
            await self._connect_far(link, _SOCKET)
            if self._strict:
                WitnessedTransport(
                    connection, link.splice.near, pid=peer.pid, on_stranger=partial(self._stranger, link)
                )
            else:
                await loop.connect_accepted_socket(lambda: link.splice.near, connection)
        except BaseException:
            link.splice.abort()
            raise

    def _stranger(self, link: _Link, pid: int) -> None:
        """Another process wrote into this connection: nothing more is said to whoever holds it."""
        self.refused["another writer"] += 1
        facts = {"connected": getattr(link.peer, "pid", 0), "wrote": pid}
        log.info("connection cut: another process than the one that made it wrote into it", extra={"facts": facts})
        link.splice.abort()

    async def _admit_tls(
        self, connection: socket.socket, contexts: TlsContexts, stranger: TlsPeer, principal: int | str
    ) -> None:
        loop = asyncio.get_running_loop()
        handshake = asyncio.current_task()
        assert handshake is not None  # the acceptor gives each connection a task
        if len(self._links) >= self.limits.connections or not self._handshakes.begin(handshake, loop.time()):
            self._turn_away(connection)
            return
        link = _Link(stranger, self._splice(lambda: self._leave(link)))
        link.splice.near.meter = self._meters.of(principal, loop.time())
        try:
            until = loop.time() + self.limits.handshake_seconds
            async with asyncio.timeout_at(until):
                await readable(connection)  # a peer that says nothing takes nobody's turn
            left = until - loop.time()
            self._handshakes.keep_waiting(handshake)
            async with self._places.one():
                await self._pace.turn()
                self._handshakes.go_on(handshake, loop.time())
                transport, _ = await loop.connect_accepted_socket(
                    lambda: link.splice.near,
                    connection,
                    ssl=contexts.current(),
                    ssl_handshake_timeout=max(left, _LEAST_SECONDS),
                )
            self._handshakes.keep_waiting(handshake)
            await self._pace.turn()  # to look at the certificate: more work than to exchange it
        except BaseException:
            link.splice.abort()
            raise
        finally:
            self._handshakes.end(handshake, loop.time())
        try:
            link.peer = tls_peer(stranger, transport.get_extra_info("ssl_object"), contexts.tls)
            link.shares = self._shares.of_tls(link.peer, self.limits.connections)
            self._links[link.name] = link
            async with asyncio.timeout(self.limits.handshake_seconds), self._introductions:
                await self._connect_far(link, next(self._turn), greeted=True)
        except BaseException:
            link.splice.abort()
            raise

    def _turn_away(self, connection: socket.socket) -> None:
        self.refused["too many connections"] += 1
        connection.close()

    def _leave(self, link: _Link) -> None:
        """Forget the name before its socket is closed, and let go of the process."""
        self._links.pop(link.name, None)
        self._shares.give(link.shares)
        link.shares = {}
        if link.splice.near.meter is not None:
            link.splice.near.meter.close()
        if isinstance(link.peer, UnixPeer):
            link.peer.process.close()

    def _splice(self, on_close: Callable[[], None]) -> Splice:
        splice = Splice(
            buffer=self.limits.buffer_bytes,
            stall=self.limits.stall_seconds,
            on_close=on_close,
            on_gone=lambda: self._gone(splice),
        )
        self._splices.add(splice)
        return splice

    def _gone(self, splice: Splice) -> None:
        self._splices.discard(splice)
        if self._empty is not None and not self._splices:
            self._empty.set()

    async def _connect_far(self, link: _Link, listener: str, *, greeted: bool = False) -> None:
        """Join a link to gRPC, with `greeted` once gRPC has said its first word (RFC 9113 section 3.4)."""
        loop = asyncio.get_running_loop()
        far = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            far.bind("\0" + link.name)
            await _connect(far, str(self._private.path / listener))
            if greeted:
                await readable(far)
            await loop.create_unix_connection(lambda: link.splice.far, sock=far)
        except BaseException:
            far.close()
            raise


async def _connect(far: socket.socket, path: str) -> None:
    """Connect at once; EAGAIN on a Unix socket means that the backlog is full, not that it is under way."""
    for attempt in range(_CONNECT_ATTEMPTS):
        try:
            far.connect(path)
        except BlockingIOError:
            await asyncio.sleep(0.002 * (attempt + 1))
        else:
            return
    raise TimeoutError("the private listener does not answer")


def _text(address: Any) -> str:
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else str(address)
