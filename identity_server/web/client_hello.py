"""What a TLS client says first, read without answering (RFC 8446 section 4.1.2): its protocols, and whom it means."""

from __future__ import annotations

from dataclasses import dataclass

MAX_HELLO_BYTES = 16 * 1024 + 5
"""One TLS record. A client that splits its hello over several is not recognised, and gets the usual certificate."""
_HANDSHAKE, _CLIENT_HELLO = 22, 1
_SERVER_NAME, _ALPN = 0, 16
_RECORD_HEADER = 5


@dataclass(frozen=True, slots=True)
class ClientHello:
    """The ALPN protocols in the order of the client, and the host name of SNI; empty where it says nothing."""

    protocols: tuple[bytes, ...] = ()
    server_name: bytes = b""


def missing(data: bytes) -> int:
    """How many bytes the record lacks; 0 if it is whole, or is none that can become a hello."""
    if len(data) < _RECORD_HEADER:
        return _RECORD_HEADER - len(data) if data[:1] in {b"", bytes([_HANDSHAKE])} else 0
    if data[0] != _HANDSHAKE:
        return 0
    size = int.from_bytes(data[3:5]) + _RECORD_HEADER
    return max(0, size - len(data)) if size <= MAX_HELLO_BYTES else 0


def read_hello(data: bytes) -> ClientHello | None:
    """The hello in a whole record; None if it is not one."""
    try:
        return _hello(data)
    except (IndexError, ValueError):
        return None


def _hello(data: bytes) -> ClientHello | None:
    record = _Bytes(data)
    if record.number(1) != _HANDSHAKE:
        return None
    record.take(2)
    body = _Bytes(record.block(2))
    if body.number(1) != _CLIENT_HELLO:
        return None
    hello = _Bytes(body.block(3))
    hello.take(2 + 32)
    hello.block(1)
    hello.block(2)
    hello.block(1)
    extensions = _Bytes(hello.block(2))
    protocols: tuple[bytes, ...] = ()
    name = b""
    while extensions.left:
        kind, content = extensions.number(2), _Bytes(extensions.block(2))
        if kind == _ALPN:
            listed = _Bytes(content.block(2))
            found = []
            while listed.left:
                found.append(listed.block(1))
            protocols = tuple(found)
        elif kind == _SERVER_NAME:
            names = _Bytes(content.block(2))
            if names.number(1) == 0:
                name = names.block(2)
    return ClientHello(protocols, name)


class _Bytes:
    """Reads from the front; ValueError where there is too little."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise ValueError("too short")
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def block(self, size: int) -> bytes:
        """So many bytes of length, and what they count."""
        return self.take(self.number(size))
