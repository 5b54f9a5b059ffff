"""A gRPC client that costs next to nothing, so that the server is what is measured.

A call is always the same bytes but for its stream number; of the answers only frame headers and messages are looked at.
The peer is asked to send header blocks without state (table size 0), and none of them is decoded: a call that failed has
no message, and whoever uses this checks the messages.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import cast

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1
WINDOW = 2**30
PREFIX_BYTES = 5
CALL_SECONDS = 60.0


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One HTTP/2 frame."""
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def literal(name: str, value: str) -> bytes:
    """A header field without indexing and without Huffman coding (RFC 7541 section 6.2.2)."""
    return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


def request_headers(method: str, scheme: str = "http") -> bytes:
    """The header block of a call of any API: servers ignore the header of the Workload API."""
    fields = {
        ":method": "POST",
        ":scheme": scheme,
        ":path": method,
        ":authority": "localhost",
        "content-type": "application/grpc",
        "te": "trailers",
        "workload.spiffe.io": "true",
    }
    return b"".join(literal(name, value) for name, value in fields.items())


class RawConnection(asyncio.Protocol):
    """One connection. `heard` is called with each message, `ended` with the number of a call that is over, `lost` once."""

    def __init__(
        self, heard: Callable[[int, bytes], None], ended: Callable[[int], None], lost: Callable[[], None]
    ) -> None:
        self._heard, self._ended, self._lost = heard, ended, lost
        self._buffer = b""
        self._partial: dict[int, bytes] = {}
        self._next = 1
        self._received = 0
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(
        cls,
        path: Path,
        heard: Callable[[int, bytes], None],
        ended: Callable[[int], None] = lambda _: None,
        lost: Callable[[], None] = lambda: None,
    ) -> RawConnection:
        """Connect to a Unix socket."""
        _, made = await asyncio.get_running_loop().create_unix_connection(lambda: cls(heard, ended, lost), str(path))
        return made

    @classmethod
    async def one_call(cls, place: tuple[str, int], context: ssl.SSLContext, headers: bytes, message: bytes) -> bytes:
        """The only message that answers a call on a TLS connection of its own."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bytes] = loop.create_future()

        def heard(_number: int, said: bytes) -> None:
            answer.set_result(said)

        def ended() -> None:
            if not answer.done():
                answer.set_exception(ConnectionError("the call ended without an answer"))

        _, made = await loop.create_connection(lambda: cls(heard, lambda _: ended(), ended), *place, ssl=context)
        try:
            made.call(headers, message)
            async with asyncio.timeout(CALL_SECONDS):
                return await answer
        finally:
            made.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's
        """It is gone."""
        self._lost()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say who we are: no header table, large windows."""
        self._transport = cast("asyncio.Transport", transport)
        settings = b"\0\1" + bytes(4) + b"\0\4" + WINDOW.to_bytes(4)
        self._transport.write(
            PREFACE + frame(SETTINGS, 0, 0, settings) + frame(WINDOW_UPDATE, 0, 0, WINDOW.to_bytes(4))
        )

    def call(self, headers: bytes, message: bytes) -> int:
        """Begin a call; its number."""
        assert self._transport is not None
        number, self._next = self._next, self._next + 2
        body = b"\0" + len(message).to_bytes(4) + message
        self._transport.write(frame(HEADERS, END_HEADERS, number, headers) + frame(DATA, END_STREAM, number, body))
        return number

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Frame by frame."""
        buffer, at = self._buffer + data, 0
        while len(buffer) - at >= 9:  # a frame header (RFC 9113 section 4.1)
            length = int.from_bytes(buffer[at : at + 3])
            end = at + 9 + length
            if end > len(buffer):
                break
            self._frame(buffer[at + 3], buffer[at + 4], int.from_bytes(buffer[at + 5 : at + 9]), buffer[at + 9 : end])
            at = end
        self._buffer = buffer[at:]

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        assert self._transport is not None
        if kind == DATA:
            self._received += len(payload)
            self._data(stream, payload)
            if self._received > WINDOW // 2:
                self._transport.write(frame(WINDOW_UPDATE, 0, 0, self._received.to_bytes(4)))
                self._received = 0
        elif kind in (SETTINGS, PING) and not flags & ACK:
            self._transport.write(frame(kind, ACK, 0, payload if kind == PING else b""))
        if kind == RST_STREAM or (kind in (DATA, HEADERS) and flags & END_STREAM):
            self._partial.pop(stream, None)
            self._ended(stream)

    def _data(self, stream: int, payload: bytes) -> None:
        held = self._partial.pop(stream, b"") + payload
        while len(held) >= PREFIX_BYTES:
            end = PREFIX_BYTES + int.from_bytes(held[1:PREFIX_BYTES])
            if len(held) < end:
                break
            self._heard(stream, held[PREFIX_BYTES:end])
            held = held[end:]
        if held:
            self._partial[stream] = held
