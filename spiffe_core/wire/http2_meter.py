"""What a client's HTTP/2 frames cost, before grpcio sees them.

grpcio bounds streams and metadata, but it answers, decodes or discards every frame it is sent, and a peer that sends
nothing else keeps a core busy: empty pings, endless header blocks, header blocks that name one large field thousands of
times. So each frame has a price in tokens, by kind and by size of what must be decoded; a connection has a bucket of
them, and so has its principal: the process behind a Unix socket, the address behind a TCP connection. Who overdraws is
read more slowly (back-pressure), never answered with an error; who breaks the framing or sends a header block beyond
every bound is cut off (reliability cases S54, S55; RFC 9113 section 10.5). The principal's bucket is for those who
connect again and again; its debt is small, so that one client behind a shared address cannot silence the others.

Calls are counted besides: they wait for Python one behind the other, so a user who opens thousands at once would be
served before everybody else (S53). A user may have some dozens that are not begun yet; whoever has more is read on when
some of them have begun. So nobody's rate is limited, however fast or slow the machine, and no line is long.

A call whose request never comes is held by gRPC, some 12 KB each, and nobody is asked. So the calls of a user whose
first message has not come whole are counted over all his connections; the connection that brings one too many is cut.
Where the meter cannot follow a request as gRPC does, it counts it until its stream ends: never less is counted than is
held. A frame counts once it is announced, so one request of each connection may be held and not counted.

Only frame headers are read here, nine bytes of each frame, and the length of each call's first message.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final
from weakref import WeakValueDictionary

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_HEADER_BYTES: Final = 9
_HEADER: Final = struct.Struct(">IBI")
"""RFC 9113 section 4.1: 24 bits of length and 8 of type, flags, and the stream below a reserved bit."""
MAX_HEADER_BLOCK_BYTES: Final = 64 * 1024

_DATA, _HEADERS, _RST_STREAM, _CONTINUATION = 0, 1, 3, 9
_END_STREAM, _END_HEADERS, _PADDED = 0x1, 0x4, 0x8
_STREAM_BITS: Final = 2**31 - 1
"""RFC 9113 section 4.1: the highest bit of a stream's number means nothing, and gRPC ignores it."""
_MESSAGE_PREFIX_BYTES: Final = 5
_UNKNOWN_BYTES: Final = 2**62
"""More than any stream carries: the request is open until its stream ends."""
MAX_UNFINISHED: Final = 512
"""Requests that may be under way on one connection: five times as many as gRPC takes, which it says in its SETTINGS."""
_PRICES: Final = {
    _DATA: 2,
    _HEADERS: 4,
    2: 20,  # PRIORITY
    _RST_STREAM: 20,
    4: 300,  # SETTINGS
    5: 300,  # PUSH_PROMISE: a client may not send it
    6: 60,  # PING: some clients measure the path with one per answer
    7: 300,  # GOAWAY
    8: 6,  # WINDOW_UPDATE
    _CONTINUATION: 20,
}
_OF_REQUESTS: Final = frozenset({_DATA, _HEADERS, _RST_STREAM})
_UNKNOWN_PRICE: Final = 50
_DATA_SHIFT: Final = 12  # one token for each 4 KiB of data
_BLOCK_SHIFT: Final = 4  # one token for each 16 bytes to be decoded
_OWN_WAIT: Final = 30.0
_SHARED_WAIT: Final = 0.25
_TURN_WAIT: Final = 0.01


class Abuse(ConnectionError):
    """The peer broke the framing, or sent more than any honest client does; its connection is to be cut."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Tokens a second and the most that can be saved up, for one connection and for all of one principal."""

    connection: float = 100_000
    connection_burst: float = 50_000
    principal: float = 400_000
    principal_burst: float = 800_000
    connecting: float = 500
    """What opening a connection costs the principal."""
    calls_waiting: float = 64
    """Calls of one local user, root excepted, that are opened and not begun."""
    calls_forgotten: float = 200
    """How many calls a second stop counting as such though they never began: gRPC itself refused them."""
    unfinished: int = 4096
    """Calls of one local user, root excepted, whose first message has not come whole."""


class Bucket:
    """Tokens that refill with time; overdrawing is allowed, up to `most_wait` seconds' worth, and is waited out."""

    __slots__ = ("_burst", "_floor", "_level", "_rate", "_then")

    def __init__(self, rate: float, burst: float, now: float, *, most_wait: float) -> None:
        self._rate, self._burst, self._level, self._then = rate, burst, burst, now
        self._floor = -rate * most_wait

    @property
    def empty(self) -> bool:
        """Whether nothing was left when it was last taken from."""
        return self._level <= 0

    def take(self, cost: float, now: float) -> float:
        """Pay `cost`; the seconds to wait until the debt is paid off (0 for none)."""
        level = min(self._burst, self._level + (now - self._then) * self._rate) - cost
        self._level, self._then = min(max(level, self._floor), self._burst), now
        return 0.0 if level >= 0 else -self._level / self._rate


class Turns:
    """The calls that one user may still open. Each that begins gives its turn back."""

    __slots__ = ("_bucket",)

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def take(self, calls: int, now: float) -> bool:
        """So many calls are opened together, if there is any turn left; whether there was."""
        if self._bucket.take(0, now) > 0 or self._bucket.empty:
            return False
        self._bucket.take(calls, now)
        return True

    def begun(self, now: float) -> None:
        """A call is looked at."""
        self._bucket.take(-1, now)


class Requests:
    """How many requests of one user have not come whole, over all his connections."""

    __slots__ = ("__weakref__", "open")

    def __init__(self) -> None:
        self.open = 0


class Principals:
    """One bucket for each principal, kept over reconnects; bounded, the longest unused goes first."""

    def __init__(self, rate: float, burst: float, *, most_wait: float = _SHARED_WAIT, most: int = 4096) -> None:
        self._rate, self._burst, self._most_wait = rate, burst, most_wait
        self._most = most
        self._buckets: OrderedDict[object, Bucket] = OrderedDict()

    def of(self, principal: object, now: float) -> Bucket:
        """The principal's bucket."""
        bucket = self._buckets.get(principal)
        if bucket is None:
            bucket = self._buckets[principal] = Bucket(self._rate, self._burst, now, most_wait=self._most_wait)
            while len(self._buckets) > self._most:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(principal)
        return bucket


class FrameWalker:
    """Walks a client's byte stream frame by frame and prices it, however the bytes are cut."""

    __slots__ = ("_block", "_partial", "_preface", "_skip", "calls", "unfinished")

    def __init__(self) -> None:
        self.calls = 0
        """Header blocks begun so far: each opens a call, a gRPC client sends no others."""
        self.unfinished: dict[int, int] = {}
        """The streams whose first message has not come whole, and how many bytes of it are missing, -1 if unknown."""
        self._preface = 0  # bytes of it seen
        self._partial = b""  # the beginning of a frame header
        self._skip = 0  # bytes of the present frame's payload still to come
        self._block = -1  # bytes of the open header block, -1 when none is open

    def price(self, data: bytes) -> int:
        """The tokens that `data` costs.

        Raises:
            Abuse: it is not HTTP/2, a header block grew beyond MAX_HEADER_BLOCK_BYTES, or more than MAX_UNFINISHED
                requests are open.
        """
        position, size, tokens = 0, len(data), 0
        if self._preface < len(PREFACE):
            position = min(size, len(PREFACE) - self._preface)
            if data[:position] != PREFACE[self._preface : self._preface + position]:
                raise Abuse("the peer does not speak HTTP/2")
            self._preface += position
        if self._skip:
            step = min(self._skip, size - position)
            self._skip -= step
            position += step
        if self._partial:
            need = FRAME_HEADER_BYTES - len(self._partial)
            self._partial += data[position : position + need]
            position = min(position + need, size)
            if len(self._partial) < FRAME_HEADER_BYTES:
                return 0
            head, self._partial = self._partial, b""
            price, length = self._frame(head, 0, data, position)
            tokens += price
            position += length
        while size - position >= FRAME_HEADER_BYTES:
            start = position + FRAME_HEADER_BYTES
            price, length = self._frame(data, position, data, start)
            tokens += price
            position = start + length
        if position > size:
            self._skip = position - size
        else:
            self._partial = data[position:]
        return tokens

    def _frame(self, head: bytes, at: int, data: bytes, start: int) -> tuple[int, int]:
        """The price of the frame whose header is `head[at : at + 9]`, and the length of its payload: `data[start:]`."""
        word, flags, stream = _HEADER.unpack_from(head, at)
        length, kind = word >> 8, word & 0xFF
        if kind in _OF_REQUESTS:
            stream &= _STREAM_BITS
            if self._goes_on(stream, kind, flags):
                self._go_on(stream, data[start : start + _MESSAGE_PREFIX_BYTES], length)
        if kind == _DATA:
            price = _PRICES[_DATA] + (length >> _DATA_SHIFT)
        elif kind in (_HEADERS, _CONTINUATION):
            price = self._block_of(kind, flags, length)
        else:
            price = _PRICES.get(kind, _UNKNOWN_PRICE)
        return price, length

    def _goes_on(self, stream: int, kind: int, flags: int) -> bool:
        """Whether this is a further part of an open request; one that begins or ends is counted here.

        No honest request begins twice (RFC 9113 section 8.1: a later header block ends the stream). But gRPC refuses a
        stream when too many are open, and takes the same number later: what it skipped in between is not of that call.
        Padding it does not take at all; its bytes are not looked through for a message.
        """
        if kind == _RST_STREAM or flags & _END_STREAM:
            self.unfinished.pop(stream, None)
            return False
        if kind == _HEADERS:
            self.unfinished[stream] = _UNKNOWN_BYTES if stream in self.unfinished else -1
            if len(self.unfinished) > MAX_UNFINISHED:
                raise Abuse("more requests are open than any honest client has")
            return False
        if stream in self.unfinished and flags & _PADDED:
            self.unfinished[stream] = _UNKNOWN_BYTES
            return False
        return stream in self.unfinished

    def _go_on(self, stream: int, begin: bytes, length: int) -> None:
        """Count down the first message, by gRPC's prefix: a flag and four bytes of length.

        A prefix that is cut in two is not put together: that request is open until its stream ends.
        """
        missing = self.unfinished[stream]
        if missing < 0:
            if not length:
                return
            whole = min(length, len(begin)) == _MESSAGE_PREFIX_BYTES
            missing = _MESSAGE_PREFIX_BYTES + int.from_bytes(begin[1:]) if whole else _UNKNOWN_BYTES
        if missing > length:
            self.unfinished[stream] = missing - length
        else:
            del self.unfinished[stream]

    def _block_of(self, kind: int, flags: int, length: int) -> int:
        """The price of a part of a header block."""
        self.calls += kind == _HEADERS
        self._block = length if kind == _HEADERS or self._block < 0 else self._block + length
        if self._block > MAX_HEADER_BLOCK_BYTES:
            raise Abuse("a header block is larger than any honest one")
        if flags & _END_HEADERS:
            self._block = -1
        return _PRICES[kind] + (length >> _BLOCK_SHIFT)


class Meters:
    """Makes the meters of one door's connections."""

    def __init__(self, rates: Rates) -> None:
        self._rates = rates
        self._principals = Principals(rates.principal, rates.principal_burst)
        self._callers = Principals(rates.calls_forgotten, rates.calls_waiting, most_wait=_OWN_WAIT)
        self._requests: WeakValueDictionary[int, Requests] = WeakValueDictionary()

    def of(self, principal: int | str, now: float, *, uid: int = 0) -> Meter:
        """For one more connection of `principal`; `uid` is the local user whose calls are counted, 0 for nobody."""
        shared = self._principals.of(principal, now)
        if not uid:
            return Meter(self._rates, shared, now)
        requests = self._requests.setdefault(uid, Requests())
        return Meter(self._rates, shared, now, turns=Turns(self._callers.of(uid, now)), requests=requests)


class Meter:
    """Prices a connection's bytes against its own bucket and its principal's, its calls against its user's turns."""

    __slots__ = ("_most", "_opened", "_own", "_requests", "_shared", "_turns", "_unfinished", "_walker")

    def __init__(
        self,
        rates: Rates,
        shared: Bucket,
        now: float,
        *,
        turns: Turns | None = None,
        requests: Requests | None = None,
    ) -> None:
        self._walker = FrameWalker()
        self._own = Bucket(rates.connection, rates.connection_burst, now, most_wait=_OWN_WAIT)
        self._shared = shared
        self._turns = turns
        self._requests = requests
        self._most = rates.unfinished
        self._unfinished = 0  # what is counted in `_requests`
        self._opened = 0  # calls in what was charged and has not been passed on
        self._shared.take(rates.connecting, now)

    def charge(self, data: bytes, now: float) -> float:
        """Pay for `data`; the seconds to stop reading for, 0 if it may be passed on now. Raises Abuse."""
        before = self._walker.calls
        tokens = self._walker.price(data)
        self._opened += self._walker.calls - before
        if self._requests is not None:
            self._count(self._requests, len(self._walker.unfinished))
        wait = max(self._own.take(tokens, now), self._shared.take(tokens, now))
        return wait if wait > 0 else self.turn(now)

    def turn(self, now: float) -> float:
        """Seconds after which to ask again; 0 once what was charged may be passed on."""
        if self._turns is None or not self._opened:
            return 0.0
        if not self._turns.take(self._opened, now):
            return _TURN_WAIT
        self._opened = 0
        return 0.0

    def begun(self, now: float) -> None:
        """One of its calls is looked at."""
        if self._turns is not None:
            self._turns.begun(now)

    def close(self) -> None:
        """The connection is over, and its requests with it."""
        if self._requests is not None:
            self._requests.open -= self._unfinished
            self._requests = None

    def _count(self, requests: Requests, unfinished: int) -> None:
        more, self._unfinished = unfinished - self._unfinished, unfinished
        requests.open += more
        if more > 0 and requests.open > self._most:
            raise Abuse("more requests of one user are open than any honest one has")
