"""Requests to one HTTPS API: JSON both ways, and a bound on everything.

Each request has a thread and a connection of its own; what takes too long is cut off by closing the socket, wherever
its thread is waiting.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from spiffe_core.errors import Unavailable
from spiffe_core.runtime.https_client import Answer as Received
from spiffe_core.runtime.https_client import Exchange, TlsTarget, cause_of
from spiffe_core.runtime.offload import Offload

CALL_SECONDS = 8.0
MAX_ANSWER_BYTES = 1024 * 1024
MAX_MEMBERS = 1000


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
        data = None if body is None else json.dumps(body, allow_nan=False).encode()
        exchange = Exchange(deadline=time.monotonic() + self._seconds, limit=MAX_ANSWER_BYTES)
        try:
            async with asyncio.timeout(self._seconds):
                received = await self._offload(self._run, exchange, method, path, dict(headers), data)
        except TimeoutError:
            raise Unavailable(f"{self.place} did not answer within {self._seconds:g} s") from None
        except ssl.SSLCertVerificationError as error:
            raise Unavailable(
                f"the certificate of {self.place} is not believed ({error.verify_message}); name the file of its "
                "authority in upstream.vault.ca_file"
            ) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Unavailable(f"cannot reach {self.place}: {cause_of(error)}") from None
        finally:
            exchange.abort()
        return Answer(received.status, self._document(received.status, received.body))

    def _run(self, exchange: Exchange, method: str, path: str, headers: dict[str, str], body: bytes | None) -> Received:
        return exchange.run(TlsTarget(*self._address, self._context()), method, path, headers, body)

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


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs) or len(found) > MAX_MEMBERS:
        raise ValueError("a name stands twice, or there are too many")
    return found


def _refuse(_constant: str) -> None:
    raise ValueError("not a number of JSON")
