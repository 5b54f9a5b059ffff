"""What a client's frames cost (S54, S55)."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spiffe_core.wire.http2_meter import (
    MAX_HEADER_BLOCK_BYTES,
    MAX_UNFINISHED,
    PREFACE,
    Abuse,
    Bucket,
    FrameWalker,
    Meter,
    Meters,
    Principals,
    Rates,
)


def frame(kind, flags=0, size=0, stream=1):
    return size.to_bytes(3, "big") + bytes([kind, flags]) + struct.pack(">I", stream) + b"\0" * size


frames = st.lists(st.tuples(st.integers(0, 255), st.sampled_from([0, 4]), st.integers(0, 3000)), max_size=30)


@given(frames, st.lists(st.integers(1, 400), max_size=200))
def test_the_price_does_not_depend_on_how_the_bytes_are_cut(parts, cuts):
    """TCP may deliver any byte boundary."""
    stream = PREFACE + b"".join(frame(kind, flags, size) for kind, flags, size in parts)
    try:
        whole = FrameWalker().price(stream)
    except Abuse:
        whole = None
    walker, pieces, at = FrameWalker(), [], 0
    for cut in cuts:
        pieces.append(stream[at : at + cut])
        at += cut
    pieces.append(stream[at:])
    try:
        total = sum(walker.price(piece) for piece in pieces)
    except Abuse:
        total = None
    assert whole == total


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\n", b"\x16\x03\x01", PREFACE[:20] + b"XXXX"])
def test_what_does_not_begin_with_the_preface_is_not_http2(start):
    """N-A-08: refused at the first byte that differs, without waiting for more."""
    with pytest.raises(Abuse):
        FrameWalker().price(start)


def test_a_header_block_may_grow_to_the_bound_and_not_beyond():
    """CVE-2024-24549's kind: the block never ends."""
    walker = FrameWalker()
    walker.price(PREFACE + frame(1, 0, 16_000))
    for _ in range((MAX_HEADER_BLOCK_BYTES - 16_000) // 8_000):
        walker.price(frame(9, 0, 8_000))
    with pytest.raises(Abuse):
        walker.price(frame(9, 0, 8_000))


def test_a_finished_header_block_is_forgotten():
    """Each request begins anew."""
    walker = FrameWalker()
    walker.price(PREFACE)
    for _ in range(50):
        walker.price(frame(1, 4, 16_000))


def test_honest_calls_cost_little_and_floods_much():
    """An ordinary call is a few dozen tokens; a ping, an empty settings frame or a fat header block is a flood's price."""
    walker = FrameWalker()
    walker.price(PREFACE)
    call = walker.price(frame(1, 4, 120)) + walker.price(frame(0, 1, 200)) + walker.price(frame(8, 0, 4))
    assert call < 30
    assert walker.price(frame(4)) >= 10 * call
    assert walker.price(frame(1, 4, 12_000)) >= 20 * call


def test_a_bucket_refills_with_time_and_its_debt_is_bounded():
    bucket = Bucket(100, 50, 0.0, most_wait=2.0)
    assert bucket.take(50, 0.0) == 0
    assert bucket.take(10, 0.0) == pytest.approx(0.1)
    assert bucket.take(1, 1.0) == 0
    assert bucket.take(1_000_000, 1.0) == pytest.approx(2.0)


def test_a_flooding_connection_waits_for_itself_and_its_neighbour_hardly():
    """The principal's bucket may not silence others behind the same address."""
    rates = Rates()
    principals = Principals(rates.principal, rates.principal_burst)
    flooder = Meter(rates, principals.of("10.0.0.1", 0.0), 0.0)
    honest = Meter(rates, principals.of("10.0.0.1", 0.0), 0.0)
    assert flooder.charge(PREFACE + frame(4) * 20_000, 0.0) > 20
    assert honest.charge(PREFACE + frame(1, 4, 100), 0.0) <= 0.25
    assert honest.charge(frame(1, 4, 100), 0.5) == 0


def test_principals_are_bounded_in_number():
    principals = Principals(1.0, 1.0, most=10)
    first = principals.of(0, 0.0)
    for number in range(1, 11):
        principals.of(number, 0.0)
    assert principals.of(0, 0.0) is not first
    assert principals.of(10, 0.0) is principals.of(10, 0.0)


def opened(count, first=1):
    """So many calls, each opened by a header block of one octet."""
    return b"".join(
        (1).to_bytes(3, "big") + bytes([1, 4]) + (first + 2 * number).to_bytes(4, "big") + b"\x82"
        for number in range(count)
    )


def test_a_users_calls_wait_for_their_turn_over_all_of_his_connections():
    """S53, N-A-36: some may wait, the rest comes as they begin; nobody else's connection waits, nor root's."""
    meters = Meters(Rates(calls_waiting=10, calls_forgotten=2))
    mine = [meters.of(pid, 0.0, uid=1000) for pid in (1, 2)]
    other, root = meters.of(3, 0.0, uid=1001), meters.of(4, 0.0)
    for meter in (*mine, other, root):
        assert meter.charge(PREFACE, 0.0) == 0
    assert mine[0].charge(opened(9), 0.0) == 0
    assert mine[0].charge(opened(50, 19), 0.0) == 0, "there is a turn left"
    assert mine[1].charge(opened(1), 0.0) > 0
    assert other.charge(opened(10), 0.0) == 0
    assert root.charge(opened(500), 0.0) == 0
    for _ in range(49):
        mine[0].begun(0.0)
    assert mine[1].turn(0.0) > 0
    mine[0].begun(0.0)
    assert mine[1].turn(0.0) == 0
    assert mine[1].charge(b"", 0.0) == 0, "what opens no call waits for none"


def test_calls_that_never_begin_are_forgotten_in_time():
    """gRPC refuses some by itself: beyond a hundred on a connection, of unknown methods, reset at once."""
    meter = Meters(Rates(calls_waiting=10, calls_forgotten=5)).of(1, 0.0, uid=1000)
    assert meter.charge(PREFACE + opened(30), 0.0) == 0
    assert meter.charge(opened(1, 61), 1.0) > 0
    assert meter.turn(4.0) > 0
    assert meter.turn(4.2) == 0


def test_turns_that_come_back_are_never_more_than_there_were():
    meter = Meters(Rates(calls_waiting=3, calls_forgotten=0.001)).of(1, 0.0, uid=1000)
    for _ in range(100):
        meter.begun(0.0)
    assert meter.charge(PREFACE + opened(3), 0.0) == 0
    assert meter.charge(opened(1, 7), 0.0) > 0


def test_requests_that_do_not_end_are_counted_over_all_connections_of_a_user():
    """S51, S53: who brings one too many is cut; an end, a reset and the connection's own end make room."""
    meters = Meters(Rates(unfinished=10))
    first, second, third = (meters.of(pid, 0.0, uid=1000) for pid in (1, 2, 3))
    other, root = meters.of(4, 0.0, uid=1001), meters.of(5, 0.0)
    for meter in (first, second, third, other, root):
        meter.charge(PREFACE, 0.0)
    first.charge(opened(6), 0.0)
    second.charge(opened(4), 0.0)
    other.charge(opened(10), 0.0)
    root.charge(opened(20), 0.0)
    second.charge(frame(0, 1, 5, stream=1) + opened(1, 9), 0.0)
    second.charge(frame(3, 0, 4, stream=3) + opened(1, 11), 0.0)
    second.charge(frame(0, 0, 4, stream=5), 0.0)
    with pytest.raises(Abuse, match="one user"):
        third.charge(opened(1), 0.0)
    third.close()
    third.close()
    first.close()
    second.charge(opened(6, 13), 0.0)
    with pytest.raises(Abuse, match="one user"):
        second.charge(opened(1, 99), 0.0)


def test_a_connection_has_so_many_requests_open_and_no_more():
    """Whoever he is: what is counted takes memory as well."""
    walker = FrameWalker()
    walker.price(PREFACE + opened(MAX_UNFINISHED))
    walker.price(frame(0, 1, 5, stream=1) + opened(1, 5001))
    with pytest.raises(Abuse):
        walker.price(opened(1, 5003))


def message(stream, size, cut=0, flags=0):
    """A DATA frame with the beginning of a message of so many bytes, all but `cut` of them."""
    whole = b"\0" + size.to_bytes(4, "big") + bytes(size)
    part = whole[: len(whole) - cut]
    return len(part).to_bytes(3, "big") + bytes([0, flags]) + stream.to_bytes(4, "big") + part


def test_a_request_is_open_until_its_first_message_is_whole():
    """What a stream of requests says later is the handler's to count; padding and cut prefixes wait for the end."""
    walker = FrameWalker()
    walker.price(PREFACE + opened(6))
    walker.price(message(1, 0) + message(3, 100))
    assert len(walker.unfinished) == 4
    walker.price(message(5, 100, cut=60) + frame(0, 0, 59, stream=5))
    assert len(walker.unfinished) == 4
    walker.price(frame(0, 0, 1, stream=5))
    walker.price(message(7, 2**24, cut=2**24 - 16_000))
    walker.price(message(9, 3, flags=8))
    cut = message(11, 3)
    walker.price(cut[:12])
    walker.price(cut[12:])
    walker.price(opened(1, 13) + frame(0, 0, 0, stream=13) + message(13, 9, cut=11))
    walker.price(message(13, 0))
    assert list(walker.unfinished) == [7, 9, 11, 13]
    walker.price(b"".join(frame(0, 1, 0, stream=stream) for stream in (7, 9, 11, 13)))
    assert not walker.unfinished


def headers(stream, flags=0, size=1):
    return frame(1, 4 | flags, size, stream)


def data(stream, payload, flags=0):
    return len(payload).to_bytes(3, "big") + bytes([0, flags]) + struct.pack(">I", stream) + payload


END, PADDED, PRIORITY, RESERVED = 0x1, 0x8, 0x20, 2**31
WHOLE, HALF = b"\0" + struct.pack(">I", 2) + b"ab", b"\0" + struct.pack(">I", 100) + b"half"
ENDS, LASTS = False, True


@pytest.mark.parametrize(
    ("after", "is_open"),
    [
        pytest.param(b"", LASTS, id="nothing"),
        pytest.param(data(1, WHOLE), ENDS, id="a whole message"),
        pytest.param(data(1, WHOLE + HALF), ENDS, id="a second message is the handler's to wait for"),
        pytest.param(data(1, WHOLE + HALF) + data(1, HALF), ENDS, id="and so is what follows it"),
        pytest.param(data(1, HALF), LASTS, id="half a message"),
        pytest.param(data(1, HALF) + data(1, bytes(95)), LASTS, id="all but one byte"),
        pytest.param(data(1, HALF) + data(1, bytes(96)), ENDS, id="a message in two frames"),
        pytest.param(data(1, HALF) + data(1, WHOLE), LASTS, id="what looks like a message inside one"),
        pytest.param(b"".join(data(1, b"\0") for _ in range(50)), LASTS, id="one byte to a frame"),
        pytest.param(data(1, b"\0\0\0\xff") + data(1, bytes(5)), LASTS, id="a prefix cut before its last byte"),
        pytest.param(data(1, b"") * 3, LASTS, id="frames of no bytes"),
        pytest.param(data(1, b"") * 3 + data(1, WHOLE), ENDS, id="frames of no bytes before a message"),
        pytest.param(data(1, b"\0\xff\xff\xff\xff") + data(1, bytes(16_000)) * 50, LASTS, id="a length of 4 GiB"),
        pytest.param(
            data(1, b"\x04" + HALF + bytes(4), PADDED) + data(1, bytes(5)), LASTS, id="padding, then a message"
        ),
        pytest.param(data(1, b"\0" + WHOLE, PADDED), LASTS, id="a message in a padded frame"),
        pytest.param(data(1, HALF) + data(1, bytes(96), PADDED), LASTS, id="its rest in a padded frame"),
        pytest.param(data(1, b"\0", PADDED) + data(1, b"", END), ENDS, id="padding, then the end"),
        pytest.param(data(1 | RESERVED, HALF[:3]) + data(1, bytes(5)), LASTS, id="its begin under the reserved bit"),
        pytest.param(data(1, HALF[:5]) + data(1 | RESERVED, bytes(100)), ENDS, id="its end under the reserved bit"),
        pytest.param(data(1 | RESERVED, b"", END), ENDS, id="the stream's end under the reserved bit"),
        pytest.param(data(3, WHOLE, END) + frame(3, 0, 4, stream=3), LASTS, id="the end of another stream"),
        pytest.param(data(0, WHOLE, END), LASTS, id="the end of the connection's own stream"),
        pytest.param(frame(2, END, 5), LASTS, id="PRIORITY has no flags"),
        pytest.param(frame(8, END, 4), LASTS, id="nor has WINDOW_UPDATE"),
        pytest.param(frame(9, END, 4), LASTS, id="CONTINUATION does not end a stream"),
        pytest.param(frame(5, END, 4), LASTS, id="nor does PUSH_PROMISE"),
        pytest.param(frame(77, END, 4), LASTS, id="nor a frame nobody knows"),
        pytest.param(frame(3, 0, 4), ENDS, id="RST_STREAM"),
        pytest.param(data(1, HALF) + frame(3, 0, 4), ENDS, id="RST_STREAM inside a message"),
        pytest.param(data(1, HALF, END), ENDS, id="the end inside a message"),
        pytest.param(headers(1, END), ENDS, id="trailers"),
        pytest.param(headers(1, END | PADDED | PRIORITY, 9), ENDS, id="trailers with padding and priority"),
        pytest.param(data(1, HALF) + headers(1, END), ENDS, id="trailers inside a message"),
        pytest.param(data(1, WHOLE) + headers(1), LASTS, id="a call that begins again once it was whole"),
        pytest.param(frame(3, 0, 4) + headers(1), LASTS, id="a call that begins again once it was reset"),
        pytest.param(data(1, b"", END) + headers(1), LASTS, id="a call that begins again once it had ended"),
    ],
)
@pytest.mark.parametrize("flags", [0, PADDED, PRIORITY])
def test_a_request_is_counted_for_as_long_as_grpc_may_hold_it(after, is_open, flags):
    """S51, S53: what cannot be followed counts until its stream ends, by whatever frame (RFC 9113 sections 5.1 and 6)."""
    walker = FrameWalker()
    walker.price(PREFACE + headers(1, flags, 9) + after)
    assert set(walker.unfinished) == ({1} if is_open else set())


@pytest.mark.parametrize(
    "between", [b"", HALF, b"\0", HALF + bytes(95)], ids=["nothing", "half", "a byte", "almost all"]
)
@pytest.mark.parametrize("stream", [1, 1 | RESERVED])
def test_a_stream_that_begins_again_while_it_is_open_is_open_until_it_ends(between, stream):
    """gRPC skips what a refused stream says and takes its number later: neither bytes are the other call's."""
    walker = FrameWalker()
    walker.price(PREFACE + headers(1) + data(1, between) + headers(stream))
    for message in (WHOLE, bytes(1), bytes(96)):
        walker.price(data(1, message))
        assert list(walker.unfinished) == [1]
    walker.price(data(1, b"", END))
    assert not walker.unfinished


@given(
    st.lists(
        st.one_of(
            st.builds(data, st.sampled_from([1, 3]), st.sampled_from([b"", b"\0", WHOLE, HALF, bytes(96)])),
            st.builds(data, st.sampled_from([1, 3]), st.just(b"\0" + WHOLE), st.just(PADDED)),
        ),
        max_size=8,
    ),
    st.lists(st.integers(1, 40), max_size=60),
)
def test_cutting_the_bytes_makes_no_request_count_for_less(parts, cuts):
    """TCP may deliver any byte boundary, and a client chooses it."""
    stream = PREFACE + headers(1) + headers(3) + b"".join(parts)
    whole, cut, at = FrameWalker(), FrameWalker(), 0
    whole.price(stream)
    for size in cuts:
        cut.price(stream[at : at + size])
        at += size
    cut.price(stream[at:])
    assert set(cut.unfinished) >= set(whole.unfinished)
