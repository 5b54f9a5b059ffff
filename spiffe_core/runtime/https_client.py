"""One bounded request over TLS or a Unix socket: what is asked of kubelets, engines, Vault and bundle endpoints.

The standard library's client on the calling thread, because nobody here asks often enough to need a faster one, and a
server that holds a CA's keys takes in no library for it. No redirect is followed (it would carry the headers to whoever
is named in it), no proxy is asked, nothing is kept open, no compression is offered. The time counts for the whole
exchange: a peer that sends a byte now and then does not get more of it. What a peer sent is never quoted in a message.
"""

from __future__ import annotations

import errno
import http.client
import io
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from spiffe_core.errors import Unavailable
from spiffe_core.runtime.unix_sockets import peer_credentials

_LEAST_SECONDS = 0.05
_PIECE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """A status code and a body. Of the headers only two are of use to anybody here."""

    status: int
    body: bytes = field(repr=False)
    location: str = field(default="", repr=False)
    content_type: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class TlsTarget:
    """Who is asked over TLS: the host of the request, and the certificate of `server_name`, or else of `host`.

    With `addresses` the connection goes to the first of these IP addresses that answers and to no other, whatever the
    name means by now. `check` looks at the finished handshake; what it raises ends the exchange before anything is
    sent.
    """

    host: str
    port: int
    context: ssl.SSLContext
    server_name: str = ""
    addresses: tuple[str, ...] = ()
    check: Callable[[ssl.SSLSocket], None] | None = None


@dataclass(frozen=True, slots=True)
class UnixTarget:
    """Who is asked over a Unix socket; with `user`, only if that user listens there (SO_PEERCRED of unix(7))."""

    path: str
    user: int | None = None


class AnswerTooLargeError(ValueError):
    """The body has more bytes than was said beforehand."""


class Exchange:
    """One request and its answer on the thread that calls `run`; `abort` may be called from any other.

    `deadline` is `time.monotonic()` seconds, `limit` the largest body in bytes.
    """

    def __init__(self, *, deadline: float, limit: int) -> None:
        self._deadline, self._limit = deadline, limit
        self._socket: socket.socket | None = None
        self._over = False

    def run(
        self,
        target: TlsTarget | UnixTarget,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Answer:
        """Ask and read the answer, whatever its status.

        Raises:
            OSError, http.client.HTTPException, ValueError: TimeoutError at the deadline, `AnswerTooLargeError`, and
                what the network has to say; `cause_of` puts it in words.
        """
        if isinstance(target, UnixTarget):
            connection = http.client.HTTPConnection("localhost")
        else:
            connection = http.client.HTTPConnection(target.host, target.port)
            connection.default_port = http.client.HTTPS_PORT
        try:
            connection.sock = self._unix(target) if isinstance(target, UnixTarget) else self._tls(target)
            given = {"Accept": "application/json", "Connection": "close", **(headers or {})}
            connection.request(method, path, body, given)
            response = http.client.HTTPResponse(connection.sock, method=method)
            response.fp.close()
            response.fp = io.BufferedReader(_UntilDeadline(connection.sock, self._left))
            try:
                response.begin()
                return Answer(
                    response.status,
                    self._body(response),
                    response.getheader("location") or "",
                    response.getheader("content-type") or "",
                )
            finally:
                response.close()
        finally:
            connection.close()

    def abort(self) -> None:
        """End the exchange: a thread that waits for the socket goes on and finds it closed."""
        self._over = True
        opened = self._socket
        if opened is not None:
            try:
                socket.socket.shutdown(opened, socket.SHUT_RDWR)  # beneath TLS, which belongs to the other thread
            except OSError:
                return

    def _unix(self, target: UnixTarget) -> socket.socket:
        opened = self._kept(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        try:
            opened.settimeout(self._left())
            opened.connect(target.path)
            if target.user is not None:
                _require_listener(opened, target.user)
        except BaseException:
            opened.close()
            raise
        return opened

    def _tls(self, target: TlsTarget) -> socket.socket:
        plain = self._kept(self._tcp(target))
        try:
            plain.settimeout(self._left())
            secure = target.context.wrap_socket(
                plain, server_hostname=target.server_name or target.host, do_handshake_on_connect=False
            )
        except BaseException:
            plain.close()
            raise
        self._kept(secure)
        try:
            secure.do_handshake()
            if target.check is not None:
                target.check(secure)
        except BaseException:
            secure.close()
            raise
        return secure

    def _tcp(self, target: TlsTarget) -> socket.socket:
        """The first address that answers; each gets its share of the time, so that a silent one hides no other."""
        if not target.addresses:
            return socket.create_connection((target.host, target.port), self._left())
        refusal: OSError = OSError("there is no address to connect to")
        for number, address in enumerate(target.addresses):
            share = self._left() / (len(target.addresses) - number)
            try:
                return socket.create_connection((address, target.port), max(share, _LEAST_SECONDS))
            except OSError as error:
                refusal = error
        raise refusal

    def _kept(self, opened: socket.socket) -> socket.socket:
        self._socket = opened
        if self._over:
            opened.close()
            raise OSError("given up")
        return opened

    def _body(self, response: http.client.HTTPResponse) -> bytes:
        parts, size = [], 0
        while part := response.read1(_PIECE):
            size += len(part)
            if size > self._limit:
                raise AnswerTooLargeError(f"the answer has more than {self._limit} bytes")
            parts.append(part)
        if response.length:
            raise http.client.IncompleteRead(b"", response.length)
        return b"".join(parts)

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return max(left, _LEAST_SECONDS)


def _require_listener(opened: socket.socket, user: int) -> None:
    """Whoever listens at the other end has to be `user`, whatever the path led through."""
    if peer_credentials(opened).uid != user:
        raise PermissionError(errno.EPERM, f"another user than {user} listens there")


class _UntilDeadline(io.RawIOBase):
    """What a socket receives, each read with no more than the time that is left."""

    def __init__(self, connected: socket.socket, left: Callable[[], float]) -> None:
        super().__init__()
        self._socket, self._left = connected, left

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Receive what there is; 0 at the end."""
        self._socket.settimeout(self._left())
        return self._socket.recv_into(buffer)


def cause_of(error: Exception) -> str:
    """Why `Exchange.run` failed, in words that quote nothing of what was sent or received."""
    match error:
        case TimeoutError():
            words = "did not answer in time"
        case ssl.SSLCertVerificationError():
            words = f"TLS failed: the certificate is not believed ({error.verify_message})"
        case ssl.SSLError():
            words = f"TLS failed: {error.reason or 'closed'}"
        case AnswerTooLargeError():
            words = str(error)
        case socket.gaierror():
            words = f"the name cannot be resolved ({error.strerror})"
        case OSError():
            words = f"cannot be asked: {error.strerror or 'the connection broke'}"
        case http.client.IncompleteRead():
            words = "the answer broke off"
        case _:
            words = "the answer is not HTTP"
    return words


def ask_https(
    method: str,
    host: str,
    port: int,
    path: str,
    *,
    tls: ssl.SSLContext,
    headers: Mapping[str, str],
    deadline: float,
    limit: int,
    body: bytes | None = None,
    server_name: str = "",
) -> Answer:
    """Ask over TLS; the certificate must be that of `server_name` if it is given, else of `host`.

    Raises:
        Unavailable: nobody answered in time, or the answer is too large; says who and why.
    """
    target = TlsTarget(host, port, tls, server_name)
    return _asked(target, f"{host}:{port}", method, path, headers, body, deadline, limit)


def get_https(
    host: str, port: int, path: str, *, tls: ssl.SSLContext, headers: Mapping[str, str], deadline: float, limit: int
) -> Answer:
    """`ask_https` with GET."""
    return ask_https("GET", host, port, path, tls=tls, headers=headers, deadline=deadline, limit=limit)


def get_unix(socket_path: str, path: str, *, deadline: float, limit: int, user: int | None = None) -> Answer:
    """Ask over a Unix socket, with `user` only if that user listens there; otherwise as `ask_https`."""
    return _asked(UnixTarget(socket_path, user), socket_path, "GET", path, {}, None, deadline, limit)


def _asked(
    target: TlsTarget | UnixTarget,
    who: str,
    method: str,
    path: str,
    headers: Mapping[str, str],
    body: bytes | None,
    deadline: float,
    limit: int,
) -> Answer:
    try:
        return Exchange(deadline=deadline, limit=limit).run(target, method, path, headers, body)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Unavailable(f"{who}: {cause_of(error)}") from None
