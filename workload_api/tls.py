"""Mutual TLS between workloads, by SPIFFE ID.

    server = await start_server(handle, "127.0.0.1", 8443, source, member_of(domain))
    stream = await connect_tls("127.0.0.1", 8443, source, exactly(SpiffeId.parse("spiffe://example.org/db")))

Each handshake uses the newest SVID and bundles of the source, so nothing is restarted when they rotate. Python's ssl
cannot judge a certificate by its URI name: OpenSSL checks the chain against all roots, then `verified_svid` holds it to
the SPIFFE rules and to the bundle of the peer's own trust domain, and the authoriser decides. No application byte is
read or written before. Private keys reach OpenSSL through anonymous memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from spiffe_core.bundle import BundleSet
from spiffe_core.clock import Clock, SystemClock
from spiffe_core.errors import IdentityError, Reason, Unavailable, VerificationFailed
from spiffe_core.runtime.supervise import spawn
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from spiffe_core.wire import tls as wire_tls
from spiffe_core.x509_svid import X509Svid

log = logging.getLogger(__name__)

Authoriser = Callable[[SpiffeId], None]
"""Returns for a peer that may talk to us; raises VerificationFailed for any other."""

_BACKLOG = 1024
_GOODBYE_SECONDS = 1.0
_ACCEPT_PAUSE_SECONDS = 0.1


class TlsSource(Protocol):
    """Where the newest identity and bundles come from; `X509Source` is one."""

    @property
    def svid(self) -> X509Svid:
        """The newest SVID."""
        ...

    @property
    def bundles(self) -> BundleSet:
        """The newest bundles."""
        ...


def any_id() -> Authoriser:
    """Every peer with a valid SVID, of any trust domain there is a bundle for."""

    def check(_peer: SpiffeId) -> None:
        return

    return check


def exactly(*ids: SpiffeId) -> Authoriser:
    """Only these SPIFFE IDs."""
    if not ids:
        raise ValueError("exactly() without an ID would refuse everyone; name at least one")
    allowed = frozenset(ids)

    def check(peer: SpiffeId) -> None:
        if peer not in allowed:
            raise VerificationFailed(
                "the peer's SPIFFE ID is not the one expected", Reason.UNEXPECTED_ID, peer=str(peer)
            )

    return check


def member_of(trust_domain: TrustDomain) -> Authoriser:
    """Every SPIFFE ID of one trust domain."""

    def check(peer: SpiffeId) -> None:
        if not peer.member_of(trust_domain):
            raise VerificationFailed(
                "the peer's SPIFFE ID is not of the trust domain expected", Reason.UNEXPECTED_ID, peer=str(peer)
            )

    return check


def server_context(source: TlsSource, alpn: Sequence[str] = ()) -> ssl.SSLContext:
    """A context for the next handshake as a server: the client must present a certificate."""
    context = wire_tls.server_context(_identity(source), _roots(source))
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(list(alpn))
    return context


def client_context(source: TlsSource, alpn: Sequence[str] = ()) -> ssl.SSLContext:
    """A context for the next handshake as a client."""
    context = wire_tls.client_context(_identity(source), _roots(source))
    context.set_alpn_protocols(list(alpn))
    return context


def require_peer(
    tls: ssl.SSLObject,
    source: TlsSource,
    authorise: Authoriser,
    *,
    purpose: Literal["client", "server"],
    clock: Clock | None = None,
) -> SpiffeId:
    """Who is on the other end of a finished handshake. `purpose`, "client" or "server", is what the *peer* is.

    Raises:
        VerificationFailed: the peer did not prove a SPIFFE ID in this very handshake, or it is not allowed.
    """
    if tls.session_reused:
        raise VerificationFailed("a resumed TLS session proves nothing now", Reason.UNKNOWN_AUTHORITY)
    now = (clock or SystemClock()).now()
    bundles = source.bundles
    svid = wire_tls.verified_svid(tls, bundles.get, now=now, purpose=purpose, revocations=bundles.revocations)
    if svid is None:
        raise VerificationFailed("the peer presented no certificate", Reason.EMPTY_CHAIN)
    authorise(svid.spiffe_id)
    return svid.spiffe_id


@dataclass(frozen=True, slots=True)
class TlsStream:
    """A connection whose other end is known."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    peer: SpiffeId

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await _close(self.writer)


async def connect_tls(
    host: str,
    port: int,
    source: TlsSource,
    authorise: Authoriser,
    *,
    timeout: float = 10.0,  # noqa: ASYNC109  # the whole of connect and handshake; said in the error
    alpn: Sequence[str] = (),
    clock: Clock | None = None,
) -> TlsStream:
    """Connect, and return only if the server is whom `authorise` allows.

    With TLS 1.3 the server judges our certificate after this returns: a refusal shows as the end of the stream.

    Raises:
        VerificationFailed: the server is not who it should be; the connection is closed.
        Unavailable: it cannot be reached.
    """
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection(host, port, ssl=client_context(source, alpn))
    except ssl.SSLCertVerificationError as error:
        raise VerificationFailed(
            f"the server's certificate was refused: {error.verify_message}", Reason.UNKNOWN_AUTHORITY
        ) from error
    except TimeoutError:
        raise Unavailable(f"{host}:{port} did not finish a TLS handshake within {timeout:g} s") from None
    except OSError as error:
        raise Unavailable(f"{host}:{port} cannot be reached: {error}") from error
    try:
        peer = require_peer(writer.get_extra_info("ssl_object"), source, authorise, purpose="server", clock=clock)
    except BaseException:
        await _abort(writer)
        raise
    return TlsStream(reader, writer, peer)


class TlsServer:
    """Accepts TLS connections from allowed peers; each runs `handle(stream)` in a task of its own until it returns.

    `refused` counts connections that were turned away, by reason.
    """

    def __init__(
        self,
        handle: Callable[[TlsStream], Awaitable[None]],
        source: TlsSource,
        authorise: Authoriser,
        *,
        handshake_seconds: float = 10.0,
        connections: int = 1024,
        alpn: Sequence[str] = (),
        clock: Clock | None = None,
    ) -> None:
        self._handle = handle
        self._source = source
        self._authorise = authorise
        self._handshake_seconds = handshake_seconds
        self._alpn = tuple(alpn)
        self._clock = clock or SystemClock()
        self._room = asyncio.Semaphore(connections)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._listener: socket.socket | None = None
        self._context: tuple[X509Svid, BundleSet, ssl.SSLContext] | None = None
        self.refused: Counter[str] = Counter()

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        assert self._listener is not None, "the server is not listening"
        host, port = self._listener.getsockname()[:2]
        return host, port

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def listen(self, host: str, port: int) -> None:
        """Begin to accept."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        self._listener.setblocking(False)
        spawn(self._accept(self._listener), "accept tls", self._tasks)

    async def close(self) -> None:
        """Stop accepting and end every connection."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
        await asyncio.sleep(0)  # transports of handshakes that were cut off close in the loop's next turn

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._room.acquire()
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:
                self._room.release()
                log.warning("cannot accept: %s", error)
                await asyncio.sleep(_ACCEPT_PAUSE_SECONDS)
            except BaseException:
                self._room.release()
                raise
            else:
                spawn(self._serve(connection), "tls connection", self._tasks).add_done_callback(
                    lambda _: self._room.release()
                )

    async def _serve(self, connection: socket.socket) -> None:
        try:
            stream = await self._admit(connection)
        except (IdentityError, OSError, TimeoutError) as error:
            self.refused[_reason(error)] += 1
            log.info("connection refused: %s", error)
            return
        try:
            await self._handle(stream)
        except OSError as error:
            log.info("connection broke: %s", error)
        except Exception:
            log.exception("a connection's handler failed")
        finally:
            await stream.close()

    async def _admit(self, connection: socket.socket) -> TlsStream:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        try:
            context = self._current_context()
        except BaseException:
            connection.close()
            raise
        # From here on the transport owns the socket, also when the handshake fails.
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol, connection, ssl=context, ssl_handshake_timeout=self._handshake_seconds
        )
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        try:
            peer = require_peer(
                transport.get_extra_info("ssl_object"),
                self._source,
                self._authorise,
                purpose="client",
                clock=self._clock,
            )
        except BaseException:
            await _abort(writer)
            raise
        return TlsStream(reader, writer, peer)

    def _current_context(self) -> ssl.SSLContext:
        """The context of the newest SVID and bundles; made anew only when one of them is another."""
        svid, bundles = self._source.svid, self._source.bundles
        kept = self._context
        if kept is not None and kept[0] is svid and kept[1] is bundles:
            return kept[2]
        context = server_context(self._source, self._alpn)
        self._context = (svid, bundles, context)
        return context


async def start_server(
    handle: Callable[[TlsStream], Awaitable[None]],
    host: str,
    port: int,
    source: TlsSource,
    authorise: Authoriser,
    *,
    handshake_seconds: float = 10.0,
    connections: int = 1024,
    alpn: Sequence[str] = (),
    clock: Clock | None = None,
) -> TlsServer:
    """Listen for TLS connections from peers that `authorise` allows. Close the server, or use it with `async with`."""
    server = TlsServer(
        handle,
        source,
        authorise,
        handshake_seconds=handshake_seconds,
        connections=connections,
        alpn=alpn,
        clock=clock,
    )
    server.listen(host, port)
    return server


def _identity(source: TlsSource) -> wire_tls.TlsIdentity:
    svid = source.svid
    return wire_tls.TlsIdentity(svid.chain, svid.key)


def _roots(source: TlsSource) -> tuple[bytes, ...]:
    return tuple(der for bundle in source.bundles.all() for der in bundle.x509_roots)


def _reason(error: Exception) -> str:
    if isinstance(error, VerificationFailed):
        return error.reason.value
    return error.kind.value if isinstance(error, IdentityError) else "handshake"


async def _close(writer: asyncio.StreamWriter) -> None:
    """Say goodbye, within a second."""
    writer.close()
    try:
        async with asyncio.timeout(_GOODBYE_SECONDS):
            await writer.wait_closed()
    except (OSError, TimeoutError):
        await _abort(writer)


async def _abort(writer: asyncio.StreamWriter) -> None:
    """Close without a word, and return when the socket is closed."""
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
