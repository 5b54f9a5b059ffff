"""Two connections joined byte for byte, with back-pressure both ways and an end to those who read nothing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import cast

from spiffe_core.wire.http2_meter import Abuse, Meter

LINGER_SECONDS = 0.5
"""So long a peer may take to close its end of a Unix socket once it has been sent everything and then the end."""
_LEFT_OVER_READ = 65_536
_LEFT_OVER_READS = 64


class Splice:
    """Joins a near side (the peer) and a far side (grpcio). When either ends, both do, after what is in flight.

    `stall` seconds without the peer taking a byte that waits for it end the connection, so that a reader who never
    reads holds a bounded buffer for a bounded time. A `meter` on the near side slows down who floods.

    The last words of grpcio are the status of every call, and they reach the peer whatever the peer is saying at that
    moment. (1) A write to grpcio that fails because it has closed does not throw away what it wrote before: that is
    read to its end first. (2) A Unix socket is closed one way, and the other way only when the peer has closed as
    well: a gRPC client whose own write fails gives up without reading what already lies in its socket. TLS does the
    same by itself with its closing alerts.
    """

    __slots__ = ("_closed", "_gone", "_on_close", "_on_gone", "_stall", "_timer", "buffer", "ended_by", "far", "near")

    def __init__(
        self, *, buffer: int, stall: float, on_close: Callable[[], None], on_gone: Callable[[], None] = lambda: None
    ) -> None:
        self.buffer = buffer
        self.near = Side(self)
        self.far = Side(self)
        self.ended_by: Side | None = None
        """Whose peer ended it; None while it is open, and if it was ended here."""
        self.near.other, self.far.other = self.far, self.near
        self._stall = stall
        self._timer: asyncio.TimerHandle | None = None
        self._on_close = on_close
        self._on_gone = on_gone
        self._closed = False
        self._gone = False

    def stalled(self) -> None:
        """A side has stopped taking bytes: give it `stall` seconds."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._stall, self.abort)

    def flowing(self) -> None:
        """The side takes bytes again."""
        if self._timer is not None and not (self.near.full or self.far.full or self._closed):
            self._timer.cancel()
            self._timer = None

    def abort(self) -> None:
        """End both connections now, whatever is in flight."""
        self.finished()
        for side in (self.near, self.far):
            if side.transport is not None:
                side.transport.abort()
        self._check_gone()

    def end(self) -> None:
        """End both connections after what is in flight was written; one that does not follow is cut off in time."""
        if self._closed:
            return
        self.finished()
        if self.far.transport is not None:
            self.far.transport.close()
        waits = self.near.say_goodbye()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(self._stall if waits else LINGER_SECONDS, self.abort)

    @property
    def closed(self) -> bool:
        """True once the end has begun: what the peer still says is for nobody."""
        return self._closed

    @property
    def gone(self) -> bool:
        """True once both sockets are closed, or none was ever opened and none will be."""
        return self._gone

    def finished(self) -> None:
        """Tell the owner, once."""
        if not self._closed:
            self._closed = True
            self._on_close()

    def lost(self) -> None:
        """One transport is gone: the other follows, and with both gone nothing is left to time."""
        if self.near.transport is not None or self.far.transport is not None:
            self.end()
            return
        self.finished()
        self._check_gone()

    def _check_gone(self) -> None:
        """Tell the owner, once, that the last byte is written and both sockets are closed."""
        if self._gone or self.near.transport is not None or self.far.transport is not None:
            return
        self._gone = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._on_gone()


class Side(asyncio.Protocol):
    """One end of a splice: what arrives here is written to the other end."""

    __slots__ = ("early", "full", "heard", "meter", "other", "splice", "throttle", "transport")

    def __init__(self, splice: Splice) -> None:
        self.splice = splice
        self.other: Side = self
        self.transport: asyncio.Transport | None = None
        self.full = False
        self.heard = False
        """Whether its peer has said anything."""
        self.early: list[bytes] = []
        self.meter: Meter | None = None
        self.throttle: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Join in. Nothing is read from an end whose other end does not stand yet."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=self.splice.buffer)
        other = self.other
        if other.transport is None:
            self.transport.pause_reading()
            return
        early, other.early = other.early, []
        for data in early:
            other.data_received(data)
        other.read_on()

    def data_received(self, data: bytes) -> None:
        """Pass it on, later if the meter says so.

        A TLS layer may deliver once more after `pause_reading`; that is kept until its turn comes.
        """
        self.heard = True
        other = self.other.transport
        if self.splice.closed and self is self.splice.near:
            return
        if other is None or self.throttle is not None:
            self.early.append(data)
            return
        if self.meter is not None:
            loop = asyncio.get_running_loop()
            try:
                wait = self.meter.charge(data, loop.time())
            except Abuse:
                self.splice.abort()
                return
            if wait > 0 and self.transport is not None:
                self.transport.pause_reading()
                self.throttle = loop.call_later(wait, self._unthrottled, data)
                return
        other.write(data)

    def _unthrottled(self, data: bytes) -> None:
        """The debt is paid off: pass on what ran it up, then what came after."""
        self.throttle = None
        if self.meter is not None:
            loop = asyncio.get_running_loop()
            wait = self.meter.turn(loop.time())
            if wait > 0:
                self.throttle = loop.call_later(wait, self._unthrottled, data)
                return
        if self.other.transport is not None:
            self.other.transport.write(data)
        early, self.early = self.early, []
        for late in early:
            self.data_received(late)
        self.read_on()

    def read_on(self) -> None:
        """Read again, unless the other end is full, this one is throttled, or it is over."""
        if self.transport is None or self.transport.is_closing():
            return
        if self.throttle is None and self.other.transport is not None and not self.other.full:
            self.transport.resume_reading()

    def pause_writing(self) -> None:
        """This end takes no more for now: stop reading at the other."""
        self.full = True
        if self.other.transport is not None and not self.other.transport.is_closing():
            self.other.transport.pause_reading()
        self.splice.stalled()

    def resume_writing(self) -> None:
        """This end takes bytes again."""
        self.full = False
        self.other.read_on()
        self.splice.flowing()

    def say_goodbye(self) -> bool:
        """Send the end after what waits to be sent, and go on reading until the peer closes; whether bytes wait."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return False
        waiting = transport.get_write_buffer_size() > 0
        if self.throttle is not None:
            self.throttle.cancel()
            self.throttle = None
        if transport.can_write_eof():
            transport.write_eof()
            transport.resume_reading()
        else:
            transport.close()
        return waiting

    def eof_received(self) -> bool:
        """HTTP/2 has no half-open life: an end of one is the end of both."""
        self._ended()
        self.splice.end()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone; what grpcio wrote before it closed is still there to be read."""
        self._ended()
        if exc is not None and self is self.splice.far and not self.splice.closed:
            self._pass_on_what_is_left()
        self.transport = None
        self.early.clear()
        if self.throttle is not None:
            self.throttle.cancel()
            self.throttle = None
        self.splice.lost()

    def _ended(self) -> None:
        if self.splice.ended_by is None and not self.splice.closed:
            self.splice.ended_by = self

    def _pass_on_what_is_left(self) -> None:
        """Read the socket to its end: its writer is gone, so there is an end, and nobody has to be waited for."""
        near, own = self.other.transport, self.transport
        descriptor = own.get_extra_info("socket") if own is not None else None
        if near is None or near.is_closing() or descriptor is None:
            return
        for _ in range(_LEFT_OVER_READS):
            try:
                data = os.read(descriptor.fileno(), _LEFT_OVER_READ)
            except OSError:  # nothing more, or the socket is gone altogether
                return
            if not data:
                return
            near.write(data)
