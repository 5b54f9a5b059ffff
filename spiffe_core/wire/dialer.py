"""The dialer: gRPC to a server that is known by its SPIFFE ID, not by a host name.

grpcio checks host names and nothing else, and SPIFFE certificates have none. So a channel is opened to a local listener
in a private directory; each connection that grpcio makes there is joined to a TLS connection that this module opened
and verified. The listener would be a ready-made tunnel for every process of the same user: a connector whose process
is not this one is closed and counted (architecture A5).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import grpc.aio

from spiffe_core.errors import IdentityError, Reason, Unauthenticated, Unavailable, VerificationFailed
from spiffe_core.runtime.supervise import spawn
from spiffe_core.runtime.unix_sockets import peer_credentials
from spiffe_core.wire.acceptor import Acceptor
from spiffe_core.wire.channels import channel_options
from spiffe_core.wire.server_proof import DialTrust, claimed_id, dial_context
from spiffe_core.wire.servers import Place, Servers
from spiffe_core.wire.sockets import BACKLOG, PrivateDirectory
from spiffe_core.wire.splice import Splice
from spiffe_core.wire.tls import TlsIdentity

log = logging.getLogger(__name__)

_CONNECT_SECONDS = 10.0
_REACH_SECONDS = 3.0
"""So long the next of several servers waits for one that does not even accept connections."""
_DIAL_SECONDS = 18.0
"""For all servers together: gRPC gives a connection up after 20 s."""
_STALL_SECONDS = 60.0
_UNACKNOWLEDGED_MILLISECONDS = 15_000
"""So long what was sent may stay unacknowledged: a path that swallows packets is given up then, not after 15 min."""
_BUFFER_BYTES = 256 * 1024
_LINGER_SECONDS = 30.0
_CLOSE_SECONDS = 2.0
_VERDICT_SECONDS = 5.0
"""A server that does not take a certificate hangs up at once; an overwhelmed one after its handshakes' 10 s."""


@dataclass(frozen=True, slots=True)
class _Proven:
    """Where a connection went, and when the server had proved itself on it."""

    place: Place
    at: float


class Dialer:
    """Channels to a server, or to one of several (`among`). Belongs to the event loop's thread.

    Each connection asks `trust` and `identity` for what is newest. `last_error` says in words why the last attempt
    failed, which gRPC's own status does not; it is None once the server has said something.

    Under TLS 1.3 the handshake is over for this side before the server has looked at the certificate (RFC 8446 section
    4.4.4: the client's Finished is the last message). A server that proved itself and ends the connection before its
    first word, when it was shown a certificate, has not taken that: `last_error` is `Unauthenticated` then.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        trust: Callable[[], DialTrust],
        identity: Callable[[], TlsIdentity | None],
        now: Callable[[], datetime],
    ) -> None:
        self.servers = Servers([(host, port)])
        self._trust = trust
        self._identity = identity
        self._now = now
        self._private: PrivateDirectory | None = None
        self._listener: socket.socket | None = None
        self._acceptor: Acceptor | None = None
        self._channel: grpc.aio.Channel | None = None
        self._splices: dict[Splice, _Proven | None] = {}
        self._empty: asyncio.Event | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._error: IdentityError | None = None
        self._newest: Splice | None = None
        self.refused: Counter[str] = Counter()

    @property
    def last_error(self) -> IdentityError | None:
        """Why there is no connection; None if there is one, or none was needed yet."""
        return None if self._newest is not None and self._newest.far.heard else self._error

    @classmethod
    def among(
        cls,
        servers: Servers,
        *,
        trust: Callable[[], DialTrust],
        identity: Callable[[], TlsIdentity | None],
        now: Callable[[], datetime],
    ) -> Dialer:
        """One that dials whichever of the servers is to be talked to now; other dialers may share them."""
        made = cls("", 0, trust=trust, identity=identity, now=now)
        made.servers = servers
        return made

    async def start(self) -> None:
        """Open the local listener. Nothing is dialled before the first call on a channel."""
        self._private = PrivateDirectory.make()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        listener.bind(str(self._private.path / "dial.sock"))
        listener.listen(BACKLOG)
        self._listener = listener
        self._acceptor = Acceptor(
            listener, self._join, tasks=self._tasks, refused=self.refused, on_no_room=self._no_descriptor
        )

    @property
    def local_path(self) -> str:
        """Where this process's own channels connect."""
        assert self._private is not None, "start() the dialer first"
        return str(self._private.path / "dial.sock")

    def channel(self) -> grpc.aio.Channel:
        """The present channel. Do not keep it over a `renew`."""
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(f"unix:{self.local_path}", options=channel_options())
        return self._channel

    async def renew(self) -> None:
        """Let later calls use new connections, made with the newest identity; calls in flight may finish on the old."""
        self.drop()

    def drop(self) -> None:
        """The same, at once."""
        old, self._channel = self._channel, None
        if old is not None:
            spawn(old.close(_LINGER_SECONDS), "close old channel", self._tasks)

    def answered(self, *, available: bool) -> None:
        """How a call ended that reached the server: one that goes on being unavailable is left for another one."""
        if self.servers.answered(available=available):
            self.drop()

    def fell_silent(self) -> None:
        """The other end may never answer again: let later calls use a new connection, elsewhere if they can."""
        self.servers.failed()
        self.drop()

    async def close(self) -> None:
        """Close channels, connections and the listener, and return when the last socket is closed."""
        if self._acceptor is not None:
            self._acceptor.close()
            self._acceptor = None
        if self._listener is not None:
            self._listener.close()
        if self._channel is not None:
            await self._channel.close()
            self._channel = None
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._empty = asyncio.Event()
        for splice in list(self._splices):
            splice.abort()
        if self._splices:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await self._empty.wait()
        if self._private is not None:
            self._private.close()

    def _look_for_gone(self) -> None:
        for splice in [one for one in self._splices if one.gone]:
            proven = self._splices.pop(splice)
            if proven is not None:
                self.servers.closed(proven.place)
        if self._empty is not None and not self._splices:
            self._empty.set()

    def _no_descriptor(self, error: OSError) -> None:
        self._failed(Unavailable(f"no connection to the server can be opened: {error.strerror}"))

    def _failed(self, error: IdentityError) -> None:
        self._error, self._newest = error, None

    async def _join(self, local: socket.socket) -> None:
        if peer_credentials(local).pid != os.getpid():
            self.refused["foreign process"] += 1
            log.warning("a foreign process tried to use this agent's connection to the server; it was cut off")
            local.close()
            return
        splice: Splice | None = None
        try:
            splice = await self._dial()
            near = splice.near
            self._newest = splice
            await asyncio.get_running_loop().connect_accepted_socket(lambda: near, local)
        except (IdentityError, OSError, TimeoutError) as error:
            failure = self._in_words(None, error)
            self._failed(failure)
            log.debug("dialling failed: %s", failure.public)
            local.close()
            if splice is not None:
                splice.abort()
        except BaseException:
            local.close()
            if splice is not None:
                splice.abort()
            raise

    async def _dial(self) -> Splice:
        """A connection to the first of the servers that answers and proves itself.

        Raises:
            IdentityError, OSError, TimeoutError: none does; what is most telling about it.
        """
        trust = self._trust()
        identity = self._identity()
        context = dial_context(trust, identity)
        loop = asyncio.get_running_loop()
        failures: list[tuple[Place, Exception]] = []
        try:
            async with asyncio.timeout(_DIAL_SECONDS):
                while True:
                    failures.clear()
                    splice = await self._first_that_answers(context, trust, failures, shown=identity is not None)
                    if splice is not None:
                        return splice
                    nobody_listens = all(isinstance(error, ConnectionRefusedError) for _, error in failures)
                    pause = self.servers.pause(loop.time()) if nobody_listens else None
                    if pause is None:
                        break
                    await asyncio.sleep(pause)
        except TimeoutError:
            if not failures:
                raise
        finally:
            for place, _ in failures:
                self.servers.failed(place)
        said = [self._in_words(place, error) for place, error in failures]
        raise next((one for one in said if isinstance(one, VerificationFailed)), said[0])

    async def _first_that_answers(
        self, context: ssl.SSLContext, trust: DialTrust, failures: list[tuple[Place, Exception]], *, shown: bool
    ) -> Splice | None:
        """A connection to a server that proves itself; None if none does, and `failures` says why."""
        places = await self.servers.order()
        for place in places:
            await asyncio.sleep(self.servers.hesitation(place))
            splice = self._splice(shown=shown)
            self._splices[splice] = None
            try:
                await self._connect(splice, place, context, trust, alone=len(places) == 1)
            except BaseException as error:
                splice.abort()
                if not isinstance(error, IdentityError | OSError):  # TimeoutError is an OSError
                    self.servers.failed(place)
                    raise
                failures.append((place, error))
                continue
            self._splices[splice] = _Proven(place, asyncio.get_running_loop().time())
            self.servers.opened(place)
            return splice
        return None

    def _splice(self, *, shown: bool) -> Splice:
        """What will join a connection on which a certificate is `shown`."""
        loop = asyncio.get_running_loop()

        def closed() -> None:
            proven = self._splices.get(splice)
            if proven is None or not shown or splice.ended_by is not splice.far or splice.far.heard:
                return
            if loop.time() - proven.at < _VERDICT_SECONDS:
                self._turned_away(proven.place)

        splice = Splice(buffer=_BUFFER_BYTES, stall=_STALL_SECONDS, on_close=closed, on_gone=self._look_for_gone)
        return splice

    def _turned_away(self, place: Place) -> None:
        """The server proved itself, was shown a certificate, and ended the connection without a word."""
        self.servers.failed(place)
        text = (
            f"the server at {place} proved itself and hung up without a word when it was shown this side's "
            "certificate: it may not know the authority that signed it, or the clocks of both machines differ"
        )
        self._failed(Unauthenticated(text))

    async def _connect(
        self, splice: Splice, place: Place, context: ssl.SSLContext, trust: DialTrust, *, alone: bool
    ) -> None:
        loop = asyncio.get_running_loop()
        connection = socket.socket(place.family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                async with asyncio.timeout(_CONNECT_SECONDS if alone else _REACH_SECONDS):
                    await loop.sock_connect(connection, place.target)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MILLISECONDS)
                transport, _ = await loop.create_connection(
                    lambda: splice.far, sock=connection, ssl=context, server_hostname=place.name
                )
        except BaseException:
            connection.close()
            raise
        tls: ssl.SSLObject = transport.get_extra_info("ssl_object")
        claimed = claimed_id(tls, trust, self._now())
        if claimed != trust.expected:
            raise VerificationFailed(
                f"the server at {place} is {claimed}, expected {trust.expected}", Reason.UNEXPECTED_ID
            )
        if tls.selected_alpn_protocol() != "h2":
            raise Unavailable(f"the server at {place} does not speak HTTP/2")

    def _in_words(self, place: Place | None, error: Exception) -> IdentityError:
        where = f"the server at {self.servers if place is None else place}"
        if isinstance(error, IdentityError):
            return error
        if isinstance(error, ssl.SSLCertVerificationError):
            return VerificationFailed(
                f"{where} is not proven by the trust bundle ({error.verify_message}); "
                "if its authorities were replaced, give the agent the new bundle",
                Reason.UNKNOWN_AUTHORITY,
            )
        if isinstance(error, TimeoutError):
            return Unavailable(f"{where} did not answer within {_CONNECT_SECONDS:.0f} s")
        if isinstance(error, ConnectionError) and error.errno:  # asyncio's own text repeats the address, not the cause
            return Unavailable(f"cannot reach {where}: {os.strerror(error.errno)}")
        return Unavailable(f"cannot reach {where}: {error.strerror if isinstance(error, OSError) else error}")
