"""A Unix connection that is read together with who wrote: the kernel stamps each write with its process (unix(7)).

A socket that was inherited or passed on lets another process speak with the identity of the one that connected. With
SO_PASSCRED on the listener every chunk of bytes arrives with the credentials of its writer, also those written before
the connection was accepted, and never two writers' bytes in one chunk. The first that another process wrote ends the
connection (reliability cases S14, S15); `node_agent.services.callers` looks for those who only listen.

Event loops read without looking at credentials, so this is a transport of its own; a door uses it in strict mode only.
A process with CAP_SYS_ADMIN may claim to be any other.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Final

from spiffe_core.runtime.unix_sockets import CREDENTIALS_BYTES, read_credentials

_ANCILLARY: Final = socket.CMSG_SPACE(CREDENTIALS_BYTES)
_READ_BYTES: Final = 64 * 1024
_LOW_DIVISOR: Final = 4


def record_writers(listener: socket.socket) -> None:
    """Have the kernel stamp what is written to connections of this listening socket."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)


class WitnessedTransport(asyncio.Transport):
    """Carries one connection as asyncio's own transports do. Belongs to the event loop's thread.

    `on_stranger` is told the process number of a writer that is not `pid` (0 for one that cannot be seen or is not
    named); the connection has been cut by then, and nothing of what was written was passed on.
    """

    def __init__(
        self, connection: socket.socket, protocol: asyncio.Protocol, *, pid: int, on_stranger: Callable[[int], None]
    ) -> None:
        super().__init__({"socket": connection})
        self._socket = connection
        self._protocol = protocol
        self._pid = pid
        self._on_stranger = on_stranger
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._high = 64 * 1024
        self._reading = False
        self._want_reading = True
        self._closing = False
        self._eof = False
        self._full = False
        protocol.connection_made(self)
        self._arm()

    # What asyncio.Transport promises

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Who is told of bytes."""
        return self._protocol

    def is_closing(self) -> bool:
        """Whether it was closed, or is about to be."""
        return self._closing

    def is_reading(self) -> bool:
        """Whether bytes are being delivered."""
        return self._reading

    def pause_reading(self) -> None:
        """Deliver nothing for now."""
        self._want_reading = False
        self._arm()

    def resume_reading(self) -> None:
        """Deliver again."""
        self._want_reading = True
        self._arm()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:  # noqa: ARG002  # asyncio's signature
        """How many bytes may wait before the protocol is asked to pause; a quarter of it lets it go on."""
        self._high = self._high if high is None else high

    def get_write_buffer_size(self) -> int:
        """Bytes that wait for the peer."""
        return len(self._buffer)

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Send now what the kernel takes, the rest as soon as it takes more."""
        if self._closing or self._eof or not data:
            return
        sent = 0
        if not self._buffer:
            try:
                sent = self._socket.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as error:
                self._lose(error)
                return
            if sent == len(data):
                return
            self._loop.add_writer(self._socket, self._writable)
        self._buffer += memoryview(data)[sent:]
        if len(self._buffer) > self._high and not self._full:
            self._full = True
            self._protocol.pause_writing()

    def can_write_eof(self) -> bool:
        """A Unix socket can be closed one way."""
        return True

    def write_eof(self) -> None:
        """Close for writing, after what waits."""
        if self._eof or self._closing:
            return
        self._eof = True
        if not self._buffer:
            self._shut()

    def close(self) -> None:
        """End after what waits was written."""
        if self._closing:
            return
        self._closing = True
        self._arm()
        if not self._buffer:
            self._loop.call_soon(self._lose, None)

    def abort(self) -> None:
        """End now."""
        if self._socket.fileno() >= 0:
            self._stop_io()
            self._closing = True
            self._loop.call_soon(self._lose, None)

    # The loop's side

    def _arm(self) -> None:
        wanted = self._want_reading and not self._closing and self._socket.fileno() >= 0
        if wanted and not self._reading:
            self._loop.add_reader(self._socket, self._readable)
        elif self._reading and not wanted:
            self._loop.remove_reader(self._socket)
        self._reading = wanted

    def _readable(self) -> None:
        try:
            data, ancillary, _, _ = self._socket.recvmsg(_READ_BYTES, _ANCILLARY)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(error)
            return
        if not data:
            self._want_reading = False
            self._arm()
            if not self._protocol.eof_received():
                self.close()
            return
        writer = _writer(ancillary)
        if writer != self._pid:
            self.abort()
            self._on_stranger(writer)
            return
        self._protocol.data_received(data)

    def _writable(self) -> None:
        try:
            sent = self._socket.send(self._buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(error)
            return
        del self._buffer[:sent]
        if not self._buffer:
            self._loop.remove_writer(self._socket)
            if self._closing:
                self._lose(None)
                return
            if self._eof:
                self._shut()
        if self._full and len(self._buffer) <= self._high // _LOW_DIVISOR:
            self._full = False
            self._protocol.resume_writing()

    def _shut(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._lose(error)

    def _stop_io(self) -> None:
        self._loop.remove_writer(self._socket)
        self._want_reading = False
        self._arm()
        self._buffer.clear()

    def _lose(self, error: OSError | None) -> None:
        """The end: once, and the protocol is the last to hear of it."""
        if self._socket.fileno() < 0:
            return
        self._closing = True
        self._stop_io()
        try:
            self._protocol.connection_lost(error)
        finally:
            self._socket.close()


def _writer(ancillary: list[tuple[int, int, bytes]]) -> int:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS) and len(data) == CREDENTIALS_BYTES:
            return read_credentials(data).pid
    return 0
