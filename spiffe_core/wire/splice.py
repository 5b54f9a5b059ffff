"""Two connections joined byte for byte, with back-pressure both ways and an end to those who read nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast


class Splice:
    """Joins a near side (the peer) and a far side (grpcio). When either ends, both do, after what is in flight.

    `stall` seconds without the peer taking a byte that waits for it end the connection, so that a reader who never
    reads holds a bounded buffer for a bounded time.
    """

    __slots__ = ("_closed", "_on_close", "_stall", "_timer", "buffer", "far", "near")

    def __init__(self, *, buffer: int, stall: float, on_close: Callable[[], None]) -> None:
        self.buffer = buffer
        self.near = Side(self)
        self.far = Side(self)
        self.near.other, self.far.other = self.far, self.near
        self._stall = stall
        self._timer: asyncio.TimerHandle | None = None
        self._on_close = on_close
        self._closed = False

    def stalled(self) -> None:
        """A side has stopped taking bytes: give it `stall` seconds."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._stall, self.abort)

    def flowing(self) -> None:
        """The side takes bytes again."""
        if self._timer is not None and not (self.near.full or self.far.full):
            self._timer.cancel()
            self._timer = None

    def abort(self) -> None:
        """End both connections now, whatever is in flight."""
        self.finished()
        for side in (self.near, self.far):
            if side.transport is not None:
                side.transport.abort()

    def end(self) -> None:
        """End both connections after what is in flight was written; a stalled one is cut off in time."""
        self.finished()
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._stall, self.abort)
        for side in (self.near, self.far):
            if side.transport is not None:
                side.transport.close()

    def finished(self) -> None:
        """Tell the owner, once."""
        if not self._closed:
            self._closed = True
            self._on_close()

    def lost(self) -> None:
        """One transport is gone: the other follows, and with both gone nothing is left to time."""
        self.finished()
        open_sides = [side for side in (self.near, self.far) if side.transport is not None]
        if not open_sides:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            return
        self.end()


class Side(asyncio.Protocol):
    """One end of a splice: what arrives here is written to the other end."""

    __slots__ = ("early", "full", "other", "splice", "transport")

    def __init__(self, splice: Splice) -> None:
        self.splice = splice
        self.other: Side = self
        self.transport: asyncio.Transport | None = None
        self.full = False
        self.early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Join in. Nothing is read from an end whose other end does not stand yet."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=self.splice.buffer)
        other = self.other
        if other.transport is None:
            self.transport.pause_reading()
            return
        for data in other.early:
            self.transport.write(data)
        other.early.clear()
        other.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Pass it on. A TLS layer may deliver once more after `pause_reading`; that is kept for the other end."""
        if self.other.transport is None:
            self.early.append(data)
        else:
            self.other.transport.write(data)

    def pause_writing(self) -> None:
        """This end takes no more for now: stop reading at the other."""
        self.full = True
        if self.other.transport is not None:
            self.other.transport.pause_reading()
        self.splice.stalled()

    def resume_writing(self) -> None:
        """This end takes bytes again."""
        self.full = False
        if self.other.transport is not None and not self.other.transport.is_closing():
            self.other.transport.resume_reading()
        self.splice.flowing()

    def eof_received(self) -> bool:
        """HTTP/2 has no half-open life: an end of one is the end of both."""
        self.splice.end()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone."""
        self.transport = None
        self.early.clear()
        self.splice.lost()
