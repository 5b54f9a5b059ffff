"""Takes gRPC's wake-ups off its socket all at once, for the whole process.

Theory of operation. The event loop edition of grpcio has one thread that waits for events of the C library. For each it
puts the event into a queue and writes one byte into a socket pair that the loop watches; the loop's handler reads *one*
byte and handles *every* event in the queue. So bytes stay behind whenever several events come in one round of the loop,
and each later round reads one of them for nothing. Some 280 of them fill the socket (each takes a kernel buffer of its
own). Then the thread is stuck in its write, and the kernel lets it go on only when three quarters have been read: 200
rounds in which no call of anybody makes a step. With a crowd of agents a round takes milliseconds, and 200 of them were
the seconds that an administrator waited (R37). Rounds that read a byte for nothing cost CPU besides.

grpcio makes the socket pair when its event loop edition is first initialised. `drain_wake_ups` is there at that moment
and hands it a socket that reads all that has come; what was read is thrown away by grpcio, as the one byte is. It then
keeps the edition initialised for the life of the process. To be called by a daemon before anything else of gRPC.
"""

from __future__ import annotations

import socket
from typing import Any, Final

import grpc.aio

_AT_ONCE: Final = 4096
_recv: Final = socket.socket.recv


class _WakeUps(socket.socket):
    """A socket that is never read in portions."""

    __slots__ = ()

    def recv(self, _bufsize: int, _flags: int = 0) -> bytes:
        """All that has come, up to a page."""
        return _recv(self, _AT_ONCE)


def drain_wake_ups() -> bool:
    """From now on wake-ups are read all at once; False if gRPC was in use before, or makes no socket pair any more.

    No other thread may make a socket pair meanwhile.
    """
    made: list[socket.socket] = []
    plain = socket.socketpair

    def pair(*words: Any) -> tuple[socket.socket, socket.socket]:
        read, write = plain(*words)
        drained = _WakeUps(read.family, read.type, read.proto, fileno=read.detach())
        made.append(drained)
        return drained, write

    socket.socketpair = pair  # type: ignore[assignment]
    try:
        grpc.aio.init_grpc_aio()  # never taken back: the poller with this socket stays the only one
    finally:
        socket.socketpair = plain
    return bool(made)
