"""Requests to one HTTPS API: JSON both ways, and a bound on everything.

The standard library's client on a thread, because a server asks its upstream a few times a day: a faster client would
buy nothing and bring another library into the process that holds the CA's keys. It follows no redirect (a redirect would
carry the token to whoever is named in it), uses no proxy and keeps no connection. What takes too long is cut off by
closing the socket, wherever its thread is waiting.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from spiffe_core.errors import Unavailable
from spiffe_core.runtime.offload import Offload

CALL_SECONDS = 8.0
MAX_ANSWER_BYTES = 1024 * 1024
MAX_MEMBERS = 1000

_PIECE = 64 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """A status and the JSON object that came with it; empty if no body came."""

    status: int
    document: Mapping[str, Any] = field(repr=False)


class HttpsClient:
    """Asks one server. `context` is called for each request, so that replaced certificates count at once."""

    def __init__(
        self, host: str, port: int, context: Callable[[], ssl.SSLContext], *, seconds: float = CALL_SECONDS
    ) -> None:
        self.place = f"{host}:{port}"
        self._address = (host, port)
        self._context = context
        self._seconds = seconds
        self._offload = Offload("upstream-https", 2)

    async def ask(
        self, method: str, path: str, headers: Mapping[str, str], body: Mapping[str, object] | None = None
    ) -> Answer:
        """One request and its answer, whatever its status.

        Raises:
            Unavailable: no answer that can be read came in time; the message says why and quotes nothing.
            ConfigError: from `context`.
        """
        exchange = _Exchange(self._address, self._context, self._seconds)
        try:
            async with asyncio.timeout(self._seconds):
                status, data = await self._offload(exchange.run, method, path, dict(headers), body)
        except TimeoutError:
            raise Unavailable(f"{self.place} did not answer within {self._seconds:g} s") from None
        except ssl.SSLCertVerificationError as error:
            raise Unavailable(
                f"the certificate of {self.place} is not believed ({error.verify_message}); name the file of its "
                "authority in upstream.vault.ca_file"
            ) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Unavailable(f"cannot reach {self.place}: {_words(error)}") from None
        finally:
            exchange.abort()
        if data is None:
            raise Unavailable(f"the answer of {self.place} has more than {MAX_ANSWER_BYTES} bytes")
        return Answer(status, self._document(status, data))

    def _document(self, status: int, data: bytes) -> Mapping[str, Any]:
        if not data.strip():
            return {}
        try:
            document = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_refuse)
        except (ValueError, RecursionError):  # the cause is dropped: it carries the document
            raise Unavailable(f"{self.place} answered with status {status} and no sound JSON") from None
        if not isinstance(document, dict):
            raise Unavailable(f"{self.place} answered with status {status} and JSON that is no object")
        return document


class _Exchange:
    """One connection, on a thread of its own; `abort` may be called from any other."""

    def __init__(self, address: tuple[str, int], context: Callable[[], ssl.SSLContext], seconds: float) -> None:
        self._address, self._context, self._seconds = address, context, seconds
        self._socket: socket.socket | None = None
        self._over = False

    def run(
        self, method: str, path: str, headers: dict[str, str], body: Mapping[str, object] | None
    ) -> tuple[int, bytes | None]:
        """Status and body; None for one that is too large."""
        host, port = self._address
        data = None if body is None else json.dumps(body, allow_nan=False).encode()
        connection = http.client.HTTPConnection(host, port)
        try:
            connection.sock = self._connected()
            connection.request(method, path, data, {**headers, "Accept": "application/json", "Connection": "close"})
            response = connection.getresponse()
            pieces, size = [], 0
            while piece := response.read(_PIECE):
                pieces.append(piece)
                size += len(piece)
                if size > MAX_ANSWER_BYTES:
                    return response.status, None
            return response.status, b"".join(pieces)
        finally:
            connection.close()

    def _connected(self) -> socket.socket:
        plain = socket.create_connection(self._address, self._seconds)
        self._keep(plain)
        try:
            secure = self._context().wrap_socket(plain, server_hostname=self._address[0], do_handshake_on_connect=False)
        except BaseException:
            plain.close()
            raise
        self._keep(secure)
        secure.do_handshake()
        return secure

    def _keep(self, opened: socket.socket) -> None:
        self._socket = opened
        if self._over:
            raise OSError("given up")

    def abort(self) -> None:
        """End the exchange: a thread that waits for the socket goes on and finds it closed."""
        self._over = True
        opened = self._socket
        if opened is not None:
            try:
                socket.socket.shutdown(opened, socket.SHUT_RDWR)  # beneath TLS, which belongs to the other thread
            except OSError:
                return


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs) or len(found) > MAX_MEMBERS:
        raise ValueError("a name stands twice, or there are too many")
    return found


def _refuse(_constant: str) -> None:
    raise ValueError("not a number of JSON")


def _words(error: Exception) -> str:
    """The cause in words that quote nothing of what was sent or received."""
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({error.reason or 'closed'})"
    if isinstance(error, OSError):
        return error.strerror or "the connection broke"
    return "the answer is not HTTP"
