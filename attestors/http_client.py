"""One bounded request, over TLS or over a Unix socket, for attestors that ask a kubelet, an API server or an engine.

No redirect is followed, no proxy is asked, nothing is kept open. What comes back is a status and bytes. The time counts
for the whole answer: a peer that sends a byte now and then does not get more of it.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from spiffe_core.errors import Unavailable

_LEAST_SECONDS = 0.05
_PIECE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """A status code and a body."""

    status: int
    body: bytes = field(repr=False)


def get_https(
    host: str, port: int, path: str, *, tls: ssl.SSLContext, headers: Mapping[str, str], deadline: float, limit: int
) -> Answer:
    """Ask over TLS. `deadline` is `time.monotonic()` seconds, `limit` the largest body in bytes.

    Raises:
        Unavailable: nobody answered in time, or the answer is too large; says who and why.
    """
    return ask_https("GET", host, port, path, tls=tls, headers=headers, deadline=deadline, limit=limit)


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
    """As `get_https`, by any method; the certificate must be that of `server_name` if it is given, else of `host`."""
    connection = _TlsConnection(host, port, tls, server_name or host, _left(deadline, host))
    return _ask(connection, f"{host}:{port}", method, path, headers, body, deadline, limit)


def get_unix(socket_path: str, path: str, *, deadline: float, limit: int) -> Answer:
    """Ask over a Unix socket; otherwise as `get_https`."""
    connection = _UnixConnection(socket_path, _left(deadline, socket_path))
    return _ask(connection, socket_path, "GET", path, {}, None, deadline, limit)


class _TlsConnection(http.client.HTTPConnection):
    def __init__(self, host: str, port: int, tls: ssl.SSLContext, server_name: str, timeout: float) -> None:
        super().__init__(host, port, timeout=timeout)
        self._tls = tls
        self._server_name = server_name

    def connect(self) -> None:
        """Connect and shake hands; the timeout bounds the whole handshake."""
        super().connect()
        self.sock = self._tls.wrap_socket(self.sock, server_hostname=self._server_name)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, socket_path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._socket_path = socket_path

    def connect(self) -> None:
        """Connect to the Unix socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._socket_path)


class _UntilDeadline(io.RawIOBase):
    """What a socket receives, each read with no more than the time that is left."""

    def __init__(self, connected: socket.socket, deadline: float, who: str) -> None:
        super().__init__()
        self._socket, self._deadline, self._who = connected, deadline, who

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Receive what there is; 0 at the end."""
        self._socket.settimeout(_left(self._deadline, self._who))
        return self._socket.recv_into(buffer)


def _ask(
    connection: http.client.HTTPConnection,
    who: str,
    method: str,
    path: str,
    headers: Mapping[str, str],
    body: bytes | None,
    deadline: float,
    limit: int,
) -> Answer:
    try:
        connection.request(method, path, body, {"Accept": "application/json", "Connection": "close", **headers})
        response = http.client.HTTPResponse(connection.sock, method=method)
        response.fp.close()
        response.fp = io.BufferedReader(_UntilDeadline(connection.sock, deadline, who))
        try:
            response.begin()
            return Answer(response.status, _body(response, who, limit))
        finally:
            response.close()
    except ssl.SSLError as error:
        raise Unavailable(f"{who}: TLS failed: {error.reason or error}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Unavailable(f"{who}: cannot be asked: {str(error) or type(error).__name__}") from None
    finally:
        connection.close()


def _body(response: http.client.HTTPResponse, who: str, limit: int) -> bytes:
    parts, size = [], 0
    while part := response.read1(_PIECE):
        size += len(part)
        if size > limit:
            raise Unavailable(f"{who}: the answer has more than {limit} bytes")
        parts.append(part)
    return b"".join(parts)


def _left(deadline: float, who: str) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise Unavailable(f"{who}: did not answer in time")
    return max(left, _LEAST_SECONDS)
