"""One bounded GET, over TLS or over a Unix socket, for attestors that ask a kubelet or a container engine.

No redirect is followed, no proxy is asked, nothing is kept open. What comes back is a status and bytes.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass

from spiffe_core.errors import Unavailable

_LEAST_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Answer:
    """A status code and a body."""

    status: int
    body: bytes


def get_https(
    host: str, port: int, path: str, *, tls: ssl.SSLContext, headers: Mapping[str, str], deadline: float, limit: int
) -> Answer:
    """Ask over TLS. `deadline` is `time.monotonic()` seconds, `limit` the largest body in bytes.

    Raises:
        Unavailable: nobody answered in time, or the answer is too large; says who and why.
    """
    connection = http.client.HTTPSConnection(host, port, context=tls, timeout=_left(deadline, host))
    return _get(connection, f"{host}:{port}", path, headers, deadline, limit)


def get_unix(socket_path: str, path: str, *, deadline: float, limit: int) -> Answer:
    """Ask over a Unix socket; otherwise as `get_https`."""
    connection = _UnixConnection(socket_path, _left(deadline, socket_path))
    return _get(connection, socket_path, path, {}, deadline, limit)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, socket_path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._socket_path = socket_path

    def connect(self) -> None:
        """Connect to the Unix socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._socket_path)


def _get(
    connection: http.client.HTTPConnection, who: str, path: str, headers: Mapping[str, str], deadline: float, limit: int
) -> Answer:
    try:
        connection.request("GET", path, headers={"Accept": "application/json", **headers})
        response = connection.getresponse()
        parts, size = [], 0
        while part := response.read1(1024 * 1024):
            size += len(part)
            if size > limit:
                raise Unavailable(f"{who}: the answer has more than {limit} bytes")
            _left(deadline, who)
            parts.append(part)
        return Answer(response.status, b"".join(parts))
    except ssl.SSLError as error:
        raise Unavailable(f"{who}: TLS failed: {error.reason or error}") from None
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"{who}: cannot be asked: {str(error) or type(error).__name__}") from None
    finally:
        connection.close()


def _left(deadline: float, who: str) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise Unavailable(f"{who}: did not answer in time")
    return max(left, _LEAST_SECONDS)
